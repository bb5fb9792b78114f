//! Text to token ids, as Hugging Face's tokenizers do it.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::{Template, TemplateProcessing};
use tokenizers::{
    PostProcessor, PostProcessorWrapper, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::config::{Keys, ModelConfig, read_json};
use super::error::LoadError;
use super::files::ModelFiles;
use super::limits;
use super::special_tokens::SpecialTokens;

/// The settings of a tokenizer.
const SETTINGS: &str = "tokenizer_config.json";

/// Rows that an encoder may have more than its tokenizer has tokens: embeddings are padded to round numbers.
const MOST_UNUSED: usize = 256;

/// A sequence as the encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// `[CLS] text [SEP]` or `[CLS] text [SEP] text_pair [SEP]`.
    pub input_ids: Vec<u32>,
    /// 1 for the second text and its `[SEP]`; 0 everywhere where the tokenizer gives a model no token types.
    pub token_type_ids: Vec<u32>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

/// A checkpoint's tokenizer, without truncation and padding until [`Tokenizer::with_max_length`].
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The names of the files it was read from.
    pub(super) files: Vec<&'static str>,
    /// The longest sequence that `tokenizer_config.json` allows, in tokens.
    pub model_max_length: usize,
    truncation: TruncationDirection,
    /// The token that stands for a hidden word.
    pub mask_token: String,
    /// Whether the model is given the token types.
    has_types: bool,
    /// The tokenizer before [`Tokenizer::with_max_length`], and the tokens that `max_length` leaves for a pair's texts.
    uncut: Option<(Arc<tokenizers::Tokenizer>, usize)>,
}

impl Tokenizer {
    /// Reads a folder's tokenizer, which may know no token that the encoder does not.
    ///
    /// # Errors
    /// Files that are missing, unreadable or inconsistent.
    pub fn load(folder: &ModelFiles, config: &ModelConfig) -> Result<Self, LoadError> {
        let mut files = Vec::new();
        let settings = if folder.get(SETTINGS).is_some() {
            files.push(SETTINGS);
            read_json(folder, SETTINGS)?
        } else {
            Value::Null
        };
        let settings_path = folder.path(SETTINGS);
        let keys = Keys { path: &settings_path, json: &settings };
        let (json, vocab) = ("tokenizer.json", "vocab.txt");
        if folder.get(json).is_none() && folder.get(vocab).is_none() {
            let folder = folder.folder().to_owned();
            return Err(LoadError::NoFile { folder, expected: "tokenizer.json and no vocab.txt" });
        }
        let class = Class::of(folder, &keys, config)?;
        let normalizer = bert_normalizer(&keys)?;
        let special = SpecialTokens::read(folder, &keys)?;
        files.extend(special.files.iter().copied());
        let (name, inner) = match (folder.get(json), folder.get(vocab)) {
            (Some(bytes), _) => (json, tokenizer_of(bytes)),
            (None, bytes) => (vocab, word_piece(bytes.map_or(&[], |bytes| &**bytes), &special, normalizer)),
        };
        let path = folder.path(name);
        let unreadable = |problem: String| LoadError::Unreadable { path: path.clone(), problem };
        let mut inner = inner.map_err(|e| unreadable(e.to_string()))?;
        let written = inner.get_truncation().map_or(TruncationDirection::Right, |truncation| truncation.direction);
        let truncation = match settings.get("truncation_side").map(Value::as_str) {
            None => written,
            Some(Some("right")) => TruncationDirection::Right,
            Some(Some("left")) => TruncationDirection::Left,
            Some(_) => return Err(keys.error("truncation_side", "\"left\" or \"right\"")),
        };
        inner.with_padding(None).with_truncation(None).map_err(|e| unreadable(e.to_string()))?;
        if let Some(normalizer) = overridden_normalizer(&inner, class, normalizer) {
            inner.with_normalizer(Some(normalizer)).map_err(|e| unreadable(e.to_string()))?;
        }
        special.add_to(&mut inner, class != Class::AsWritten)?;
        if name == vocab {
            let template = template(&inner, &special).map_err(|e| unreadable(e.to_string()))?;
            inner.with_post_processor(Some(template));
        }
        inner.set_encode_special_tokens(keys.flag("split_special_tokens")?.unwrap_or(false));
        let size = inner.get_vocab_size(true);
        if size > config.vocab_size {
            return Err(unreadable(format!(
                "it knows {size} tokens, the encoder only {} (`vocab_size` of config.json)",
                config.vocab_size
            )));
        }
        // A post-processor puts special tokens by their ids, which need not be in the vocabulary.
        let framed = [inner.encode_fast("", true), inner.encode_fast(("", ""), true)];
        let framed = framed
            .iter()
            .flatten()
            .flat_map(|encoding| encoding.get_tokens().iter().cloned().zip(encoding.get_ids().iter().copied()));
        if let Some((token, id)) = inner.get_vocab(true).into_iter().chain(framed).max_by_key(|(_, id)| *id)
            && id as usize >= config.vocab_size
        {
            return Err(unreadable(format!(
                "token {token:?} has the id {id}, beyond the {} that the encoder knows (`vocab_size` of config.json)",
                config.vocab_size
            )));
        }
        if name == vocab && size + MOST_UNUSED < config.vocab_size {
            tracing::warn!(
                "{}: it has {size} tokens and the encoder knows {} (`vocab_size` of config.json): words that are not in it \
                 are read as unknown; was it cut off, or is it another model's?",
                path.display(),
                config.vocab_size
            );
        }
        let has_types = has_token_types(&keys, class);
        check_token_types(folder, &inner, has_types, config)?;
        files.push(name);
        // Absent, or 1e30 where there is no limit.
        let limit = ["model_max_length", "max_len"].into_iter().find_map(|key| settings.get(key));
        let model_max_length = limit.and_then(Value::as_u64).unwrap_or(u64::MAX);
        Ok(Self {
            inner,
            files,
            model_max_length: usize::try_from(model_max_length).unwrap_or(usize::MAX),
            truncation,
            mask_token: special.content("mask_token").to_owned(),
            has_types,
            uncut: None,
        })
    }

