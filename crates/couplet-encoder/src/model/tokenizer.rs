//! The tokenizer: text to token ids, compatible with Hugging Face's tokenizers.

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

/// The file with the settings of a tokenizer.
const SETTINGS: &str = "tokenizer_config.json";

/// The most embedding rows without a token that are normal: the number of rows is often rounded up.
const MAX_UNUSED_ROWS: usize = 256;

/// A tokenized text or pair: the input of the encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The token ids, `[T]`: `[CLS] text [SEP]` or `[CLS] text [SEP] text_pair [SEP]`.
    pub input_ids: Vec<u32>,
    /// The token types, `[T]`: 1 for the second text and its `[SEP]`, otherwise 0. All 0 if the tokenizer does not
    /// output token types.
    pub token_type_ids: Vec<u32>,
    /// True if the sequence was truncated.
    pub truncated: bool,
}

/// The tokenizer of a checkpoint. It never pads, and truncates only after [`Tokenizer::with_max_length`].
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The names of the files that it was read from.
    pub(super) files: Vec<&'static str>,
    /// The most tokens of a sequence by `tokenizer_config.json`; `usize::MAX` without a limit.
    pub model_max_length: usize,
    truncation: TruncationDirection,
    /// The mask token, such as `[MASK]`.
    pub mask_token: String,
    /// True if the tokenizer outputs token types.
    has_types: bool,
    /// After [`Tokenizer::with_max_length`], the tokenizer without truncation, and the number of tokens that
    /// `max_length` leaves for the texts of a pair.
    untruncated: Option<(Arc<tokenizers::Tokenizer>, usize)>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model and checks it against the encoder's vocabulary and token types.
    ///
    /// # Errors
    /// Returns an error if files are missing, invalid or inconsistent.
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
            (Some(bytes), _) => (json, parse_tokenizer_json(bytes)),
            (None, bytes) => (vocab, word_piece(bytes.map_or(&[], |bytes| &**bytes), &special, normalizer)),
        };
        let path = folder.path(name);
        let unreadable = |problem: String| LoadError::Unreadable { path: path.clone(), problem };
        let mut inner = inner.map_err(|e| unreadable(e.to_string()))?;
        let default = inner.get_truncation().map_or(TruncationDirection::Right, |truncation| truncation.direction);
        let truncation = match settings.get("truncation_side").map(Value::as_str) {
            None => default,
            Some(Some("right")) => TruncationDirection::Right,
            Some(Some("left")) => TruncationDirection::Left,
            Some(_) => return Err(keys.error("truncation_side", "\"left\" or \"right\"")),
        };
        inner.with_padding(None).with_truncation(None).map_err(|e| unreadable(e.to_string()))?;
        if let Some(normalizer) = overridden_normalizer(&inner, class, normalizer) {
            inner.with_normalizer(Some(normalizer)).map_err(|e| unreadable(e.to_string()))?;
        }
        special.add_to(&mut inner, class != Class::Generic)?;
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
        // A post-processor adds special tokens by id. These ids may be missing from the vocabulary.
        let added = [inner.encode_fast("", true), inner.encode_fast(("", ""), true)];
        let added = added
            .iter()
            .flatten()
            .flat_map(|encoding| encoding.get_tokens().iter().cloned().zip(encoding.get_ids().iter().copied()));
        if let Some((token, id)) = inner.get_vocab(true).into_iter().chain(added).max_by_key(|(_, id)| *id)
            && id as usize >= config.vocab_size
        {
            return Err(unreadable(format!(
                "token {token:?} has the id {id}, beyond the {} that the encoder knows (`vocab_size` of config.json)",
                config.vocab_size
            )));
        }
        if name == vocab && size + MAX_UNUSED_ROWS < config.vocab_size {
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
        // Without a limit, the key is missing or 1e30.
        let limit = ["model_max_length", "max_len"].into_iter().find_map(|key| settings.get(key));
        let model_max_length = limit.and_then(Value::as_u64).unwrap_or(u64::MAX);
        Ok(Self {
            inner,
            files,
            model_max_length: usize::try_from(model_max_length).unwrap_or(usize::MAX),
            truncation,
            mask_token: special.content("mask_token").to_owned(),
            has_types,
            untruncated: None,
        })
    }

    /// Returns a tokenizer that truncates sequences to `max_length` tokens, special tokens included. Tokens are removed
    /// from the longer text of a pair first.
    ///
    /// # Errors
    /// Returns an error if `max_length` leaves no room for the special tokens.
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
        tokenizer.untruncated = Some((Arc::new(tokenizer.inner.clone()), max_length - special));
        tokenizer.inner.with_truncation(Some(truncation)).map_err(|e| e.to_string())?;
        Ok(tokenizer)
    }

    /// Encodes a text or a pair.
    ///
    /// # Errors
    /// Returns an error if the tokenizer cannot encode the text, or if the result has no tokens.
    pub fn encode(&self, text: &str, text_pair: Option<&str>) -> Result<Encoding, String> {
        let encoded = match text_pair {
            Some(pair) => self.encode_pair(text, pair),
            None => self.inner.encode_fast(text, true).map(drop_overflow),
        };
        let (encoding, truncated) = encoded.map_err(|e| e.to_string())?;
        if encoding.is_empty() {
            return Err("it has no tokens, not even special ones".into());
        }
        let input_ids = encoding.get_ids().to_vec();
        let token_type_ids = if self.has_types { encoding.get_type_ids().to_vec() } else { vec![0; input_ids.len()] };
        Ok(Encoding { input_ids, token_type_ids, truncated })
    }

    /// Returns the number of tokens of a text or a pair before truncation, special tokens included.
    pub(crate) fn untruncated_length(&self, text: &str, text_pair: Option<&str>) -> Option<usize> {
        let tokenizer = self.untruncated.as_ref().map_or(&self.inner, |(untruncated, _)| untruncated.as_ref());
        let encoding = match text_pair {
            Some(pair) => tokenizer.encode_fast((text, pair), true),
            None => tokenizer.encode_fast(text, true),
        };
        Some(encoding.ok()?.len())
    }

    /// Encodes a pair and returns true if it was truncated.
    ///
    /// Each text is encoded separately: `tokenizers` keeps the truncated parts, and would create a pair of each part of
    /// one text with each part of the other, which are millions for two long texts.
    fn encode_pair(&self, text: &str, pair: &str) -> tokenizers::Result<(tokenizers::Encoding, bool)> {
        let (Some((untruncated, room)), Some(truncation)) = (&self.untruncated, self.inner.get_truncation()) else {
            return self.inner.encode_fast((text, pair), true).map(drop_overflow);
        };
        let encode = |tokenizer: &tokenizers::Tokenizer, text| tokenizer.encode_fast(text, false).map(drop_overflow);
        let ((mut first, first_truncated), (mut second, second_truncated)) =
            (encode(&self.inner, text)?, encode(&self.inner, pair)?);
        let truncated = first_truncated || second_truncated || first.len() + second.len() > *room;
        // Texts are encoded up to `max_length` tokens. If both are longer, it is unknown which one is the longest and
        // gets the odd token. In that case, both are encoded without truncation.
        let longest = first.len().max(second.len());
        if longest >= truncation.max_length && room % 2 == 1 && first.len().min(second.len()) > room / 2 {
            ((first, _), (second, _)) = (encode(untruncated, text)?, encode(untruncated, pair)?);
        }
        let truncation = TruncationParams { max_length: *room, ..truncation.clone() };
        let (mut first, mut second) = truncate_encodings(first, Some(second), &truncation)?;
        std::iter::once(&mut first).chain(&mut second).for_each(|encoding| drop(encoding.take_overflowing()));
        Ok((untruncated.post_process(first, second, true)?, truncated))
    }

    /// Returns the underlying tokenizer, which truncates only after [`Tokenizer::with_max_length`].
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Returns the number of tokens in the vocabulary, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Drops the truncated parts of an encoding and returns true if there were any.
fn drop_overflow(mut encoding: tokenizers::Encoding) -> (tokenizers::Encoding, bool) {
    let truncated = !encoding.take_overflowing().is_empty();
    (encoding, truncated)
}

