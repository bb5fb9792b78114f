//! Tokens, token types and tokenizer classes, compared with those that transformers 5.24 reads from a checkpoint.

use std::time::Duration;

use couplet::model::{DISTILBERT, Encoding, Tokenizer, import};
use serde_json::{Value, json};

use crate::support::{couplet, golden, stderr_of};
use crate::tiny::{Variant, with_room};

const CONFIG: &str = "tokenizer_config.json";

fn tokenizer(variant: &Variant) -> Tokenizer {
    variant.load().unwrap().tokenizer
}

fn encode(variant: &Variant, text: &str) -> Vec<u32> {
    tokenizer(variant).encode(text, None).unwrap().input_ids
}

fn settings(variant: Variant, edit: impl FnOnce(&mut Value)) -> Variant {
    variant.with_json(CONFIG, edit)
}

/// tiny-bert with a tokenizer.json of the same vocabulary.
fn with_tokenizer_json() -> Variant {
    let json = std::fs::read(golden("tiny-distilbert").join("tokenizer.json")).unwrap();
    Variant::of("tiny-bert").without("vocab.txt").with("tokenizer.json", json)
}

fn token(content: &str) -> Value {
    json!({ "content": content, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false, "special": true })
}

#[test]
fn added_tokens_are_read_from_every_file_that_has_them() {
    let ids = json!({ "[E1]": 787, "[/E1]": 788 }).to_string();
    let map = json!({ "additional_special_tokens": ["[E1]", token("[/E1]")] });
    let decoder = json!({ "787": token("[E1]"), "788": token("[/E1]") });
    let variants = [
        with_room().with("added_tokens.json", &ids),
        with_room().with("added_tokens.json", &ids).with("special_tokens_map.json", map.to_string()),
        // Tokens without a listed id follow the vocabulary.
        with_room().with("special_tokens_map.json", map.to_string()),
        settings(with_room(), |settings| settings["added_tokens_decoder"] = decoder.clone()),
        settings(with_room(), |settings| settings["additional_special_tokens"] = json!(["[E1]", "[/E1]"])),
        settings(with_room(), |settings| settings["extra_special_tokens"] = json!(["[E1]", "[/E1]"])),
        settings(with_room(), |settings| {
            settings["begin_token"] = "[E1]".into();
            settings["end_token"] = json!({ "__type": "AddedToken", "content": "[/E1]" });
        }),
        // The list of all added tokens takes precedence; the older files are then not read.
        settings(with_room(), |settings| settings["added_tokens_decoder"] = decoder.clone())
            .with("added_tokens.json", json!({ "other": 787 }).to_string()),
    ];
    let plain = Variant::of("tiny-bert");
    let [a, b] = ["a", "b"].map(|text| encode(&plain, text)[1]);
    for (i, variant) in variants.iter().enumerate() {
        let ids = encode(variant, "a [E1]b[/E1] a");
        assert_eq!(ids[1..ids.len() - 1], [a, 787, b, 788, a], "variant {i}");
    }
}

#[test]
fn tokens_of_settings_are_added_to_a_tokenizer_json() {
    // [unused1] is in neither vocabulary; `the` is.
    let added = settings(with_tokenizer_json(), |settings| settings["additional_special_tokens"] = json!(["the"]));
    let plain = with_tokenizer_json();
    // Added tokens are matched within words too.
    let the = encode(&plain, "the")[1];
    assert!(!encode(&plain, "bathed").contains(&the));
    assert!(encode(&added, "bathed").contains(&the));
}

