//! The tokens that a tokenizer's settings add to its vocabulary, with the same ids as in `transformers`.
//!
//! `added_tokens_decoder` in `tokenizer_config.json` lists all of them. Older checkpoints without it have
//! `special_tokens_map.json` and `added_tokens.json`. In addition, `tokenizer.json` can contain added tokens.
//!
//! **Source**: transformers 5.24, `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::config::{Keys, read_json};
use super::error::LoadError;
use super::files::ModelFiles;
use super::limits;

const DECODER: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
/// The key of [`EXTRA`] before transformers 5.
const ADDITIONAL: &str = "additional_special_tokens";

/// The keys of the standard special tokens in the order of their addition, with the defaults of BERT's tokenizer.
const NAMED: [(&str, Option<&str>); 7] = [
    ("bos_token", None),
    ("eos_token", None),
    ("unk_token", Some("[UNK]")),
    ("sep_token", Some("[SEP]")),
    ("pad_token", Some("[PAD]")),
    ("cls_token", Some("[CLS]")),
    ("mask_token", Some("[MASK]")),
];

/// The added and special tokens in a tokenizer's settings.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// The standard special tokens by their keys.
    named: Vec<(String, AddedToken)>,
    /// The special tokens without a standard key.
    extra: Vec<AddedToken>,
    /// The added tokens by their ids.
    added: BTreeMap<u32, AddedToken>,
    /// The file that lists the added tokens.
    added_in: PathBuf,
    /// The names of the files that were read in addition to `tokenizer_config.json`.
    pub(super) files: Vec<&'static str>,
}

impl SpecialTokens {
    /// Reads the tokens from the parsed `tokenizer_config.json` and from the files of older checkpoints.
    pub(super) fn read(folder: &ModelFiles, keys: &Keys) -> Result<Self, LoadError> {
        let check = |path: &Path, checked: Result<(), String>| {
            checked.map_err(|problem| LoadError::Unreadable { path: path.to_owned(), problem })
        };
        check(keys.path, limits::check_settings(keys.json))?;
        let mut settings = keys.json.as_object().cloned().unwrap_or_default();
        let mut files = Vec::new();
        if !is_non_empty(&settings, EXTRA)
            && let Some(additional) = settings.remove(ADDITIONAL)
        {
            settings.insert(EXTRA.into(), additional);
        }
        let mut added = BTreeMap::new();
        let mut added_in = keys.path.to_owned();
        if let Some(decoder) = settings.get(DECODER).filter(|decoder| !decoder.is_null()) {
            for (id, token) in entries(keys, DECODER, decoder)? {
                let entry = id.parse().ok().zip(added_token(token, false));
                let (id, token) = entry.ok_or_else(|| keys.error(DECODER, "an object from ids to tokens"))?;
                added.insert(id, token);
            }
        } else {
            let name = "special_tokens_map.json";
            if folder.get(name).is_some() {
                let json = read_json(folder, name)?;
                check(&folder.path(name), limits::check_settings(&json))?;
                settings.extend(json.as_object().cloned().unwrap_or_default());
                files.push(name);
            }
            let name = "added_tokens.json";
            if folder.get(name).is_some() {
                let json = read_json(folder, name)?;
                let path = folder.path(name);
                let tokens = json.as_object().into_iter().flatten().map(|(token, _)| token.as_str());
                check(&path, limits::check_added(tokens))?;
                let named = named_tokens(keys, &settings)?;
                let extra = extra_tokens(keys, &settings)?;
                for (token, id) in json.as_object().into_iter().flatten() {
                    let known = named.iter().map(|(_, token)| token).chain(&extra);
                    let special = known.into_iter().any(|known| known.content == *token);
                    let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    let Some(id) = number.filter(|_| !token.is_empty()) else {
                        return Err(Keys { path: &path, json: &json }.error(token, "the id of the token"));
                    };
                    added.insert(id, AddedToken::from(token.as_str(), special));
                }
                added_in = path;
                files.push(name);
            }
        }
        if !settings.contains_key(EXTRA)
            && let Some(additional) = settings.remove(ADDITIONAL)
        {
            settings.insert(EXTRA.into(), additional);
        }
        let mut named = named_tokens(keys, &settings)?;
        for (_, token) in &mut named {
            if let Some(listed) = added.values().find(|listed| listed.content == token.content) {
                *token = listed.clone();
            }
        }
        let (named, custom): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(key, _)| NAMED.iter().any(|(name, _)| name == key));
        let custom = custom.into_iter().map(|(_, token)| AddedToken { special: true, ..token });
        let extra = custom.chain(extra_tokens(keys, &settings)?).collect();
        Ok(Self { named, extra, added, added_in, files })
    }

    /// Returns the text of a standard special token. The default is that of BERT's tokenizer.
    pub(super) fn content(&self, name: &str) -> &str {
        let named = self.named.iter().find(|(key, _)| key == name).map(|(_, token)| token.content.as_str());
        let default = || NAMED.iter().find(|(key, _)| *key == name).and_then(|(_, default)| *default);
        named.or_else(default).unwrap_or_default()
    }

    /// Returns the first special token of BERT that is missing in both the vocabulary and the settings.
    pub(super) fn missing<'s>(&'s self, tokenizer: &Tokenizer) -> Option<&'s str> {
        let is_known = |content: &str| {
            tokenizer.token_to_id(content).is_some() || self.added.values().any(|token| token.content == content)
        };
        ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
            .into_iter()
            .map(|name| self.content(name))
            .find(|content| !is_known(content))
    }

    /// Adds the tokens that the tokenizer does not have yet, and BERT's default tokens if `defaults` is true.
    pub(super) fn add_to(&self, tokenizer: &mut Tokenizer, defaults: bool) -> Result<(), LoadError> {
        let existing: HashMap<String, AddedToken> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| (token.content.clone(), token)).collect();
        let mut named: Vec<AddedToken> = self.named.iter().map(|(_, token)| token.clone()).collect();
        if defaults {
            let unnamed = NAMED.iter().filter(|(name, _)| !self.named.iter().any(|(key, _)| key == name));
            named.extend(unnamed.filter_map(|(_, default)| Some(AddedToken::from((*default)?, true))));
        }
        let mut added: Vec<AddedToken> =
            self.added.values().filter(|token| existing.get(&token.content) != Some(*token)).cloned().collect();
        for token in &mut added {
            token.special |= named.iter().any(|named| named.content == token.content);
        }
        let specials = named.into_iter().map(|token| AddedToken { special: true, ..token });
        // A special token without an embedding, such as a mask token in a classifier, is treated as ordinary text.
        let specials = specials.filter(|token| tokenizer.token_to_id(&token.content).is_some());
        for token in specials.chain(self.extra.iter().cloned()) {
            if !existing.contains_key(&token.content) && !added.iter().any(|added| added.content == token.content) {
                added.push(token);
            }
        }
        let unreadable = |problem: String| LoadError::Unreadable { path: self.added_in.clone(), problem };
        tokenizer.add_tokens(added).map_err(|e| unreadable(e.to_string()))?;
        for (id, token) in &self.added {
            if let Some(actual) = tokenizer.token_to_id(&token.content).filter(|actual| actual != id) {
                return Err(unreadable(format!(
                    "token {:?} has the id {id} there, but {actual} after the tokens of the vocabulary; save the \
                     tokenizer with `save_pretrained` of transformers",
                    token.content
                )));
            }
        }
        Ok(())
    }
}

