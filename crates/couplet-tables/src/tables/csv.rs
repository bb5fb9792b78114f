//! CSV files: infers the columns of all files by name and decodes rows.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use super::CsvOptions;
use super::delimited::{Records, check_width, names};
use super::infer::ColumnInference;
use super::text::{Fault, MAX_BATCH_BYTES, Rows, as_text};
use super::values::{Column, Kinds, data_type, form_of, name_of};

/// The columns of a file, with the kinds of values found at its beginning.
#[derive(Debug, Default)]
pub(super) struct FileColumns {
    names: Vec<String>,
    kinds: Vec<Kinds>,
}

/// Infers the columns of one file.
pub(super) struct CsvColumns {
    records: Records,
    options: CsvOptions,
    columns: Option<FileColumns>,
}

impl CsvColumns {
    pub(super) fn new(options: &CsvOptions) -> Self {
        Self { records: Records::new(options), options: options.clone(), columns: None }
    }
}

impl ColumnInference for CsvColumns {
    /// None for a file without a line.
    type Columns = Option<FileColumns>;

    fn push(&mut self, bytes: Option<&[u8]>) -> Result<(), Fault> {
        match bytes {
            Some(bytes) => self.records.push(bytes),
            None => self.records.end(),
        }
        while self.records.advance()? {
            let Some(columns) = &mut self.columns else {
                let names = names(&self.records, self.options.header)?;
                let kinds = vec![Kinds::default(); names.len()];
                let columns = self.columns.insert(FileColumns { names, kinds });
                if !self.options.header {
                    columns.add(&self.records, &self.options);
                }
                continue;
            };
            check_width(&self.records, columns.names.len())?;
            columns.add(&self.records, &self.options);
        }
        Ok(())
    }

    fn finish(self) -> Self::Columns {
        self.columns
    }
}

impl FileColumns {
    fn add(&mut self, records: &Records, options: &CsvOptions) {
        for (index, kinds) in self.kinds.iter_mut().enumerate() {
            // One text value makes the whole column text.
            if !kinds.has(Kinds::TEXT) {
                let field = records.field(index);
                if !is_null(&field, options) {
                    kinds.add(Kinds::of_field(field.as_bytes()));
                }
            }
        }
    }
}

fn is_null(field: &str, options: &CsvOptions) -> bool {
    field.is_empty() || options.null.as_deref() == Some(field)
}

/// The merged columns of all files.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CsvLayout {
    options: CsvOptions,
    /// Column names and types.
    schema: SchemaRef,
}

impl CsvLayout {
    /// Merges the columns of the files by name; `None` stands for an empty file.
    ///
    /// # Errors
    /// The index of a file whose columns do not match, and the problem.
    pub(super) fn of(files: Vec<Option<FileColumns>>, options: &CsvOptions) -> Result<Self, (usize, String)> {
        let mut all = FileColumns::default();
        for (index, file) in files.into_iter().enumerate().filter_map(|(index, file)| Some((index, file?))) {
            let lacking: Vec<&str> = missing(&all.names, &file.names);
            let unknown: Vec<&str> = missing(&file.names, &all.names);
            if !all.names.is_empty() && !unknown.is_empty() && (!lacking.is_empty() || !options.header) {
                return Err((
                    index,
                    if options.header {
                        format!(
                            "its columns {} are in no file before, and it lacks {}; is it another table, or a file without a \
                             header?",
                            quoted(&unknown),
                            quoted(&lacking)
                        )
                    } else {
                        format!(
                            "it has {} fields per line, and the files before it have {}",
                            file.names.len(),
                            all.names.len()
                        )
                    },
                ));
            }
            for (name, kinds) in file.names.into_iter().zip(file.kinds) {
                if let Some(place) = all.names.iter().position(|other| *other == name) {
                    all.kinds[place].add(kinds);
                } else {
                    all.names.push(name);
                    all.kinds.push(kinds);
                }
            }
        }
        if let Some((name, _)) = options.types.iter().find(|(name, _)| !all.names.contains(name)) {
            let names: Vec<&str> = all.names.iter().map(String::as_str).collect();
            return Err((
                0,
                format!("`types` names a column `{name}`, and there is none (columns: {})", names.join(", ")),
            ));
        }
        let fields = all.names.into_iter().zip(all.kinds).map(|(name, kinds)| {
            let given = options.types.iter().find(|(given, _)| *given == name);
            let data_type = given.map_or_else(|| kinds.data_type(), |(_, given)| data_type(*given));
            Field::new(name, data_type, true)
        });
        Ok(Self { options: options.clone(), schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())) })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