    /// Cuts sequences to `max_length` tokens, special tokens included, always from the longer text.
    ///
    /// # Errors
    /// A length that leaves no room for the special tokens.
    pub fn with_max_length(&self, max_length: usize) -> Result<Self, String> {
        let special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(true));
        if max_length < special.max(1) {
            return Err(format!("it leaves no room for the {special} special tokens of a pair"));
        }
        let mut tokenizer = self.clone();
        let truncation = TruncationParams {
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: self.truncation,
        };
        tokenizer.uncut = Some((Arc::new(tokenizer.inner.clone()), max_length - special));
        tokenizer.inner.with_truncation(Some(truncation)).map_err(|e| e.to_string())?;
        Ok(tokenizer)
    }

    /// Encodes a text or a pair.
    ///
    /// # Errors
    /// A text that the tokenizer's rules cannot encode.
    pub fn encode(&self, text: &str, text_pair: Option<&str>) -> Result<Encoding, String> {
        let encoded = match text_pair {
            Some(pair) => self.encode_pair(text, pair),
            None => self.inner.encode_fast(text, true).map(cut_short),
        };
        let (encoding, truncated) = encoded.map_err(|e| e.to_string())?;
        if encoding.is_empty() {
            return Err("it has no tokens, not even special ones".into());
        }
        let input_ids = encoding.get_ids().to_vec();
        let token_type_ids = if self.has_types { encoding.get_type_ids().to_vec() } else { vec![0; input_ids.len()] };
        Ok(Encoding { input_ids, token_type_ids, truncated })
    }

    /// The tokens of a text or a pair before anything is cut off, special tokens included.
    pub(crate) fn uncut_length(&self, text: &str, text_pair: Option<&str>) -> Option<usize> {
        let tokenizer = self.uncut.as_ref().map_or(&self.inner, |(uncut, _)| uncut.as_ref());
        let encoding = match text_pair {
            Some(pair) => tokenizer.encode_fast((text, pair), true),
            None => tokenizer.encode_fast(text, true),
        };
        Some(encoding.ok()?.len())
    }

    /// Encodes a pair, and tells whether tokens were cut off.
    ///
    /// Each text is read by itself: `tokenizers` keeps what it cuts off, and would make a pair of each piece of the one
    /// text and each of the other; of two long texts, millions.
    fn encode_pair(&self, text: &str, pair: &str) -> tokenizers::Result<(tokenizers::Encoding, bool)> {
        let (Some((uncut, room)), Some(truncation)) = (&self.uncut, self.inner.get_truncation()) else {
            return self.inner.encode_fast((text, pair), true).map(cut_short);
        };
        let read = |tokenizer: &tokenizers::Tokenizer, text| tokenizer.encode_fast(text, false).map(cut_short);
        let ((mut first, first_cut), (mut second, second_cut)) = (read(&self.inner, text)?, read(&self.inner, pair)?);
        let truncated = first_cut || second_cut || first.len() + second.len() > *room;
        // A text is read up to `max_length` tokens. Which of two such texts was the longer one, and so which gets the odd
        // token, can then no longer be told: both are read to their ends.
        let longest = first.len().max(second.len());
        if longest >= truncation.max_length && room % 2 == 1 && first.len().min(second.len()) > room / 2 {
            ((first, _), (second, _)) = (read(uncut, text)?, read(uncut, pair)?);
        }
        let truncation = TruncationParams { max_length: *room, ..truncation.clone() };
        let (mut first, mut second) = truncate_encodings(first, Some(second), &truncation)?;
        std::iter::once(&mut first).chain(&mut second).for_each(|encoding| drop(encoding.take_overflowing()));
        Ok((uncut.post_process(first, second, true)?, truncated))
    }

    /// The tokenizer itself, without truncation unless [`Tokenizer::with_max_length`] made it.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Word pieces that the tokenizer knows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// An encoding without what was cut off it, and whether anything was.
