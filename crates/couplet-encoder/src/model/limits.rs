//! Limits of a tokenizer's settings: a small file can cause unbounded use of time and memory.
//!
//! | Setting | Reason for the limit |
//! |---|---|
//! | bytes of a token, and of all added tokens | the automaton for added tokens needs many bytes per byte of a token |
//! | `max_input_chars_per_word` | the time of WordPiece grows with its third power |
//! | growth of a text by the normalizer | forty replacements of `a` by `aa` turn one byte into a terabyte |

use serde_json::Value;

/// The most bytes of a token. The longest tokens of real vocabularies are below 300 bytes.
const MAX_TOKEN_BYTES: usize = 1024;

/// The most bytes of all added tokens together.
const MAX_ADDED_BYTES: usize = 1 << 20;

/// The largest `max_input_chars_per_word`, in characters. BERT's is 100.
const MAX_WORD_CHARS: u64 = 1000;

/// The most bytes that the normalizer may produce per byte. The compatibility forms of Unicode produce up to 11.
const MAX_GROWTH: f64 = 256.0;

/// Returns an error if a `tokenizer.json` exceeds a limit.
pub(super) fn check(json: &Value) -> Result<(), String> {
    check_added(json["added_tokens"].as_array().into_iter().flatten().filter_map(content))?;
    match &json["model"]["vocab"] {
        Value::Object(vocab) => vocab.keys().try_for_each(|token| check_token(token))?,
        Value::Array(vocab) => vocab.iter().filter_map(|entry| entry[0].as_str()).try_for_each(check_token)?,
        _ => {}
    }
    if let Some(chars) = json["model"]["max_input_chars_per_word"].as_u64().filter(|chars| *chars > MAX_WORD_CHARS) {
        return Err(format!("`model.max_input_chars_per_word` is {chars}, and at most {MAX_WORD_CHARS} are allowed"));
    }
    let growth = growth(&json["normalizer"]);
    if growth > MAX_GROWTH {
        return Err(format!(
            "its `normalizer` may make a text {growth:.0} times as long, and {MAX_GROWTH} times is the most"
        ));
    }
    Ok(())
}

/// Returns an error if the tokens in a `tokenizer_config.json` or `special_tokens_map.json` exceed a limit.
pub(super) fn check_settings(json: &Value) -> Result<(), String> {
    let named = json.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
    let listed = ["added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"];
    let listed = listed.into_iter().flat_map(|key| {
        let (list, map) = (json[key].as_array(), json[key].as_object());
        list.into_iter().flatten().chain(map.into_iter().flat_map(serde_json::Map::values))
    });
    check_added(named.map(|(_, token)| token).chain(listed).filter_map(content))
}

/// Returns an error if added tokens exceed a limit.
pub(super) fn check_added<'t>(tokens: impl IntoIterator<Item = &'t str>) -> Result<(), String> {
    let mut bytes = 0;
    for token in tokens {
        check_token(token)?;
        bytes += token.len();
    }
    if bytes > MAX_ADDED_BYTES {
        return Err(format!("its added tokens have {bytes} bytes, and at most {MAX_ADDED_BYTES} are read"));
    }
    Ok(())
}

/// Returns the text of a token, which is a string or an object with `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// Returns an error if a token in a `vocab.txt` exceeds the limit.
pub(super) fn check_vocabulary(text: &[u8]) -> Result<(), String> {
    match text.split(|byte| *byte == b'\n').enumerate().find(|(_, line)| line.len() > MAX_TOKEN_BYTES) {
        Some((line, token)) => {
            Err(format!("line {} has {} bytes, and a token at most {MAX_TOKEN_BYTES}", line + 1, token.len()))
        }
        None => Ok(()),
    }
}

fn check_token(token: &str) -> Result<(), String> {
    if token.len() <= MAX_TOKEN_BYTES {
        return Ok(());
    }
    let start: String = token.chars().take(20).collect();
    Err(format!(
        "the token that begins with {start:?} has {} bytes, and at most {MAX_TOKEN_BYTES} are allowed",
        token.len()
    ))
}

