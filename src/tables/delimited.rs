//! Delimited text: where records and fields begin and end.
//!
//! One parser finds the columns, reads the rows and says where a file is broken, so that the three agree. It reads what RFC
//! 4180 allows, and any of LF, CR and CR LF at the end of a line; what a lenient parser would guess at, it refuses with the
//! line: text behind a closing quotation mark, and a quotation mark that is never closed.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memchr3};

use super::text::Fault;
use crate::config::CsvOptions;

/// The bytes of a record at most: what is longer has lost a quotation mark.
const MOST_OF_RECORD: usize = 64 << 20;

/// The mark that may stand before the first record.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A field of the current record.
#[derive(Debug, Clone, Copy)]
struct Field {
    start: usize,
    end: usize,
    /// Whether it has doubled or escaped quotation marks.
    is_escaped: bool,
}

/// Finds the records in bytes that come piece by piece.
pub(super) struct Records {
    delimiter: u8,
    quote: Option<u8>,
    escape: Option<u8>,
    buffer: Vec<u8>,
    /// Where in the buffer the next record begins.
    next: usize,
    /// The bytes of an incomplete record before it is looked at again, so that a long one is not read over and over.
    enough: usize,
    /// The line on which the next record begins, from 1.
    line: u64,
    is_start: bool,
    is_end: bool,
    /// Whether the record before ended with a CR, to which an LF belongs.
    after_cr: bool,
    fields: Vec<Field>,
    /// The line on which the current record begins.
    pub(super) record_line: u64,
}

enum Split {
    /// Where the record ends, behind the end of its line, and how many lines it has.
    Complete(usize, u64),
    Incomplete,
}

impl Records {
    pub(super) fn new(options: &CsvOptions) -> Self {
        Self {
            delimiter: options.delimiter,
            quote: options.quote,
            escape: options.escape.filter(|escape| options.quote != Some(*escape)),
            buffer: Vec::new(),
            next: 0,
            enough: 0,
            line: 1,
            is_start: true,
            is_end: false,
            after_cr: false,
            fields: Vec::new(),
            record_line: 0,
        }
    }

    /// Takes the next bytes of the file.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.next);
        self.next = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Says that there are no more bytes.
    pub(super) fn end(&mut self) {
        self.is_end = true;
        self.enough = 0;
    }