fn cut_short(mut encoding: tokenizers::Encoding) -> (tokenizers::Encoding, bool) {
    let truncated = !encoding.take_overflowing().is_empty();
    (encoding, truncated)
}

/// What `transformers` makes of the files of a tokenizer, by its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// BERT's WordPiece, with token types.
    Bert,
    /// BERT's WordPiece, without token types.
    DistilBert,
    /// `tokenizer.json` as it is, without token types unless its settings ask for them.
    AsWritten,
}

impl Class {
    /// The class by `tokenizer_config.json`, else by `config.json`, else BERT's.
    fn of(files: &ModelFiles, keys: &Keys, config: &ModelConfig) -> Result<Self, LoadError> {
        let in_settings = keys.json.get("tokenizer_class").and_then(Value::as_str);
        let (path, name) = match (in_settings, &config.tokenizer_class) {
            (Some(name), _) => (keys.path.to_owned(), name),
            (None, Some(name)) => (files.path(files.config()), name.as_str()),
            (None, None) => return Ok(Self::Bert),
        };
        match name.strip_suffix("Fast").unwrap_or(name) {
            "BertTokenizer" => Ok(Self::Bert),
            "DistilBertTokenizer" => Ok(Self::DistilBert),
            "PreTrainedTokenizer" | "TokenizersBackend" if files.get("tokenizer.json").is_some() => Ok(Self::AsWritten),
            _ => Err(LoadError::Key {
                path,
                key: "tokenizer_class".into(),
                expected: "\"BertTokenizer\", \"DistilBertTokenizer\", or \"PreTrainedTokenizerFast\" with a \
                           tokenizer.json that gives the right ids by itself"
                    .into(),
                found: format!("{name:?}"),
            }),
        }
    }
}

/// Whether `transformers` gives a model the token types: where `model_input_names` has them, else where the class has.
fn has_token_types(keys: &Keys, class: Class) -> bool {
    match keys.json.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => class == Class::Bert,
    }
}

/// Makes sure that the encoder knows the token types of a pair.
fn check_token_types(
    files: &ModelFiles,
    tokenizer: &tokenizers::Tokenizer,
    has_types: bool,
    config: &ModelConfig,
) -> Result<(), LoadError> {
    // DistilBERT reads none.
    if !has_types || config.type_vocab_size == 0 {
        return Ok(());
    }
    let Ok(pair) = tokenizer.encode_fast(("a", "a"), true) else { return Ok(()) };
    match pair.get_type_ids().iter().max() {
        Some(&most) if most as usize >= config.type_vocab_size => Err(LoadError::Key {
            path: files.path(files.config()),
            key: "type_vocab_size".into(),
            expected: format!(
                "{} or more, as the tokenizer gives a pair the token types 0 to {most}; a model without token types has a \
                 `model_input_names` without \"token_type_ids\" in tokenizer_config.json",
                most + 1
            ),
            found: config.type_vocab_size.to_string(),
        }),
        _ => Ok(()),
    }
}

