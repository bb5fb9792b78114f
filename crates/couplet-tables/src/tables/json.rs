//! JSON Lines: infers the columns of all lines and decodes rows.
//!
//! Arrow's decoder builds the columns. Each line is parsed here first. It must be a single object without duplicate
//! keys, and the columns must hold its values exactly. Input that the decoder would misread is rewritten first:
//! surrogate pairs, which it combines wrongly on even planes, and objects and lists in a text column.

mod parse;
mod shape;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use datafusion::common::Result as DataFusionResult;
use memchr::memchr;
use serde::{Deserialize, Serialize};

use self::parse::{Edit, Parser};
use self::shape::Shape;
use super::ColumnTypes;
use super::infer::ColumnInference;
use super::text::{Fault, MAX_BATCH_BYTES, Rows, as_text};
use super::values::{Column, data_type, form_of, name_of};

/// Splits bytes that arrive in chunks into lines.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    next: usize,
    /// The offset of the next line in the file.
    offset: u64,
    /// The number of the next line, counted from 1.
    line: u64,
    is_end: bool,
}

impl Lines {
    fn new(offset: u64) -> Self {
        Self { offset, line: 1, ..Self::default() }
    }

    fn push(&mut self, bytes: Option<&[u8]>) {
        self.buffer.drain(..self.next);
        self.next = 0;
        match bytes {
            Some(bytes) => self.buffer.extend_from_slice(bytes),
            None => self.is_end = true,
        }
    }

    /// Returns the next complete line with its number and its offset in the file; none if more bytes are needed.
    fn advance(&mut self) -> Option<(&[u8], u64, u64)> {
        let rest = &self.buffer[self.next..];
        let (end, with_break) = match memchr(b'\n', rest) {
            Some(end) => (end, end + 1),
            None if self.is_end && !rest.is_empty() => (rest.len(), rest.len()),
            None => return None,
        };
        let (start, line, offset) = (self.next, self.line, self.offset);
        (self.next, self.line, self.offset) = (start + with_break, line + 1, offset + with_break as u64);
        let text = &self.buffer[start..start + end];
        let text = if offset == 0 { text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text) } else { text };
        Some((text, line, offset))
    }
}

/// Infers the columns of one file.
pub(super) struct JsonColumns {
    lines: Lines,
    parser: Parser,
    shape: Shape,
}

impl JsonColumns {
    pub(super) fn new() -> Self {
        Self { lines: Lines::new(0), parser: Parser::default(), shape: Shape::default() }
    }
}

impl ColumnInference for JsonColumns {
    type Columns = Shape;

    fn push(&mut self, bytes: Option<&[u8]>) -> Result<(), Fault> {
        self.lines.push(bytes);
        while let Some((text, line, _)) = self.lines.advance() {
            self.parser.parse(text, line, &mut self.shape)?;
        }
        Ok(())
    }

    fn finish(self) -> Shape {
        self.shape
    }
}

/// The merged columns of all files.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JsonLayout {
    shape: Shape,
    types: ColumnTypes,
    schema: SchemaRef,
}