    /// Goes to the next record; false if it needs more bytes, or there is none.
    pub(super) fn advance(&mut self) -> Result<bool, Fault> {
        if self.is_start {
            if self.buffer.len() < BYTE_ORDER_MARK.len() && !self.is_end {
                return Ok(false);
            }
            self.is_start = false;
            if self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.next = BYTE_ORDER_MARK.len();
            }
            if self.buffer.starts_with(b"\xFF\xFE") || self.buffer.starts_with(b"\xFE\xFF") {
                return Err(Fault::at(1, "it is UTF-16, and UTF-8 is read; convert the file, for example with iconv"));
            }
        }
        loop {
            match self.buffer.get(self.next) {
                Some(b'\n') if std::mem::take(&mut self.after_cr) => self.next += 1,
                Some(b'\n') => (self.next, self.line) = (self.next + 1, self.line + 1),
                Some(b'\r') => (self.next, self.line, self.after_cr) = (self.next + 1, self.line + 1, true),
                Some(_) => break,
                None => return Ok(false),
            }
        }
        self.after_cr = false;
        if self.buffer.len() - self.next < self.enough {
            return Ok(false);
        }
        match self.split()? {
            Split::Complete(end, lines) => {
                self.enough = 0;
                (self.record_line, self.line) = (self.line, self.line + lines);
                self.after_cr = self.buffer[end - 1] == b'\r';
                if let Err(e) = std::str::from_utf8(&self.buffer[self.next..end]) {
                    let broken = self.next + e.valid_up_to();
                    let field = self.fields.iter().position(|field| broken < field.end).unwrap_or(0) + 1;
                    let problem = format!("field {field} is not valid UTF-8; convert the file, for example with iconv");
                    return Err(Fault::at(self.record_line, problem));
                }
                self.next = end;
                Ok(true)
            }
            Split::Incomplete if self.buffer.len() - self.next > MOST_OF_RECORD => Err(self.never_closed()),
            Split::Incomplete => {
                self.enough = (self.buffer.len() - self.next) * 2;
                Ok(false)
            }
        }
    }

    /// The number of fields of the current record.
    pub(super) fn width(&self) -> usize {
        self.fields.len()
    }

    /// A field of the current record.
    pub(super) fn field(&self, index: usize) -> Cow<'_, str> {
        let field = self.fields[index];
        let bytes = &self.buffer[field.start..field.end];
        let bytes = if field.is_escaped { Cow::Owned(self.unescaped(bytes)) } else { Cow::Borrowed(bytes) };
        // A field begins and ends at ASCII, and the record is valid UTF-8; only ASCII is left out of it.
        match bytes {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    fn unescaped(&self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len());
        let mut bytes = bytes.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            let is_mark = Some(byte) == self.quote || Some(byte) == self.escape;
            // Before anything but a mark, the escape is a byte like others.
            let escaped = bytes.next_if(|next| is_mark && (Some(*next) == self.quote || Some(*next) == self.escape));
            text.push(escaped.unwrap_or(byte));
        }
        text
    }

    /// Finds the fields of the next record.
    fn split(&mut self) -> Result<Split, Fault> {
        let bytes = &self.buffer[..];
        let (mut at, mut lines) = (self.next, 1);
        self.fields.clear();
        loop {
            let Some(quote) = self.quote.filter(|quote| bytes.get(at) == Some(quote)) else {
                let end = match memchr3(self.delimiter, b'\n', b'\r', &bytes[at..]) {
                    Some(end) => at + end,
                    None if self.is_end => bytes.len(),
                    None => return Ok(Split::Incomplete),
                };
                self.fields.push(Field { start: at, end, is_escaped: false });
                match bytes.get(end) {
                    Some(byte) if *byte == self.delimiter => at = end + 1,
                    Some(_) => return Ok(Split::Complete(end + 1, lines)),
                    None => return Ok(Split::Complete(end, lines)),
                }
                continue;
            };
            let (start, mut scan, mut is_escaped) = (at + 1, at + 1, false);
            let end = loop {
                let found = match self.escape {
                    Some(escape) => memchr2(quote, escape, &bytes[scan..]),
                    None => memchr(quote, &bytes[scan..]),
                };
                match found.map(|found| scan + found) {
                    None if self.is_end => return Err(self.never_closed()),
                    None => return Ok(Split::Incomplete),
                    Some(place) if bytes[place] == quote => match bytes.get(place + 1) {
                        Some(next) if *next == quote => (scan, is_escaped) = (place + 2, true),
                        None if !self.is_end => return Ok(Split::Incomplete),
                        _ => break place,
                    },
                    Some(place) if place + 2 > bytes.len() => {
                        return if self.is_end { Err(self.never_closed()) } else { Ok(Split::Incomplete) };
                    }
                    Some(place) => (scan, is_escaped) = (place + 2, true),
                }
            };
            lines += memchr_iter(b'\n', &bytes[start..end]).count() as u64;
            self.fields.push(Field { start, end, is_escaped });
            match bytes.get(end + 1) {
                Some(byte) if *byte == self.delimiter => at = end + 2,
                Some(b'\n' | b'\r') => return Ok(Split::Complete(end + 2, lines)),
                None => return Ok(Split::Complete(end + 1, lines)),
                Some(_) => return Err(self.behind_the_quote(lines, start, end)),
            }
        }
    }

    fn never_closed(&self) -> Fault {
        let quote = char::from(self.quote.unwrap_or(b'"'));
        Fault::at(
            self.line,
            format!(
                "a quotation mark ({quote}) is never closed; {{ uri = \"…\", quote = false }} takes them as they are"
            ),
        )
    }

    /// A closing quotation mark with text behind it.
    fn behind_the_quote(&self, lines: u64, start: usize, end: usize) -> Fault {
        let field = self.fields.len();
        let fix = if self.escape.is_none() && self.buffer[start..end].ends_with(b"\\") {
            "if a backslash stands before quotation marks, as Spark writes them, read it with { uri = \"…\", escape = \
             \"\\\\\" }"
        } else {
            "double each quotation mark within a field, or take them as they are with { uri = \"…\", quote = false }"
        };
        let problem = format!("field {field} goes on behind its closing quotation mark; {fix}");
        Fault::at(self.line + lines - 1, problem)
    }
}