/// The normalizer that `transformers` puts in the place of the one in `tokenizer.json`.
///
/// Its BERT tokenizers go by `tokenizer_config.json`, and by their own defaults where it is silent.
fn overridden_normalizer(
    tokenizer: &tokenizers::Tokenizer,
    class: Class,
    mut configured: BertNormalizer,
) -> Option<BertNormalizer> {
    let Some(NormalizerWrapper::BertNormalizer(written)) = tokenizer.get_normalizer() else { return None };
    if class == Class::AsWritten {
        return None;
    }
    configured.clean_text = written.clean_text;
    Some(configured)
}

fn bert_normalizer(settings: &Keys) -> Result<BertNormalizer, LoadError> {
    Ok(BertNormalizer::new(
        true,
        settings.flag("tokenize_chinese_chars")?.unwrap_or(true),
        settings.flag("strip_accents")?,
        settings.flag("do_lower_case")?.unwrap_or(true),
    ))
}

/// Reads a `tokenizer.json`.
fn tokenizer_of(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    // The library panics where the JSON breaks inside the decoder (decoders/mod.rs, `expect("Helper")`).
    limits::check(&serde_json::from_slice(bytes)?)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.get_post_processor().map_or(Ok(()), check_templates)?;
    Ok(tokenizer)
}

/// Makes sure that templates use what there is: the library looks no further when it reads them, and panics at the first
/// text (processors/template.rs, `apply_template`).
fn check_templates(processor: &PostProcessorWrapper) -> tokenizers::Result<()> {
    match processor {
        PostProcessorWrapper::Sequence(processors) => processors.as_ref().iter().try_for_each(check_templates),
        PostProcessorWrapper::Template(templates) => {
            check_template("single", &templates.single, templates)?;
            check_template("pair", templates.get_pair(), templates)
        }
        _ => Ok(()),
    }
}

fn check_template(name: &str, template: &Template, templates: &TemplateProcessing) -> tokenizers::Result<()> {
    // Pieces are private to the library but for their JSON.
    let pieces = serde_json::to_value(template)?;
    for piece in pieces.as_array().into_iter().flatten() {
        if let Some(token) = piece["SpecialToken"]["id"].as_str()
            && !templates.get_special_tokens().0.contains_key(token)
        {
            return Err(format!(
                "`post_processor`: the template `{name}` puts the token {token:?}, which `special_tokens` does not have"
            )
            .into());
        }
        if name == "single" && piece["Sequence"]["id"] == "B" {
            return Err("`post_processor`: the template `single` puts a second text, where there is one only".into());
        }
    }
    Ok(())
}

/// BERT's WordPiece tokenizer from a `vocab.txt`, one piece a line.
fn word_piece(
    vocab: &[u8],
    special: &SpecialTokens,
    normalizer: BertNormalizer,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    limits::check_vocabulary(vocab)?;
    let model = WordPiece::builder()
        .vocab(WordPiece::read_bytes(vocab)?)
        .unk_token(special.content("unk_token").to_owned())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if let Some(token) = special.missing(&tokenizer) {
        return Err(format!("the vocabulary has no special token {token}").into());
    }
    tokenizer.with_normalizer(Some(normalizer))?.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(tokenizer)
}

/// What BERT puts around a text or a pair.
fn template(tokenizer: &tokenizers::Tokenizer, special: &SpecialTokens) -> tokenizers::Result<TemplateProcessing> {
    let (cls, sep) = (special.content("cls_token"), special.content("sep_token"));
    let id = |token: &str| tokenizer.token_to_id(token).expect("it is in the vocabulary, or was added");
    let template = TemplateProcessing::builder()
        .try_single(format!("{cls}:0 $A:0 {sep}:0"))?
        .try_pair(format!("{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"))?
        .special_tokens(vec![(cls, id(cls)), (sep, id(sep))])
        .build()?;
    Ok(template)
}