/// Returns the most bytes that a normalizer can produce per byte. Unicode normalization forms are ignored, because
/// repeating them adds nothing.
fn growth(normalizer: &Value) -> f64 {
    let bytes = |text: &Value| text.as_str().map_or(0, str::len) as f64;
    if let Some(all) = normalizer["normalizers"].as_array() {
        return all.iter().map(growth).product();
    }
    if let Some(map) = normalizer["precompiled_charsmap"].as_str() {
        return longest_output(map) as f64;
    }
    match normalizer["type"].as_str() {
        Some("Replace") => match &normalizer["pattern"]["String"] {
            // A regular expression can match the empty string before each character.
            Value::Null => 1.0 + bytes(&normalizer["content"]),
            pattern => (bytes(&normalizer["content"]) / bytes(pattern).max(1.0)).max(1.0),
        },
        Some("Prepend") => 1.0 + bytes(&normalizer["prepend"]),
        Some("ByteLevel") => 2.0,
        _ => 1.0,
    }
}

/// Returns the longest replacement in a precompiled character map of sentencepiece, in bytes.
///
/// **Source**: `normalizer.cc` of sentencepiece. The map is base64: the length of a trie, the trie, and the
/// replacements, each terminated by a zero byte.
fn longest_output(map: &str) -> usize {
    let mut bytes = Vec::with_capacity(map.len() / 4 * 3);
    let (mut value, mut bits) = (0_u32, 0);
    for digit in map.bytes().filter_map(base64_digit) {
        value = value << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
        }
    }
    let trie = bytes.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    let texts = bytes.get(4..).and_then(|rest| rest.get(trie..)).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or_default().max(1)
}

fn base64_digit(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn real_tokenizers_are_within_the_limits() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/goldens/tiny-distilbert");
        let json: Value = serde_json::from_slice(&std::fs::read(path.join("tokenizer.json")).unwrap()).unwrap();
        check(&json).unwrap();
        // The normalizer of XLM-R, used by multilingual sentence encoders.
        check(&json!({ "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFKC" },
            { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ]}}))
        .unwrap();
    }

    #[test]
    fn rejects_settings_that_exhaust_memory() {
        let replace = |content: &str| json!({ "type": "Replace", "pattern": { "String": "a" }, "content": content });
        let doubling: Vec<Value> = (0..40).map(|_| replace("aa")).collect();
        for (json, part) in [
            (json!({ "normalizer": { "type": "Sequence", "normalizers": doubling } }), "1099511627776 times"),
            (json!({ "normalizer": replace(&"a".repeat(1000)) }), "1000 times"),
            (
                json!({ "normalizer": { "type": "Replace", "pattern": { "Regex": "" }, "content": "b".repeat(300) } }),
                "301 times",
            ),
            (json!({ "added_tokens": [{ "content": "x".repeat(200_000) }] }), "has 200000 bytes"),
            (json!({ "added_tokens": vec![json!({ "content": "x".repeat(1000) }); 2000] }), "2000000 bytes"),
            (json!({ "model": { "vocab": { "y".repeat(2000): 1 } } }), "has 2000 bytes"),
            (json!({ "model": { "vocab": [["y".repeat(2000), 0.5]] } }), "has 2000 bytes"),
            (json!({ "model": { "max_input_chars_per_word": 1_000_000 } }), "is 1000000"),
        ] {
            let problem = check(&json).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
        let long = "x".repeat(200_000);
        for settings in [
            json!({ "added_tokens_decoder": { "787": { "content": long } } }),
            json!({ "extra_special_tokens": [long] }),
            json!({ "additional_special_tokens": [{ "content": long }] }),
            json!({ "extra_special_tokens": { "begin": long } }),
            json!({ "begin_token": long }),
        ] {
            assert!(check_settings(&settings).unwrap_err().contains("has 200000 bytes"), "{settings}");
        }
        // Other settings may be long.
        check_settings(&json!({ "chat_template": long, "pad_token": null })).unwrap();
        assert!(
            check_vocabulary(&[b"[UNK]\n".as_slice(), &vec![b'x'; 200_000]].concat()).unwrap_err().contains("line 2")
        );
        check_vocabulary(b"[UNK]\nword\n").unwrap();
    }

    #[test]
    fn measures_the_replacements_of_a_character_map() {
        // A trie of four bytes, then "ab", "cdefg" and "".
        let bytes = [&4_u32.to_le_bytes()[..], &[0; 4], b"ab\0cdefg\0"].concat();
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let mut three = [0; 4];
            three[1..=chunk.len()].copy_from_slice(chunk);
            let value = u32::from_be_bytes(three);
            (0..=chunk.len()).for_each(|place| text.push(digits[(value >> (18 - 6 * place)) as usize & 63] as char));
        }
        assert_eq!(longest_output(&text), 5);
        assert_eq!(longest_output("no map"), 1);
    }
}