#[test]
fn ids_that_contradict_the_vocabulary_are_refused() {
    let variant = with_room().with("added_tokens.json", json!({ "[E1]": 788 }).to_string());
    insta::assert_snapshot!(variant.error(), @r#"cannot read MODEL/added_tokens.json: token "[E1]" has the id 788 there, but 787 after the tokens of the vocabulary; save the tokenizer with `save_pretrained` of transformers"#);
    let variant = with_room().with("added_tokens.json", json!({ "[E1]": "787" }).to_string());
    insta::assert_snapshot!(variant.error(), @r#"MODEL/added_tokens.json: key `[E1]`: expected the id of the token, found "787""#);
    let variant = settings(with_room(), |settings| settings["added_tokens_decoder"] = json!({ "x": token("[E1]") }));
    insta::assert_snapshot!(variant.error(), @r#"MODEL/tokenizer_config.json: key `added_tokens_decoder`: expected an object from ids to tokens, found {"x":{"content":"[E1]","lstrip":false,"normalized":false,"rstrip":false,"single_word":false,"special":true}}"#);
    let variant = settings(with_room(), |settings| settings["cls_token"] = json!(7));
    insta::assert_snapshot!(variant.error(), @"MODEL/tokenizer_config.json: key `cls_token`: expected a token: a text, or an object with `content`, found 7");
    let variant = settings(with_room(), |settings| {
        settings["cls_token"] = "".into();
        settings["added_tokens_decoder"] = json!({ "787": token("") });
    });
    insta::assert_snapshot!(variant.error(), @r#"MODEL/tokenizer_config.json: key `added_tokens_decoder`: expected an object from ids to tokens, found {"787":{"content":"","lstrip":false,"normalized":false,"rstrip":false,"single_word":false,"special":true}}"#);
    // More tokens than embeddings.
    let variant = Variant::of("tiny-bert").with("added_tokens.json", json!({ "[E1]": 787 }).to_string());
    insta::assert_snapshot!(variant.error(), @"cannot read MODEL/vocab.txt: it knows 788 tokens, the encoder only 787 (`vocab_size` of config.json)");
}

#[test]
fn special_tokens_may_be_named_in_the_map_alone() {
    let vocab = String::from_utf8(Variant::of("tiny-bert").read("vocab.txt")).unwrap();
    let vocab = vocab.replace("[CLS]\n", "<s>\n").replace("[SEP]\n", "</s>\n");
    let variant = Variant::of("tiny-bert")
        .with("vocab.txt", vocab)
        .with(CONFIG, json!({ "do_lower_case": true }).to_string())
        .with("special_tokens_map.json", json!({ "cls_token": "<s>", "sep_token": token("</s>") }).to_string());
    let ids = encode(&Variant::of("tiny-bert"), "yes");
    assert_eq!(encode(&variant, "yes"), ids);
    assert_eq!(encode(&variant, "</s>")[1], ids[ids.len() - 1]);
}

#[test]
fn special_tokens_are_split_where_the_settings_say_so() {
    for variant in [Variant::of("tiny-bert"), with_tokenizer_json()] {
        let sep = *encode(&variant, "").last().unwrap();
        let count = |variant: &Variant| encode(variant, "a [SEP] b").iter().filter(|id| **id == sep).count();
        assert_eq!(count(&variant), 2);
        let split = settings(variant, |settings| settings["split_special_tokens"] = true.into());
        assert_eq!(count(&split), 1);
        // Also in truncated texts.
        let cut = tokenizer(&split).with_max_length(16).unwrap();
        let Encoding { input_ids, .. } = cut.encode("a [SEP] b", Some("c")).unwrap();
        assert_eq!(input_ids.iter().filter(|id| **id == sep).count(), 2);
    }
}

#[test]
fn token_types_depend_on_model_input_names_and_class() {
    let types = |variant: &Variant| tokenizer(variant).encode("a", Some("b")).unwrap().token_type_ids;
    let class = |class: &str| settings(with_tokenizer_json(), |settings| settings["tokenizer_class"] = class.into());
    let names = |variant: Variant, names: Value| settings(variant, |settings| settings["model_input_names"] = names);
    let (some, none) = (vec![0, 0, 0, 1, 1], vec![0; 5]);
    assert_eq!(types(&class("BertTokenizer")), some);
    assert_eq!(types(&class("BertTokenizerFast")), some);
    assert_eq!(types(&with_tokenizer_json().without(CONFIG)), some);
    assert_eq!(types(&class("DistilBertTokenizerFast")), none);
    assert_eq!(types(&class("PreTrainedTokenizerFast")), none);
    assert_eq!(types(&class("TokenizersBackend")), none);
    let (all, without) =
        (json!(["input_ids", "token_type_ids", "attention_mask"]), json!(["input_ids", "attention_mask"]));
    assert_eq!(types(&names(class("BertTokenizer"), without.clone())), none);
    assert_eq!(types(&names(Variant::of("tiny-bert"), without)), none);
    assert_eq!(types(&names(class("PreTrainedTokenizerFast"), all)), some);
}

#[test]
fn unknown_tokenizer_classes_are_refused_by_name() {
    let class = |variant: Variant, class: &str| {
        settings(variant, |settings| settings["tokenizer_class"] = class.into()).error()
    };
    insta::assert_snapshot!(class(Variant::of("tiny-bert"), "BertJapaneseTokenizer"), @r#"MODEL/tokenizer_config.json: key `tokenizer_class`: expected "BertTokenizer", "DistilBertTokenizer", or "PreTrainedTokenizerFast" with a tokenizer.json that gives the right ids by itself, found "BertJapaneseTokenizer""#);
    insta::assert_snapshot!(class(with_tokenizer_json(), "XLMRobertaTokenizerFast"), @r#"MODEL/tokenizer_config.json: key `tokenizer_class`: expected "BertTokenizer", "DistilBertTokenizer", or "PreTrainedTokenizerFast" with a tokenizer.json that gives the right ids by itself, found "XLMRobertaTokenizerFast""#);
    insta::assert_snapshot!(class(Variant::of("tiny-bert"), "PreTrainedTokenizerFast"), @r#"MODEL/tokenizer_config.json: key `tokenizer_class`: expected "BertTokenizer", "DistilBertTokenizer", or "PreTrainedTokenizerFast" with a tokenizer.json that gives the right ids by itself, found "PreTrainedTokenizerFast""#);
    let in_config = settings(Variant::of("tiny-bert"), |settings| settings["tokenizer_class"] = Value::Null)
        .with_config("tokenizer_class", "BertJapaneseTokenizer".into());
    insta::assert_snapshot!(in_config.error(), @r#"MODEL/config.json: key `tokenizer_class`: expected "BertTokenizer", "DistilBertTokenizer", or "PreTrainedTokenizerFast" with a tokenizer.json that gives the right ids by itself, found "BertJapaneseTokenizer""#);
}

#[test]
fn an_imported_model_keeps_the_tokenizer_class_of_its_config() {
    let base = settings(with_tokenizer_json(), |settings| settings["tokenizer_class"] = Value::Null)
        .with_config("tokenizer_class", "PreTrainedTokenizerFast".into());
    for form in [None, Some(&DISTILBERT)] {
        let target = tempfile::tempdir().unwrap();
        let folder = target.path().join("base");
        import(base.folder(), &folder, form).unwrap();
        let written: Value = serde_json::from_slice(&std::fs::read(folder.join(CONFIG)).unwrap()).unwrap();
        assert_eq!(written["tokenizer_class"], "PreTrainedTokenizerFast", "{form:?}");
    }
}

#[test]
fn more_token_types_than_the_encoder_has_are_refused() {
    let types = "bert.embeddings.token_type_embeddings.weight";
    let one_type = || {
        let variant = Variant::of("tiny-bert");
        let first = variant.tensors()[types].narrow(0, 0, 1).unwrap().contiguous().unwrap();
        variant.with_tensor(types, first).with_config("type_vocab_size", 1.into())
    };
    insta::assert_snapshot!(one_type().error(), @r#"MODEL/config.json: key `type_vocab_size`: expected 2 or more, as the tokenizer gives a pair the token types 0 to 1; a model without token types has a `model_input_names` without "token_type_ids" in tokenizer_config.json, found 1"#);
    let without = json!(["input_ids", "attention_mask"]);
    settings(one_type(), |settings| settings["model_input_names"] = without).load().unwrap();
}

#[test]
fn the_files_of_added_tokens_are_a_part_of_the_fingerprint() {
    let of = |variant: Variant| variant.load().unwrap().fingerprint;
    let added = |token: &str| with_room().with("added_tokens.json", json!({ token: 787 }).to_string());
    assert_ne!(of(added("[E1]")), of(with_room()));
    assert_ne!(of(added("[E1]")), of(added("[E2]")));
}

/// The errors of `model show` and `predict` for a refused model, which must take seconds at most.
fn refused(variant: &Variant, file: &str, expected: &str) {
    for arguments in [&["model", "show"][..], &["predict", "a", "b", "--model"]] {
        let mut command = couplet();
        // Allows for a debug build on a busy machine.
        command.args(arguments).arg(variant.folder()).timeout(Duration::from_secs(30));
        let message = stderr_of(&mut command, 2);
        let named = format!("cannot read {}: ", variant.path(file).display());
        assert!(message.contains(&named) && message.contains(expected), "{message}");
        assert!(message.len() < 1000, "{} bytes", message.len());
    }
}

#[test]
fn oversized_files_are_refused_before_they_are_read() {
    for (name, file) in [
        ("tiny-distilbert", "tokenizer.json"),
        ("tiny-distilbert", "tokenizer_config.json"),
        ("tiny-bert", "vocab.txt"),
        ("tiny-bert", "added_tokens.json"),
        ("tiny-bert", "config.json"),
    ] {
        let variant = Variant::of(name);
        let options = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(variant.path(file));
        options.unwrap().set_len(100_000_000).unwrap();
        refused(&variant, file, "it has 100000000 bytes, and at most 67108864 are read of such a file");
    }
}

#[test]
fn oversized_tokens_are_refused_in_every_file() {
    let long = "x".repeat(200_000);
    let vocab = [Variant::of("tiny-bert").read("vocab.txt"), long.clone().into_bytes()].concat();
    refused(&Variant::of("tiny-bert").with("vocab.txt", vocab), "vocab.txt", "line 788 has 200000 bytes");
    let has = "the token that begins with \"xxxxxxxxxxxxxxxxxxxx\" has 200000 bytes, and at most 1024 are allowed";
    let json = |edit: &dyn Fn(&mut Value)| Variant::of("tiny-distilbert").with_json("tokenizer.json", edit);
    let word = json(&|json| json["model"]["vocab"][&long] = 787.into());
    refused(&word, "tokenizer.json", has);
    let added = json(&|json| json["added_tokens"].as_array_mut().unwrap().push(json!({ "id": 787, "content": long })));
    refused(&added, "tokenizer.json", has);
    let added = with_room().with("added_tokens.json", json!({ &long: 787 }).to_string());
    refused(&added, "added_tokens.json", has);
    let map = json!({ "additional_special_tokens": [&long] }).to_string();
    refused(&with_room().with("special_tokens_map.json", map), "special_tokens_map.json", has);
    let decoder = settings(with_room(), |settings| settings["added_tokens_decoder"] = json!({ "787": token(&long) }));
    refused(&decoder, CONFIG, has);
}
