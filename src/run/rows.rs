//! Rows of the training and evaluation stages: a query, checked and read into memory.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::error::ArrowError;
use couplet_storage::words::{closest, counted, grouped};
use couplet_tables::dates::value_texts;
use couplet_tables::source::{check_width, select};
use couplet_train::finetune::Row;
use couplet_train::statistics::labels::GoldLabel;
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;

use super::query_text;
use crate::config::{Pipeline, Query};
use crate::error::{Error, in_file};

/// A query of such a stage.
pub(super) struct Selection<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) context: &'a SessionContext,
    /// `finetune`, `pretrain` or `evaluate`.
    pub(super) section: &'static str,
    pub(super) variables: &'a BTreeMap<String, String>,
}

/// The roles of the columns of labelled rows; `id` is empty if the pipeline names no id.
pub(super) struct Columns<'a> {
    pub(super) id: &'a [String],
    pub(super) text: &'a [String],
    pub(super) label: &'a str,
}

impl Columns<'_> {
    pub(super) fn names(&self) -> Vec<&str> {
        self.text.iter().chain(self.id).map(String::as_str).chain([self.label]).collect()
    }
}

impl Selection<'_> {
    /// Reads all rows of a query, and checks that it has the given columns.
    pub(super) async fn read(&self, query: &Query, columns: &[&str]) -> Result<Vec<RecordBatch>, Error> {
        let sql = query_text(self.pipeline, query, &format!("{}.file", self.section), self.variables)?;
        let (pipeline, section) = (self.pipeline.path.display(), self.section);
        let origin = format!("{pipeline}: the query of [{section}]{}", in_file(query));
        let failed = |e: DataFusionError| Error::sql(origin.clone(), &e, Some(self.context));
        let frame = select(self.context, &sql).await.map_err(failed)?;
        check_width(frame.schema().as_arrow()).map_err(|problem| self.refused(problem))?;
        let names: Vec<String> = frame.schema().fields().iter().map(|field| field.name().clone()).collect();
        if let Some(missing) = columns.iter().find(|column| !names.iter().any(|name| name == *column)) {
            let near = closest(missing, names.iter().map(String::as_str));
            let hint = near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
            return Err(self.refused(format!(
                "the query of [{}] has no column `{missing}`{hint}; it has {}",
                self.section,
                names.join(", ")
            )));
        }
        frame.collect().await.map_err(failed)
    }

    /// Reads the labelled rows of a query. Texts and ids must not be NULL.
    pub(super) async fn labelled_rows(&self, query: &Query, columns: &Columns<'_>) -> Result<Vec<Row>, Error> {
        let batches = self.read(query, &columns.names()).await?;
        self.refuse_nulls(&batches, columns.text, "filter them out in the query")?;
        let fix = "each row needs an id, by which rows are held out: filter them out in the query, or name another \
                    column";
        self.refuse_nulls(&batches, columns.id, fix)?;
        let mut rows = Vec::new();
        for batch in batches {
            rows.append(&mut self.labelled(&batch, columns, rows.len() + 1..)?);
        }
        Ok(rows)
    }

    /// Reads the texts of a query, which must not be NULL.
    pub(super) async fn plain_texts(&self, query: &Query, column: &str) -> Result<Vec<String>, Error> {
        let batches = self.read(query, &[column]).await?;
        self.refuse_nulls(&batches, &[column], "filter them out in the query")?;
        let mut texts = Vec::new();
        for batch in batches {
            texts.append(&mut self.texts(&batch, column)?);
        }
        Ok(texts)
    }

    /// Rejects columns with NULLs, and reports how many rows have them.
    fn refuse_nulls(&self, batches: &[RecordBatch], columns: &[impl AsRef<str>], fix: &str) -> Result<(), Error> {
        for column in columns.iter().map(AsRef::as_ref) {
            let (mut rows, mut null) = (0, 0);
            for batch in batches {
                rows += batch.num_rows();
                null += self.column(batch, column)?.logical_null_count();
            }
            if null > 0 {
                return Err(self.refused(format!(
                    "column `{column}` of [{}] is NULL in {} of {}; {fix}",
                    self.section,
                    grouped(null as u64),
                    counted(rows as u64, "row")
                )));
            }
        }
        Ok(())
    }

    /// Returns the texts and labels of a batch without NULL texts. `numbers` are the positions of its rows in the
    /// query.
    pub(super) fn labelled(
        &self,
        batch: &RecordBatch,
        columns: &Columns,
        numbers: impl IntoIterator<Item = usize>,
    ) -> Result<Vec<Row>, Error> {
        let Columns { id, text, label } = columns;
        let pair = text.get(1).map(|name| self.texts(batch, name)).transpose()?;
        let mut pair = pair.map(Vec::into_iter);
        let ids: Vec<_> = id.iter().map(|name| self.values(batch, name)).collect::<Result<_, _>>()?;
        let id = |row: usize| {
            ids.iter().map(|values| values[row].clone().unwrap_or_else(|| "NULL".to_owned())).collect::<Vec<_>>()
        };
        let texts = self.texts(batch, &text[0])?;
        let labels = gold_labels(&self.column(batch, label)?);
        let labels = labels.map_err(|e| self.refused(format!("column `{label}`: {e}")))?;
        let rows = texts.into_iter().zip(labels).zip(numbers).enumerate();
        let rows = rows.map(|(i, ((text, label), number))| {
            let text_pair = pair.as_mut().and_then(Iterator::next);
            Row { number, id: id(i), text, text_pair, label }
        });
        Ok(rows.collect())
    }

    pub(super) fn refused(&self, problem: String) -> Error {
        Error::Source { pipeline: self.pipeline.path.display().to_string(), problem }
    }

    /// Returns the texts of a column without NULLs.
    fn texts(&self, batch: &RecordBatch, column: &str) -> Result<Vec<String>, Error> {
        let values = self.column(batch, column)?;
        let texts = cast(&values, &DataType::Utf8View).map_err(|e| self.refused(format!("column `{column}`: {e}")))?;
        let texts = texts.as_string_view();
        debug_assert_eq!(texts.null_count(), 0);
        Ok(texts.iter().flatten().map(str::to_owned).collect())
    }

    /// Returns the values of a column as text; `None` for NULL.
    pub(super) fn values(&self, batch: &RecordBatch, name: &str) -> Result<Vec<Option<String>>, Error> {
        value_texts(&self.column(batch, name)?).map_err(|e| self.refused(format!("column `{name}`: {e}")))
    }

    fn column(&self, batch: &RecordBatch, name: &str) -> Result<ArrayRef, Error> {
        batch.column_by_name(name).cloned().ok_or_else(|| self.refused(format!("no column `{name}`")))
    }
}

