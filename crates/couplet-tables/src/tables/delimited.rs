//! Delimited text: splits bytes into records and fields.
//!
//! A single parser infers the columns, reads the rows and locates errors, so that all three agree. It accepts RFC 4180
//! with LF, CR or CR LF line endings. Input that a lenient parser would have to guess at is an error with its line
//! number: text after a closing quotation mark, and a quotation mark that is never closed.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memchr3};

use super::CsvOptions;
use super::text::Fault;

/// The maximum size of a record in bytes. A longer record is assumed to lack a closing quotation mark.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// The optional UTF-8 byte order mark at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A field of the current record.
#[derive(Debug, Clone, Copy)]
struct Field {
    start: usize,
    end: usize,
    /// True if the field contains doubled or escaped quotation marks.
    is_escaped: bool,
}

/// Splits bytes that arrive in chunks into records.
pub(super) struct Records {
    delimiter: u8,
    quote: Option<u8>,
    escape: Option<u8>,
    buffer: Vec<u8>,
    /// The offset of the next record in the buffer.
    next: usize,
    /// The number of buffered bytes at which an incomplete record is scanned again. It prevents rescanning a long
    /// record for every chunk.
    rescan_at: usize,
    /// The line on which the next record begins, counted from 1.
    line: u64,
    is_start: bool,
    is_end: bool,
    /// True if the previous record ended with a CR, so that an LF that follows belongs to it.
    after_cr: bool,
    fields: Vec<Field>,
    /// The line on which the current record begins.
    pub(super) record_line: u64,
}

enum Split {
    /// The end of the record including its line ending, and its number of lines.
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
            rescan_at: 0,
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

    /// Marks the end of the file.
    pub(super) fn end(&mut self) {
        self.is_end = true;
        self.rescan_at = 0;
    }

    /// Advances to the next record. Returns false if more bytes are needed or there are no more records.
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
                return Err(Fault::at(
                    1,
                    "it is UTF-16, and couplet reads UTF-8; convert the file, for example with iconv",
                ));
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
        if self.buffer.len() - self.next < self.rescan_at {
            return Ok(false);
        }
        match self.split()? {
            Split::Complete(end, lines) => {
                self.rescan_at = 0;
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
            Split::Incomplete if self.buffer.len() - self.next > MAX_RECORD_BYTES => Err(self.unclosed_quote()),
            Split::Incomplete => {
                self.rescan_at = (self.buffer.len() - self.next) * 2;
                Ok(false)
            }
        }
    }

    /// Returns the number of fields of the current record.
    pub(super) fn width(&self) -> usize {
        self.fields.len()
    }

    /// Returns a field of the current record.
    pub(super) fn field(&self, index: usize) -> Cow<'_, str> {
        let field = self.fields[index];
        let bytes = &self.buffer[field.start..field.end];
        let bytes = if field.is_escaped { Cow::Owned(self.unescaped(bytes)) } else { Cow::Borrowed(bytes) };
        // The record is valid UTF-8 and the field is delimited by ASCII bytes, so the slice is valid UTF-8 too. Only
        // ASCII bytes are removed from it.
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
            // The escape byte is an ordinary byte unless a quotation mark or another escape follows it.
            let escaped = bytes.next_if(|next| is_mark && (Some(*next) == self.quote || Some(*next) == self.escape));
            text.push(escaped.unwrap_or(byte));
        }
        text
    }

    /// Splits the next record into fields.
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
                    None if self.is_end => return Err(self.unclosed_quote()),
                    None => return Ok(Split::Incomplete),
                    Some(place) if bytes[place] == quote => match bytes.get(place + 1) {
                        Some(next) if *next == quote => (scan, is_escaped) = (place + 2, true),
                        None if !self.is_end => return Ok(Split::Incomplete),
                        _ => break place,
                    },
                    Some(place) if place + 2 > bytes.len() => {
                        return if self.is_end { Err(self.unclosed_quote()) } else { Ok(Split::Incomplete) };
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
                Some(_) => return Err(self.text_after_quote(lines, start, end)),
            }
        }
    }

    fn unclosed_quote(&self) -> Fault {
        let quote = char::from(self.quote.unwrap_or(b'"'));
        Fault::at(
            self.line,
            format!("a quotation mark ({quote}) is never closed; {{ uri = \"…\", quote = false }} reads them as text"),
        )
    }

    /// Returns the fault for text after a closing quotation mark.
    fn text_after_quote(&self, lines: u64, start: usize, end: usize) -> Fault {
        let field = self.fields.len();
        let fix = if self.escape.is_none() && self.buffer[start..end].ends_with(b"\\") {
            "if backslashes escape quotation marks, as Spark writes them, read it with { uri = \"…\", escape = \
             \"\\\\\" }"
        } else {
            "double each quotation mark within a field, or read them as text with { uri = \"…\", quote = false }"
        };
        let problem = format!("field {field} continues after its closing quotation mark; {fix}");
        Fault::at(self.line + lines - 1, problem)
    }
}

/// Returns the column names from the first record. A column is named `column_N` if the file has no header or the header
/// field is empty.
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

/// Rejects the current record if its number of fields differs from that of the first record.
pub(super) fn check_width(records: &Records, width: usize) -> Result<(), Fault> {
    let found = records.width();
    if found == width {
        return Ok(());
    }
    let hint = match records.quote {
        Some(quote) => format!(
            "is a quotation mark ({}) unbalanced? {{ uri = \"…\", quote = false }} reads them as text",
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

    /// A record with its line number.
    type Record = (u64, Vec<String>);

    /// Splits `text` into records with their line numbers, fed in chunks of `piece` bytes.
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
