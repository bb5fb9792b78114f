//! Parses one line of JSON without building a value. It validates the line and adds its keys and kinds of values to a
//! shape.

use memchr::memchr2;

use super::super::text::Fault;
use super::super::values::Kinds;
use super::quoted;
use super::shape::Shape;

/// The maximum nesting depth of objects and lists.
const MAX_DEPTH: usize = 128;

/// The message for a file that is one JSON array, as `--format json` writes it.
const AN_ARRAY: &str = "it is one JSON array, and couplet reads JSON Lines, one object per line: `jq -c '.[]' FILE > \
                        FILE.jsonl` converts it, and `couplet query … -o FILE.jsonl` writes them";

/// A replacement of a part of the line before the decoder reads it.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) text: String,
}

/// Parses lines one at a time.
#[derive(Default)]
pub(super) struct Parser {
    at: usize,
    depth: usize,
    /// The number of the current object.
    objects: u64,
    has_grown: bool,
    edits: Vec<Edit>,
    /// The byte ranges of the values of the line's top-level object, with the index of their key in the shape.
    values: Vec<(usize, usize, usize)>,
    names: Vec<String>,
}

/// The result of a parse step. The error describes the problem at the current position.
type Parsed = Result<(), String>;

impl Parser {
    /// Parses a line. Returns false if it is blank.
    pub(super) fn parse(&mut self, text: &[u8], line: u64, shape: &mut Shape) -> Result<bool, Fault> {
        (self.at, self.depth, self.has_grown) = (0, 0, false);
        self.edits.clear();
        self.values.clear();
        if std::str::from_utf8(text).is_err() {
            let utf16 = line == 1 && (text.starts_with(b"\xFF\xFE") || text.starts_with(b"\xFE\xFF"));
            let what = if utf16 { "it is UTF-16, and couplet reads UTF-8" } else { "not valid UTF-8" };
            return Err(Fault::at(line, format!("{what}; convert the file, for example with iconv")));
        }
        self.blanks(text);
        match text.get(self.at) {
            None => return Ok(false),
            Some(b'{') => {}
            Some(b'[') if line == 1 => return Err(Fault { line: None, problem: AN_ARRAY.into() }),
            Some(_) => {
                let problem = "expected one JSON object per line, such as {\"id\": 1, \"sentence1\": \"…\"}";
                return Err(Fault::at(line, problem));
            }
        }
        let parsed = self.object(text, shape).and_then(|()| {
            self.blanks(text);
            match text.get(self.at) {
                None => Ok(()),
                Some(b'{') => Err("a second object on the line; write one per line".to_owned()),
                Some(_) => Err("text after the object".to_owned()),
            }
        });
        match parsed {
            Ok(()) => Ok(true),
            Err(_) if self.at >= text.len() => {
                Err(Fault::at(line, "the line ends within a JSON object; each line must hold a complete object"))
            }
            Err(problem) => Err(Fault::at(line, format!("not a JSON object: {problem} at column {}", self.at + 1))),
        }
    }

    /// Returns true if the line had a key or a kind of value that was new to the shape.
    pub(super) fn has_grown(&self) -> bool {
        self.has_grown
    }

    pub(super) fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// Returns the byte range of the value of a top-level key.
    pub(super) fn value_of(&self, name: &str) -> Option<(usize, usize)> {
        let found = self.values.iter().find(|(key, ..)| self.names.get(*key).is_some_and(|key| key == name));
        found.map(|(_, start, end)| (*start, *end))
    }

    /// Replaces the objects and lists in these columns by strings with their JSON text.
    pub(super) fn quote_nested(&mut self, text: &[u8], columns: &[String]) {
        let nested = |start: usize| matches!(text[start], b'{' | b'[');
        for (key, start, end) in std::mem::take(&mut self.values) {
            if nested(start) && self.names.get(key).is_some_and(|name| columns.contains(name)) {
                let value = String::from_utf8_lossy(&text[start..end]);
                self.edit(Edit { start, end, text: quoted(&value) });
            }
        }
    }

    /// Adds an edit, which replaces all edits that overlap with it.
    pub(super) fn edit(&mut self, edit: Edit) {
        self.edits.retain(|other| other.end <= edit.start || other.start >= edit.end);
        self.edits.push(edit);
        self.edits.sort_unstable_by_key(|edit| edit.start);
    }