/// The names of the columns, by the first record: its fields, or `column_N` where the file has no header or no name there.
pub(super) fn names(records: &Records, has_header: bool) -> Result<Vec<String>, Fault> {
    let mut names: Vec<String> = Vec::with_capacity(records.width());
    for index in 0..records.width() {
        let field = if has_header { records.field(index) } else { Cow::Borrowed("") };
        let name = if field.is_empty() { format!("column_{}", index + 1) } else { field.into_owned() };
        if let Some(first) = names.iter().position(|other| *other == name) {
            return Err(Fault::at(
                records.record_line,
                format!(
                    "fields {} and {} of the first line are both named \"{name}\"; rename one, or read the file with {{ uri \
                     = \"…\", header = false }}, which names the columns column_1, column_2, …",
                    first + 1,
                    index + 1,
                ),
            ));
        }
        names.push(name);
    }
    Ok(names)
}

/// Refuses the current record if it has another number of fields than the first.
pub(super) fn check_width(records: &Records, width: usize) -> Result<(), Fault> {
    let found = records.width();
    if found == width {
        return Ok(());
    }
    let hint = match records.quote {
        Some(quote) => format!(
            "is a quotation mark ({}) unbalanced? {{ uri = \"…\", quote = false }} takes them as they are",
            char::from(quote)
        ),
        None => "is there a delimiter within a field?".to_owned(),
    };
    let s = if found == 1 { "" } else { "s" };
    Err(Fault::at(records.record_line, format!("{found} field{s} where the first line has {width}; {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(quote: Option<u8>, escape: Option<u8>) -> CsvOptions {
        CsvOptions { delimiter: b',', header: true, quote, escape, null: None, types: Vec::new() }
    }

    /// A record with its line.
    type Record = (u64, Vec<String>);

    /// The records with their lines, read in pieces of so many bytes.
    fn read(text: &[u8], options: &CsvOptions, piece: usize) -> Result<Vec<Record>, (u64, String)> {
        let mut records = Records::new(options);
        let mut found = Vec::new();
        for end in [false, true] {
            for bytes in text.chunks(piece).take(if end { 1 } else { usize::MAX }) {
                if end {
                    records.end();
                } else {
                    records.push(bytes);
                }
                while records.advance().map_err(|fault| (fault.line.unwrap(), fault.problem))? {
                    let fields = (0..records.width()).map(|field| records.field(field).into_owned()).collect();
                    found.push((records.record_line, fields));
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn records_are_the_same_in_pieces_of_any_size() {
        let text = "\u{feff}id,a\r\n\r\n1,\"x\r\n\"\"é\"\"\"\n\n2,5\" wide\r3,\n\"\",\"a,b\"".as_bytes();
        let rows =
            [(1, ["id", "a"]), (3, ["1", "x\r\n\"é\""]), (6, ["2", "5\" wide"]), (7, ["3", ""]), (8, ["", "a,b"])];
        let rows: Vec<_> = rows.map(|(line, row)| (line, row.map(str::to_owned).to_vec())).into();
        for piece in 1..text.len() {
            assert_eq!(read(text, &options(Some(b'"'), None), piece).unwrap(), rows, "{piece}");
        }
    }

    #[test]
    fn an_escape_takes_the_meaning_of_a_quotation_mark() {
        let text = br#"1,"He said \"hi, you\" now\\",\n
2,"a \n b","\\\"""#;
        let rows = [["1", r#"He said "hi, you" now\"#, "\\n"], ["2", r"a \n b", "\\\""]];
        for piece in 1..text.len() {
            let read = read(text, &options(Some(b'"'), Some(b'\\')), piece).unwrap();
            assert_eq!(
                read.into_iter().map(|(_, row)| row).collect::<Vec<_>>(),
                rows.map(|row| row.map(str::to_owned))
            );
        }
    }

    #[test]
    fn malformed_quotes_and_encodings_are_refused_with_their_line() {
        let refused = |text: &str| read(text.as_bytes(), &options(Some(b'"'), None), 7).unwrap_err();
        let (line, problem) = refused("a,b\n1,\"x \\\"y\\\" z\"\n");
        assert!(line == 2 && problem.contains("escape = \"\\\\\""), "{problem}");
        assert_eq!(refused("a\n\"x\ny\" z\n").0, 3);
        assert_eq!(refused("a\n1\n\"x\ny\n").0, 3);
        assert_eq!(refused("a\n1\n\"x\ny\"\"").0, 3);
        let (line, problem) = read(b"a,b\n1,caf\xE9\n", &options(None, None), 3).unwrap_err();
        assert!(line == 2 && problem.starts_with("field 2 is not valid UTF-8"), "{problem}");
        assert!(read(b"\xFF\xFEi\x00", &options(None, None), 3).unwrap_err().1.contains("UTF-16"));
    }
}