/// Returns true if the key has a non-empty list or object.
fn is_non_empty(settings: &Map<String, Value>, key: &str) -> bool {
    match settings.get(key) {
        Some(Value::Array(tokens)) => !tokens.is_empty(),
        Some(Value::Object(tokens)) => !tokens.is_empty(),
        _ => false,
    }
}

/// Returns the special tokens that have a key: the standard ones, then the others.
fn named_tokens(keys: &Keys, settings: &Map<String, Value>) -> Result<Vec<(String, AddedToken)>, LoadError> {
    let mut named = Vec::new();
    for (name, _) in NAMED {
        if let Some(value) = settings.get(name).filter(|value| !value.is_null()) {
            let token = added_token(value, true);
            let token = token.ok_or_else(|| keys.error(name, "a token: a text, or an object with `content`"))?;
            named.push((name.to_owned(), token));
        }
    }
    let custom = settings.iter().filter(|(key, value)| {
        let is_standard = NAMED.iter().any(|(name, _)| name == key);
        key.ends_with("_token") && !is_standard && (value.is_string() || value["__type"] == "AddedToken")
    });
    let extra = settings.get(EXTRA).and_then(Value::as_object);
    for (name, value) in custom.chain(extra.into_iter().flatten()) {
        named.extend(added_token(value, true).map(|token| (name.clone(), token)));
    }
    Ok(named)
}

/// Returns the special tokens of a list without keys.
fn extra_tokens(keys: &Keys, settings: &Map<String, Value>) -> Result<Vec<AddedToken>, LoadError> {
    let Some(Value::Array(tokens)) = settings.get(EXTRA) else { return Ok(Vec::new()) };
    let tokens: Option<Vec<AddedToken>> = tokens.iter().map(|token| added_token(token, true)).collect();
    tokens.ok_or_else(|| keys.error(EXTRA, "a list of tokens"))
}

/// Returns the entries of an object, or an error that names the key.
fn entries<'j>(
    keys: &Keys,
    key: &str,
    value: &'j Value,
) -> Result<impl Iterator<Item = (&'j String, &'j Value)>, LoadError> {
    value.as_object().map(|map| map.iter()).ok_or_else(|| keys.error(key, "an object from ids to tokens"))
}

/// Parses a token: a string, or an object with `content`. Returns `None` if the text is missing or empty.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, special)).filter(|_| !content.is_empty());
    }
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let content = value.get("content")?.as_str().filter(|content| !content.is_empty())?;
    let token = AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}