    fn blanks(&mut self, text: &[u8]) {
        while matches!(text.get(self.at), Some(b' ' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, text: &[u8], byte: u8, what: &str) -> Parsed {
        self.blanks(text);
        if text.get(self.at) != Some(&byte) {
            return Err(format!("expected {what}"));
        }
        self.at += 1;
        Ok(())
    }

    fn enter(&mut self) -> Parsed {
        self.at += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            Err(format!("more than {MAX_DEPTH} levels of nested objects and lists"))
        } else {
            Ok(())
        }
    }

    fn object(&mut self, text: &[u8], shape: &mut Shape) -> Parsed {
        self.enter()?;
        self.has_grown |= !shape.is_object;
        shape.is_object = true;
        self.objects += 1;
        let object = self.objects;
        self.blanks(text);
        if text.get(self.at) == Some(&b'}') {
            self.at += 1;
            self.depth -= 1;
            return Ok(());
        }
        let mut expected = 0;
        loop {
            self.blanks(text);
            let start = self.at;
            if text.get(start) != Some(&b'"') {
                return Err("expected a key between quotation marks".into());
            }
            self.string(text)?;
            let place = self.place(&text[start + 1..self.at - 1], expected, shape)?;
            let field = &mut shape.fields[place];
            if std::mem::replace(&mut field.1.seen, object) == object {
                return Err(format!("the key `{}` occurs twice", field.0));
            }
            expected = place + 1;
            self.expect(text, b':', "a colon")?;
            self.blanks(text);
            let start = self.at;
            self.value(text, &mut field.1)?;
            if self.depth == 1 {
                if self.names.len() <= place {
                    let names = shape.fields[self.names.len()..].iter().map(|(name, _)| name.clone());
                    self.names.extend(names);
                }
                self.values.push((place, start, self.at));
            }
            self.blanks(text);
            match text.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return Err("expected a comma or the end of the object".into()),
            }
        }
    }

    /// Returns the index of a key in the shape. Most lines have it at the expected index.
    fn place(&mut self, key: &[u8], expected: usize, shape: &mut Shape) -> Result<usize, String> {
        let decoded;
        let key = if key.contains(&b'\\') {
            let mut literal = vec![b'"'];
            literal.extend_from_slice(key);
            literal.push(b'"');
            decoded = serde_json::from_slice::<String>(&literal).map_err(|_| "an invalid key".to_owned())?;
            decoded.as_str()
        } else {
            // The line is valid UTF-8 and quotation marks are ASCII, so the slice is valid UTF-8 too.
            std::str::from_utf8(key).map_err(|_| "an invalid key".to_owned())?
        };
        if shape.fields.get(expected).is_some_and(|(name, _)| name == key) {
            return Ok(expected);
        }
        Ok(shape.fields.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
            self.has_grown = true;
            shape.fields.push((key.to_owned(), Shape::default()));
            shape.fields.len() - 1
        }))
    }

    fn value(&mut self, text: &[u8], shape: &mut Shape) -> Parsed {
        let kinds = match text.get(self.at) {
            Some(b'"') => {
                self.string(text)?;
                Kinds::TEXT
            }
            Some(b'{') => return self.object(text, shape),
            Some(b'[') => return self.list(text, shape),
            Some(b't') => return self.word(text, b"true", Kinds::BOOLEAN, shape),
            Some(b'f') => return self.word(text, b"false", Kinds::BOOLEAN, shape),
            Some(b'n') => return self.word(text, b"null", Kinds::default(), shape),
            Some(b'-' | b'0'..=b'9') => self.number(text)?,
            Some(b'N' | b'I') => return Err("NaN and Infinity are not JSON; write null".into()),
            _ => return Err("expected a value".into()),
        };
        self.add(kinds, shape);
        Ok(())
    }

    fn add(&mut self, kinds: Kinds, shape: &mut Shape) {
        if !kinds.is_subset_of(shape.kinds) {
            self.has_grown = true;
            shape.kinds.add(kinds);
        }
    }

    fn word(&mut self, text: &[u8], word: &[u8], kinds: Kinds, shape: &mut Shape) -> Parsed {
        if !text[self.at..].starts_with(word) {
            return Err("expected a value".into());
        }
        self.at += word.len();
        self.add(kinds, shape);
        Ok(())
    }

    fn list(&mut self, text: &[u8], shape: &mut Shape) -> Parsed {
        self.enter()?;
        self.has_grown |= shape.item.is_none();
        let item = shape.item.get_or_insert_default();
        self.blanks(text);
        if text.get(self.at) == Some(&b']') {
            self.at += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.blanks(text);
            self.value(text, item)?;
            self.blanks(text);
            match text.get(self.at) {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return Err("expected a comma or the end of the list".into()),
            }
        }
    }

    fn number(&mut self, text: &[u8]) -> Result<Kinds, String> {
        let start = self.at;
        let digits = |at: usize| text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let first_digit = start + usize::from(text[start] == b'-');
        let mut end = first_digit + digits(first_digit);
        if end == first_digit || text[first_digit] == b'0' && end > first_digit + 1 {
            return Err("an invalid JSON number".into());
        }
        for marks in [&b"."[..], b"eE"] {
            if text.get(end).is_some_and(|byte| marks.contains(byte)) {
                let is_exponent = marks.len() > 1;
                let sign = usize::from(is_exponent && matches!(text.get(end + 1), Some(b'+' | b'-')));
                let count = text.get(end + 1 + sign..).map_or(0, |_| digits(end + 1 + sign));
                if count == 0 {
                    return Err("an invalid JSON number".into());
                }
                end += 1 + sign + count;
            }
        }
        self.at = end;
        Ok(Kinds::of_number(&text[start..end]))
    }

    /// Skips a string, and adds edits that replace its surrogate pairs by the characters that they encode.
    fn string(&mut self, text: &[u8]) -> Parsed {
        self.at += 1;
        loop {
            let Some(found) = memchr2(b'"', b'\\', &text[self.at..]) else {
                self.at = text.len();
                return Err("an unterminated string".into());
            };
            self.at += found;
            if text[self.at] == b'"' {
                self.at += 1;
                return Ok(());
            }
            match text.get(self.at + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
                Some(b'u') => match unit(text, self.at) {
                    Some(high @ 0xD800..=0xDBFF) => {
                        let Some(low @ 0xDC00..=0xDFFF) = unit(text, self.at + 6) else {
                            return Err("an unpaired surrogate".into());
                        };
                        let code = 0x1_0000 + ((u32::from(high) - 0xD800) << 10) + (u32::from(low) - 0xDC00);
                        let character = char::from_u32(code).expect("two surrogates are one character");
                        self.edits.push(Edit { start: self.at, end: self.at + 12, text: character.into() });
                        self.at += 12;
                    }
                    Some(0xDC00..=0xDFFF) => return Err("an unpaired surrogate".into()),
                    Some(_) => self.at += 6,
                    None => return Err("an invalid JSON escape".into()),
                },
                Some(_) => return Err("an invalid JSON escape".into()),
                None => {
                    self.at = text.len();
                    return Err("an unterminated string".into());
                }
            }
        }
    }
}