/// Returns the labels of a column.
pub(crate) fn gold_labels(values: &ArrayRef) -> Result<Vec<GoldLabel>, ArrowError> {
    Ok(match values.data_type() {
        DataType::Boolean => {
            values.as_boolean().iter().map(|label| label.map_or(GoldLabel::Null, GoldLabel::from)).collect()
        }
        data_type if data_type.is_integer() => {
            let values = cast(values, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>();
            values.iter().map(|label| label.map_or(GoldLabel::Null, GoldLabel::Integer)).collect()
        }
        data_type if data_type.is_numeric() => {
            let values = cast(values, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            values.iter().map(|label| label.map_or(GoldLabel::Null, GoldLabel::Float)).collect()
        }
        DataType::List(_) | DataType::LargeList(_) => {
            let lists = cast(values, &DataType::new_list(DataType::Utf8View, true))?;
            let names = |list: ArrayRef| list.as_string_view().iter().flatten().map(str::to_owned).collect();
            lists
                .as_list::<i32>()
                .iter()
                .map(|list| list.map_or(GoldLabel::Null, |l| GoldLabel::Texts(names(l))))
                .collect()
        }
        _ => {
            let values = cast(values, &DataType::Utf8View)?;
            let texts = values.as_string_view().iter();
            texts.map(|label| label.map_or(GoldLabel::Null, |l| GoldLabel::Text(l.to_owned()))).collect()
        }
    })
}
