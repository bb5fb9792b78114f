//! Makes executors read only the file versions that were listed when the plan was made.
//!
//! A scheduler lists the files of a table, and each executor reads them later. If a file is replaced in between or
//! while it is read, the tasks would see different versions. So a plan carries the size and modification time of each
//! file, and an executor that finds other values fails its task.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileOpener, FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, PhysicalExpr};
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// The tolerance for modification times: servers round them, and not always consistently.
const TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// Rewrites the scans of a plan so that they read only the listed version of each file.
///
/// # Errors
/// A store that cannot be opened.
pub(super) fn only_listed(plan: Arc<dyn ExecutionPlan>, context: &TaskContext) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| {
        let scan = node.downcast_ref::<DataSourceExec>();
        let Some(scan) = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>()) else {
            return Ok(Transformed::no(node));
        };
        let mut scan = scan.clone();
        let runtime = context.runtime_env();
        let store = runtime.object_store(&scan.object_store_url)?;
        let files = scan.file_groups.iter().flat_map(FileGroup::iter).map(|file| file.object_meta.clone());
        let store: Arc<dyn ObjectStore> = Arc::new(ListedStore::new(store, files));
        scan.file_source = if let Some(parquet) = scan.file_source.downcast_ref::<ParquetSource>() {
            let footers = runtime.cache_manager.get_file_metadata_cache();
            let factory = CachedParquetFileReaderFactory::new(store, footers);
            Arc::new(parquet.clone().with_parquet_file_reader_factory(Arc::new(factory)))
        } else {
            Arc::new(ListedSource { source: Arc::clone(&scan.file_source), store })
        };
        Ok(Transformed::yes(DataSourceExec::from_data_source(scan) as Arc<dyn ExecutionPlan>))
    });
    plan.data()
}

/// A store that refuses to read files in another version than the listed one.
#[derive(Debug)]
struct ListedStore {
    store: Arc<dyn ObjectStore>,
    files: HashMap<Path, (u64, DateTime<Utc>)>,
}

impl ListedStore {
    fn new(store: Arc<dyn ObjectStore>, files: impl Iterator<Item = ObjectMeta>) -> Self {
        Self { store, files: files.map(|meta| (meta.location, (meta.size, meta.last_modified))).collect() }
    }

    fn check(&self, found: &ObjectMeta) -> object_store::Result<()> {
        let Some((size, modified)) = self.files.get(&found.location) else { return Ok(()) };
        if *size == found.size && (*modified - found.last_modified).abs() <= TOLERANCE {
            return Ok(());
        }
        let problem =
            format!("{} was replaced after the query was planned; run the same command again", found.location);
        Err(Error::Precondition { path: found.location.to_string(), source: problem.into() })
    }
}

impl fmt::Display for ListedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for ListedStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let found = self.store.get_opts(location, options).await?;
        self.check(&found.meta)?;
        Ok(found)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.store.delete_stream(locations)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// A file source that reads from its own store. Parquet sources get their store in another way.
struct ListedSource {
    source: Arc<dyn FileSource>,
    store: Arc<dyn ObjectStore>,
}

impl FileSource for ListedSource {
    fn create_file_opener(
        &self,
        _: Arc<dyn ObjectStore>,
        scan: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        self.source.create_file_opener(Arc::clone(&self.store), scan, partition)
    }

    fn table_schema(&self) -> &TableSchema {
        self.source.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self { source: self.source.with_batch_size(batch_size), store: Arc::clone(&self.store) })
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.source.filter()
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.source.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.source.metrics()
    }

    fn file_type(&self) -> &str {
        self.source.file_type()
    }

    fn fmt_extra(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt_extra(kind, f)
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.source.apply_expressions(f)
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_file_is_read_only_as_it_was_listed() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (file, other) = (Path::from("t.csv"), Path::from("other.csv"));
        for path in [&file, &other] {
            store.put(path, "id\n1\n".into()).await.unwrap();
        }
        let meta = store.head(&file).await.unwrap();
        let listed = |meta: ObjectMeta| ListedStore::new(Arc::clone(&store), [meta].into_iter());
        let is_read = async |listed: ListedStore| listed.get_range(&file, 0..2).await;
        is_read(listed(meta.clone())).await.unwrap();
        // Times of a listing may be finer than those of a response.
        is_read(listed(ObjectMeta { last_modified: meta.last_modified + TOLERANCE, ..meta.clone() })).await.unwrap();
        let older = ObjectMeta { last_modified: meta.last_modified - TimeDelta::seconds(2), ..meta.clone() };
        let smaller = ObjectMeta { size: meta.size - 1, ..meta.clone() };
        for replaced in [older, smaller] {
            let error = is_read(listed(replaced)).await.unwrap_err().to_string();
            assert!(error.contains("t.csv was replaced after the query was planned"), "{error}");
        }
        listed(meta).get(&other).await.unwrap();
    }
}