/// Returns the UTF-16 code unit of the `\uXXXX` escape at byte `at`.
fn unit(text: &[u8], at: usize) -> Option<u16> {
    let escape = text.get(at..at + 6)?;
    let digits = escape.strip_prefix(b"\\u").filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Shape, String), String> {
        let (mut parser, mut shape) = (Parser::default(), Shape::default());
        parser.parse(text.as_bytes(), 1, &mut shape).map_err(|fault| fault.problem)?;
        let mut written = Vec::new();
        super::super::write_edited(text.as_bytes(), parser.edits(), &mut written);
        Ok((shape, String::from_utf8(written).unwrap()))
    }

    #[test]
    fn a_line_is_refused_that_is_not_one_object() {
        for (text, problem) in [
            ("[1]", "it is one JSON array"),
            ("3", "expected one JSON object per line"),
            ("{\"a\":", "the line ends within"),
            ("{\"a\":1", "the line ends within"),
            ("{\"a\":1} {\"a\":2}", "a second object on the line; write one per line at column 9"),
            ("{\"a\":1,}", "expected a key"),
            ("{\"a\":1,\"a\":2}", "the key `a` occurs twice"),
            ("{\"m\":{\"a\":1,\"\\u0061\":2}}", "the key `a` occurs twice"),
            ("{\"a\":NaN}", "NaN and Infinity are not JSON"),
            ("{\"a\":01}", "an invalid JSON number"),
            ("{\"a\":1.}", "an invalid JSON number"),
            ("{\"a\":\"\\ud83d here\"}", "an unpaired surrogate"),
            ("{\"a\":\"\\ude00\"}", "an unpaired surrogate"),
            ("{\"a\":\"\\x\"}", "an invalid JSON escape"),
            ("{\"a\":tru}", "expected a value"),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.contains(problem), "{text}: {found}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        assert!(parse(&deep).unwrap_err().contains("levels of nested objects"));
    }

    #[test]
    fn surrogates_are_written_as_characters() {
        for code in [0x1_0000, 0x1_F600, 0x2_0BB7, 0x2_F800, 0x10_FFFF] {
            let character = char::from_u32(code).unwrap();
            let units: Vec<String> =
                character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let escaped = units.concat();
            let (_, written) = parse(&format!("{{\"a\":\"x{escaped}\\\\ud842y\"}}")).unwrap();
            assert_eq!(written, format!("{{\"a\":\"x{character}\\\\ud842y\"}}\n"));
        }
    }
}
