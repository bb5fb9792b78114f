//! The table provider for one or more files. For each query it lists the files, skips those whose partition folders a
//! filter excludes, and plans the scan.

use std::fmt;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use couplet_storage::objects::Objects;
use couplet_storage::place::Place;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue, Statistics, project_schema};
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::listing::helpers::expr_applicable_for_cols;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchemaBuilder;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize, de::Error as _};

use super::diagnose::Broken;
use super::files::Files;
use super::format::{compression_of, ending, endings, file_format, other_endings};
use super::text::{Layout, TextSource};
use super::{Problem, TableError, hive};
use super::{Table, TableFormat};

/// The reader of the files.
enum Reader {
    Binary(Arc<dyn FileFormat>),
    Text(Arc<Layout>),
}

/// A table backed by files.
pub struct FileTable {
    table: Table,
    /// The paths of its files in their store; none if the files are listed for each query.
    named: Option<Vec<Key>>,
    reader: Reader,
    /// The schema of the files, without partition columns.
    file_schema: SchemaRef,
    /// The partition columns from folder names.
    partitions: Vec<FieldRef>,
    schema: SchemaRef,
}

impl fmt::Debug for FileTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileTable").field("table", &self.table).finish_non_exhaustive()
    }
}

impl FileTable {
    /// Creates a table of text files.
    pub(super) fn of_text(table: &Table, files: &Files, layout: Layout) -> Result<Self> {
        let schema = Arc::clone(layout.schema());
        Self::new(table, files, Reader::Text(Arc::new(layout)), &schema)
    }

    /// Creates a table of binary files that are read with this schema.
    pub(super) fn of_binary(
        table: &Table,
        files: &Files,
        format: Arc<dyn FileFormat>,
        schema: &SchemaRef,
    ) -> Result<Self> {
        Self::new(table, files, Reader::Binary(format), schema)
    }

    /// Creates a table of the Parquet files at these paths in the store of the table's location. A missing file is an
    /// error, which DataFusion's `ListingTable` would skip silently.
    #[must_use]
    pub fn of_named(table: &Table, paths: Vec<Key>, schema: &SchemaRef) -> Self {
        Self {
            table: table.clone(),
            named: Some(paths),
            reader: Reader::Binary(file_format(&TableFormat::Parquet)),
            file_schema: Arc::clone(schema),
            partitions: Vec::new(),
            schema: Arc::clone(schema),
        }
    }

    fn new(table: &Table, files: &Files, reader: Reader, schema: &SchemaRef) -> Result<Self> {
        let partitions = partitions(table, files)?;
        // A partition column that is also in the files is a single column: its value comes from the folder name, its
        // type from the files.
        let partitions = partitions.into_iter().map(|name| {
            let in_files = schema.field_with_name(&name).ok().map(Field::data_type);
            let data_type = in_files.filter(|data_type| data_type.is_primitive() || data_type.is_string());
            Arc::new(Field::new(name, data_type.cloned().unwrap_or(DataType::Utf8), true))
        });
        let partitions: Vec<FieldRef> = partitions.collect();
        let is_partition = |field: &&FieldRef| partitions.iter().any(|partition| partition.name() == field.name());
        let fields = schema.fields().iter().filter(|field| !is_partition(field)).cloned().collect::<Vec<_>>();
        let all = fields.iter().chain(&partitions).cloned().collect::<Vec<_>>();
        let with = |fields| Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
        let (table, file_schema, schema) = (table.clone(), with(fields), with(all));
        Ok(Self { table, named: None, reader, file_schema, partitions, schema })
    }

    /// Returns the schema of the files, without partition columns.
    pub(super) fn file_schema(&self) -> &SchemaRef {
        &self.file_schema
    }

    /// Returns the names of the partition columns.
    pub(super) fn partition_names(&self) -> Vec<String> {
        self.partitions.iter().map(|field| field.name().clone()).collect()
    }