/// The class of a tokenizer in `transformers`, which determines how its files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// BERT's WordPiece, with token types.
    Bert,
    /// BERT's WordPiece, without token types.
    DistilBert,
    /// `tokenizer.json` unchanged, without token types unless its settings enable them.
    Generic,
}

impl Class {
    /// Reads the class from `tokenizer_config.json` or `config.json`. The default is BERT's.
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
            "PreTrainedTokenizer" | "TokenizersBackend" if files.get("tokenizer.json").is_some() => Ok(Self::Generic),
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

/// Returns true if the tokenizer outputs token types, by `model_input_names` or else by its class.
fn has_token_types(keys: &Keys, class: Class) -> bool {
    match keys.json.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => class == Class::Bert,
    }
}

/// Returns an error if the encoder has no embedding for a token type of a pair.
fn check_token_types(
    files: &ModelFiles,
    tokenizer: &tokenizers::Tokenizer,
    has_types: bool,
    config: &ModelConfig,
) -> Result<(), LoadError> {
    // DistilBERT has no token types.
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

/// Returns the normalizer with which `transformers` replaces the one in `tokenizer.json`, if any.
///
/// The BERT tokenizers of `transformers` use `tokenizer_config.json`, and their own defaults for missing keys.
fn overridden_normalizer(
    tokenizer: &tokenizers::Tokenizer,
    class: Class,
    mut configured: BertNormalizer,
) -> Option<BertNormalizer> {
    let Some(NormalizerWrapper::BertNormalizer(original)) = tokenizer.get_normalizer() else { return None };
    if class == Class::Generic {
        return None;
    }
    configured.clean_text = original.clean_text;
    Some(configured)
}

/// Returns BERT's normalizer with the settings of `tokenizer_config.json`.
fn bert_normalizer(settings: &Keys) -> Result<BertNormalizer, LoadError> {
    Ok(BertNormalizer::new(
        true,
        settings.flag("tokenize_chinese_chars")?.unwrap_or(true),
        settings.flag("strip_accents")?,
        settings.flag("do_lower_case")?.unwrap_or(true),
    ))
}

/// Parses a `tokenizer.json`, after checking its limits.
fn parse_tokenizer_json(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    // The JSON is parsed first, because the library panics if it is invalid inside the decoder (decoders/mod.rs,
    // `expect("Helper")`).
    limits::check(&serde_json::from_slice(bytes)?)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.get_post_processor().map_or(Ok(()), check_templates)?;
    Ok(tokenizer)
}

/// Returns an error if a template refers to a missing token or text. The library does not check this, and panics at the
/// first text (processors/template.rs, `apply_template`).
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
    // The pieces of a template are private and accessible only as JSON.
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

/// Creates BERT's WordPiece tokenizer from a `vocab.txt` with one token per line.
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

/// Returns the template that adds BERT's special tokens to a text or a pair.
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