impl JsonLayout {
    /// Merges the columns of the files. `is_complete` means that every file was read to its end.
    ///
    /// # Errors
    /// A type for a column that no file has; checked only if `is_complete`.
    pub(super) fn of(shapes: Vec<Shape>, types: &ColumnTypes, is_complete: bool) -> Result<Self, String> {
        let mut shape = Shape::default();
        for other in shapes {
            shape.merge(other);
        }
        shape.reset_object_numbers();
        if let Some((name, _)) = types.iter().find(|(name, _)| is_complete && shape.field(name).is_none()) {
            let names: Vec<&str> = shape.names().collect();
            return Err(format!("`types` names a column `{name}`, and there is none (columns: {})", names.join(", ")));
        }
        let schema = schema_of(&shape, types);
        Ok(Self { shape, types: types.clone(), schema: Arc::new(schema) })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

fn schema_of(shape: &Shape, types: &ColumnTypes) -> Schema {
    let given = |name: &str| types.iter().find(|(given, _)| given == name).map(|(_, given)| data_type(*given));
    let inferred = shape.names().map(|name| {
        let inferred = || shape.field(name).and_then(Shape::data_type).unwrap_or(DataType::Utf8);
        Field::new(name, given(name).unwrap_or_else(inferred), true)
    });
    let others = types.iter().filter(|(name, _)| shape.field(name).is_none());
    let others = others.map(|(name, given)| Field::new(name, data_type(*given), true));
    Schema::new(inferred.chain(others).collect::<Vec<_>>())
}

/// Decodes the rows of a file.
pub(super) struct JsonRows {
    lines: Lines,
    /// The end of the byte range. Lines that begin after it belong to the next range.
    end: u64,
    /// True if the line at the start of the byte range belongs to the previous range.
    skips_first: bool,
    parser: Parser,
    shape: Shape,
    types: ColumnTypes,
    /// All columns of the table.
    all: SchemaRef,
    /// The projected columns.
    schema: SchemaRef,
    /// The columns with a declared type; their values are checked by building them.
    given: Vec<(String, DataType, Column)>,
    /// The names of the text columns.
    texts: Vec<String>,
    decoder: Decoder,
    /// The bytes for the decoder.
    written: Vec<u8>,
    rows: usize,
    bytes: usize,
    batch_size: usize,
}

impl JsonRows {
    pub(super) fn new(
        layout: &JsonLayout,
        schema: SchemaRef,
        batch_size: usize,
        start: u64,
        end: u64,
    ) -> DataFusionResult<Self> {
        let decoder = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(batch_size).with_coerce_primitive(true);
        let is_text = |field: &&Arc<Field>| *field.data_type() == DataType::Utf8;
        let given = layout.types.iter().map(|(name, given)| (name.clone(), data_type(*given)));
        Ok(Self {
            lines: Lines::new(start),
            end,
            skips_first: start > 0,
            parser: Parser::default(),
            shape: layout.shape.clone(),
            types: layout.types.clone(),
            all: Arc::clone(&layout.schema),
            given: given.map(|(name, given)| (name, given.clone(), Column::new(&given, false))).collect(),
            texts: layout.schema.fields().iter().filter(is_text).map(|field| field.name().clone()).collect(),
            decoder: decoder.build_decoder()?,
            schema,
            written: Vec::new(),
            rows: 0,
            bytes: 0,
            batch_size,
        })
    }

    /// Rejects a line with a new key or with a value that the column type does not hold.
    fn check_growth(&self, line: u64) -> Result<(), Fault> {
        let now = schema_of(&self.shape, &self.types);
        let grown = now.fields().iter().find_map(|field| {
            let before = self.all.field_with_name(field.name()).ok().map(Field::data_type);
            (before != Some(field.data_type())).then_some((field, before))
        });
        let Some((field, before)) = grown else { return Ok(()) };
        let name = field.name();
        let problem = match before {
            None => {
                format!(
                    "the key `{name}` was in none of the lines read to infer the columns; {} adds it",
                    as_text(name)
                )
            }
            Some(before) => format!(
                "`{name}` was inferred as {}, which does not hold this value; {} reads it as text",
                name_of(before),
                as_text(name)
            ),
        };
        Err(Fault::at(line, problem))
    }

    /// Rejects a value that does not fit the type that `types` declares for its column.
    fn check_given(&mut self, text: &[u8], line: u64) -> Result<(), Fault> {
        for (name, data_type, column) in &mut self.given {
            if matches!(data_type, DataType::Utf8) {
                continue;
            }
            let Some((start, end)) = self.parser.value_of(name) else { continue };
            let value = &text[start..end];
            let is_string = value.first() == Some(&b'"');
            let value = if is_string {
                serde_json::from_slice(value).unwrap_or_default()
            } else {
                String::from_utf8_lossy(value).into_owned()
            };
            if !is_string && value == "null" {
                continue;
            }
            if !column.append(&value) {
                let (wanted, form) = (name_of(data_type), form_of(&value));
                return Err(Fault::at(
                    line,
                    format!("`types` declares `{name}` as {wanted}, and this value is {form}"),
                ));
            }
            // The decoder parses numbers and times from strings, but not booleans.
            if is_string && matches!(data_type, DataType::Boolean) {
                self.parser.edit(Edit { start, end, text: value.to_lowercase() });
            }
        }
        if self.rows == 0 {
            // The columns were built only to check their values.
            for (_, _, column) in &mut self.given {
                let _ = column.finish();
            }
        }
        Ok(())
    }

    /// Decodes the collected lines into record batches.
    fn decode(&mut self, is_end: bool, batches: &mut VecDeque<RecordBatch>) -> Result<(), ArrowError> {
        if self.schema.fields().is_empty() {
            // No column is projected: only the number of rows matters.
            if self.rows > 0 {
                let options = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
                batches.push_back(RecordBatch::try_new_with_options(Arc::clone(&self.schema), vec![], &options)?);
            }
            self.written.clear();
            return Ok(());
        }
        let mut at = 0;
        while at < self.written.len() {
            let read = self.decoder.decode(&self.written[at..])?;
            at += read;
            self.bytes += read;
            if at < self.written.len() || self.bytes > MAX_BATCH_BYTES {
                batches.extend(self.decoder.flush()?);
                self.bytes = 0;
            }
        }
        self.written.clear();
        self.rows = 0;
        if is_end {
            batches.extend(self.decoder.flush()?);
        }
        Ok(())
    }
}

impl Rows for JsonRows {
    fn read(&mut self, bytes: Option<&[u8]>, batches: &mut VecDeque<RecordBatch>) -> Result<bool, Fault> {
        self.lines.push(bytes);
        let mut needs_more = true;
        let mut lines = std::mem::take(&mut self.lines);
        while let Some((text, line, offset)) = lines.advance() {
            if std::mem::take(&mut self.skips_first) {
                continue;
            }
            if offset >= self.end {
                needs_more = false;
                break;
            }
            if !self.parser.parse(text, line, &mut self.shape)? {
                continue;
            }
            if self.parser.has_grown() {
                self.check_growth(line)?;
            }
            self.check_given(text, line)?;
            self.parser.quote_nested(text, &self.texts);
            write_edited(text, self.parser.edits(), &mut self.written);
            self.rows += 1;
            if self.rows >= self.batch_size && self.schema.fields().is_empty() {
                self.decode(false, batches).map_err(|e| Fault { line: None, problem: e.to_string() })?;
            }
        }
        self.lines = lines;
        let is_end = bytes.is_none() || !needs_more;
        // The lines were parsed and their values fit, so only the limits of the decoder can fail here.
        self.decode(is_end, batches).map_err(|e| Fault { line: None, problem: e.to_string() })?;
        Ok(needs_more)
    }
}

/// Writes a line with its edits applied. The edits are sorted by position.
fn write_edited(text: &[u8], edits: &[Edit], written: &mut Vec<u8>) {
    let mut at = 0;
    for edit in edits {
        written.extend_from_slice(&text[at..edit.start]);
        written.extend_from_slice(edit.text.as_bytes());
        at = edit.end;
    }
    written.extend_from_slice(&text[at..]);
    written.push(b'\n');
}

/// Returns a text as a JSON string literal.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    // Writing to a string cannot fail.
    let _ = write!(quoted, "{}", serde_json::Value::from(text));
    quoted
}