    /// Returns the location of the table if `file` is one of the files that it reads, or would read once it exists.
    #[must_use]
    pub fn place_that_reads(&self, file: &Place) -> Option<Place> {
        let place = &self.table.location.place;
        if let Some(paths) = &self.named {
            let objects = Objects::open(place).ok()?;
            return paths.iter().map(|path| objects.place_of(path)).find(|place| place.covers(file));
        }
        let (place, is_folder) = match place.local() {
            Some(path) => (Place::Local(if path.is_dir() { path.join("") } else { path.to_owned() }), path.is_dir()),
            None => (place.clone(), place.is_folder()),
        };
        let (format, name) = (&self.table.format, file.name());
        let endings = [endings(format), other_endings(format)];
        let is_meant = !is_folder || endings.iter().any(|endings| endings.contains(&ending(&name).as_str()));
        (is_meant && place.covers(file)).then_some(place)
    }

    async fn files(&self, runtime: &RuntimeEnv) -> Result<Files> {
        let found = match &self.named {
            Some(paths) => Files::named(runtime, &self.table.location.place, paths).await,
            None => Files::find(runtime, &self.table).await,
        };
        found.map_err(|problem: Problem| DataFusionError::External(Box::new(TableError::new(&self.table, problem))))
    }

    /// Adds the statistics of a file.
    async fn measured(
        &self,
        state: &dyn Session,
        format: &Arc<dyn FileFormat>,
        files: &Files,
        file: PartitionedFile,
    ) -> Result<PartitionedFile> {
        let (store, schema) = (&files.objects.store, Arc::clone(&self.file_schema));
        let measured = format.infer_stats(state, store, schema, &file.object_meta).await?;
        Ok(file.with_statistics(Arc::new(measured)))
    }

    /// Returns the files with their partition values, without those that the filters exclude.
    fn partitioned(&self, state: &dyn Session, filters: &[Expr], files: &Files) -> Result<Vec<PartitionedFile>> {
        let names = self.partition_names();
        let mut rows = Vec::with_capacity(files.list.len());
        for meta in &files.list {
            let values = hive::values(&files.root, &meta.location, &names)
                .ok_or_else(|| outside_partitions(files, meta, &names))?;
            let values = values.into_iter().zip(&self.partitions).map(|(value, field)| {
                ScalarValue::Utf8(value).cast_to(field.data_type()).map_err(|_| {
                    let problem = format!(
                        "the value of `{}` in its folder name is not a valid {}",
                        field.name(),
                        field.data_type()
                    );
                    broken(files, meta, problem)
                })
            });
            rows.push(
                PartitionedFile::new_from_meta(meta.clone()).with_partition_values(values.collect::<Result<_>>()?),
            );
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let filters = filters.iter().filter(|filter| !names.is_empty() && expr_applicable_for_cols(&names, filter));
        let schema = Arc::new(Schema::new(self.partitions.clone()));
        let df_schema = DFSchema::try_from(Arc::clone(&schema))?;
        for filter in filters {
            // A filter that cannot be evaluated here is evaluated on the rows.
            let Ok(filter) = state.create_physical_expr(filter.clone(), &df_schema) else { continue };
            if rows.is_empty() {
                break;
            }
            let column =
                |index: usize| ScalarValue::iter_to_array(rows.iter().map(|row| row.partition_values[index].clone()));
            let columns = (0..names.len()).map(column).collect::<Result<Vec<_>>>()?;
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
            let keeps = filter.evaluate(&batch)?.into_array(rows.len())?;
            let keeps = cast(&keeps, &DataType::Boolean)?;
            let mut keeps = keeps.as_boolean().iter();
            rows.retain(|_| keeps.next().flatten().unwrap_or(false));
        }
        Ok(rows)
    }
}

/// The JSON form of a table for another process.
#[derive(Serialize, Deserialize)]
struct SerializedTable<L> {
    table: Table,
    named: Option<Vec<String>>,
    /// None for binary files.
    layout: Option<L>,
    file_schema: SchemaRef,
    partitions: Vec<FieldRef>,
    schema: SchemaRef,
}

impl FileTable {
    /// Serializes the table to JSON. The files are not part of it: the receiver lists them again.
    ///
    /// # Errors
    /// A schema or an option without a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let layout = match &self.reader {
            Reader::Binary(_) => None,
            Reader::Text(layout) => Some(&**layout),
        };
        serde_json::to_vec(&SerializedTable {
            table: self.table.clone(),
            named: self.named.as_ref().map(|paths| paths.iter().map(Key::to_string).collect()),
            layout,
            file_schema: Arc::clone(&self.file_schema),
            partitions: self.partitions.clone(),
            schema: Arc::clone(&self.schema),
        })
    }

    /// Deserializes a table sent by another process.
    ///
    /// # Errors
    /// JSON that is not of such a table.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        let SerializedTable { table, named, layout, file_schema, partitions, schema } =
            serde_json::from_slice::<SerializedTable<Layout>>(json)?;
        let named = named.map(|paths| paths.into_iter().map(Key::parse).collect::<Result<_, _>>());
        let named = named.transpose().map_err(serde_json::Error::custom)?;
        let reader = match layout {
            Some(layout) => Reader::Text(Arc::new(layout)),
            None => Reader::Binary(file_format(&table.format)),
        };
        Ok(Self { table, named, reader, file_schema, partitions, schema })
    }
}