fn missing<'n>(names: &'n [String], among: &[String]) -> Vec<&'n str> {
    names.iter().filter(|name| !among.contains(name)).map(String::as_str).collect()
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Decodes the rows of a file.
pub(super) struct CsvRows {
    options: CsvOptions,
    /// All columns of the table.
    all: SchemaRef,
    /// The projected columns.
    schema: SchemaRef,
    records: Records,
    /// The number of fields per record; none before the first record.
    width: Option<usize>,
    /// The position of each projected column in this file; none if the file lacks it.
    places: Vec<Option<usize>>,
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
    batch_size: usize,
}

impl CsvRows {
    pub(super) fn new(layout: &CsvLayout, schema: SchemaRef, batch_size: usize) -> Self {
        let is_given = |name: &String| layout.options.types.iter().any(|(given, _)| given == name);
        let columns =
            schema.fields().iter().map(|field| Column::new(field.data_type(), !is_given(field.name()))).collect();
        let (options, all, records) =
            (layout.options.clone(), Arc::clone(&layout.schema), Records::new(&layout.options));
        Self { options, all, schema, records, width: None, places: Vec::new(), columns, rows: 0, bytes: 0, batch_size }
    }

    /// Maps the projected columns to their positions, using the first record.
    fn locate(&mut self) -> Result<usize, Fault> {
        let names = names(&self.records, self.options.header)?;
        if let Some(unknown) = names.iter().find(|name| self.all.field_with_name(name).is_err()) {
            let problem = format!("its column `{unknown}` was in no file when the table was opened");
            return Err(Fault::at(self.records.record_line, problem));
        }
        let place = |name: &String| names.iter().position(|other| other == name);
        self.places = self.schema.fields().iter().map(|field| place(field.name())).collect();
        Ok(*self.width.insert(names.len()))
    }

    fn add(&mut self) -> Result<(), Fault> {
        for ((column, place), field) in self.columns.iter_mut().zip(&self.places).zip(self.schema.fields()) {
            let Some(place) = *place else {
                column.append_null();
                continue;
            };
            let value = self.records.field(place);
            if is_null(&value, &self.options) {
                column.append_null();
            } else if column.append(&value) {
                self.bytes += value.len();
            } else {
                let (name, form) = (field.name(), form_of(&value));
                let problem = if self.options.types.iter().any(|(given, _)| given == name) {
                    format!("`types` declares `{name}` as {}, and this value is {form}", name_of(field.data_type()))
                } else {
                    format!(
                        "`{name}` was inferred as {}, and this value is {form}; {} reads the column \
                         as text",
                        name_of(field.data_type()),
                        as_text(name)
                    )
                };
                return Err(Fault::at(self.records.record_line, problem));
            }
        }
        self.rows += 1;
        Ok(())
    }

    fn batch(&mut self) -> Result<RecordBatch, Fault> {
        let columns = self.columns.iter_mut().map(Column::finish).collect::<Result<Vec<_>, _>>();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        (self.rows, self.bytes) = (0, 0);
        let schema = Arc::clone(&self.schema);
        let batch = columns.and_then(|columns| RecordBatch::try_new_with_options(schema, columns, &options));
        batch.map_err(|e| Fault { line: None, problem: e.to_string() })
    }
}

impl Rows for CsvRows {
    fn read(&mut self, bytes: Option<&[u8]>, batches: &mut VecDeque<RecordBatch>) -> Result<bool, Fault> {
        match bytes {
            Some(bytes) => self.records.push(bytes),
            None => self.records.end(),
        }
        while self.records.advance()? {
            match self.width {
                None => {
                    self.locate()?;
                    if self.options.header {
                        continue;
                    }
                }
                Some(width) => check_width(&self.records, width)?,
            }
            self.add()?;
            if self.rows == self.batch_size || self.bytes > MAX_BATCH_BYTES {
                batches.push_back(self.batch()?);
            }
        }
        if bytes.is_none() && self.rows > 0 {
            batches.push_back(self.batch()?);
        }
        Ok(true)
    }
}