/// Returns the names of the partition columns of the files.
fn partitions(table: &Table, files: &Files) -> Result<Vec<String>> {
    if table.partitions.is_empty() {
        return hive::columns(&files.root, &files.list).map_err(|(one, other)| {
            let one = hive::below(&files.root, one);
            let problem =
                format!("its folders name other columns than those of {one}; all files of a table must have the same");
            let file = files.objects.place_of(other).to_string();
            DataFusionError::External(Box::new(Broken { file, line: None, problem }))
        });
    }
    let lacks =
        |meta: &&object_store::ObjectMeta| hive::values(&files.root, &meta.location, &table.partitions).is_none();
    match files.list.iter().find(lacks) {
        Some(meta) => Err(outside_partitions(files, meta, &table.partitions)),
        None => Ok(table.partitions.clone()),
    }
}

fn outside_partitions(files: &Files, meta: &object_store::ObjectMeta, partitions: &[String]) -> DataFusionError {
    let folders: Vec<_> = partitions.iter().map(|name| format!("{name}=…/")).collect();
    let folders = folders.concat();
    broken(files, meta, format!("it is not in a folder {folders}, as the partitions of the table are"))
}

fn broken(files: &Files, meta: &object_store::ObjectMeta, problem: String) -> DataFusionError {
    let file = files.objects.place_of(&meta.location).to_string();
    DataFusionError::External(Box::new(Broken { file, line: None, problem }))
}

#[async_trait::async_trait]
impl TableProvider for FileTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let files = self.files(state.runtime_env()).await?;
        let mut list = self.partitioned(state, filters, &files)?;
        if list.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let mut statistics = Statistics::new_unknown(&self.schema);
        if let Reader::Binary(format) = &self.reader {
            let concurrency = state.config_options().execution.meta_fetch_concurrency.get();
            let mut measured = Vec::with_capacity(list.len());
            for file in list {
                measured.push(self.measured(state, format, &files, file).boxed());
            }
            list = stream::iter(measured).buffered(concurrency).try_collect().await?;
            let all = list.iter().filter_map(|file| file.statistics.as_deref());
            statistics = Statistics::try_merge_iter(all, &self.schema)?;
        } else {
            let bytes = list.iter().map(|file| file.object_meta.size).sum::<u64>();
            statistics.total_byte_size = Precision::Inexact(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        let table_schema = TableSchemaBuilder::new(Arc::clone(&self.file_schema));
        let table_schema = table_schema.with_table_partition_cols(self.partitions.clone()).build();
        let is_compressed =
            |file: &PartitionedFile| compression_of(file.path().filename().unwrap_or_default()).is_compressed();
        let source = match &self.reader {
            Reader::Binary(format) => format.file_source(table_schema),
            Reader::Text(layout) => {
                let is_divisible = !list.iter().any(is_compressed);
                Arc::new(TextSource::new(Arc::clone(layout), files.objects.clone(), is_divisible, table_schema))
            }
        };
        let groups = FileGroup::new(list).split_files(state.config().target_partitions());
        let scan = FileScanConfigBuilder::new(files.store, source)
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        match &self.reader {
            Reader::Binary(format) => format.create_physical_plan(state, scan).await,
            Reader::Text(_) => Ok(DataSourceExec::from_data_source(scan)),
        }
    }
}
