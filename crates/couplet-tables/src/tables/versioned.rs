//! Tables that list their own files: Delta tables in their log, folders of runs in their manifests.
//!
//! The kind of a folder is detected from its contents, so that `--table t=out/predictions` reads the output of a
//! pipeline in any format.

use std::sync::Arc;

use couplet_storage::objects::{Objects, ObjectsError, Trouble, cause_in};
use couplet_storage::place::Place;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::datasource::physical_plan::parquet::transform_schema_to_view;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::files::{CONCURRENT_READS, Files, parquet_schema};
use super::provider::FileTable;
use super::{Problem, TableError, presented};
use super::{Table, TableFormat};
use crate::delta;
use crate::sink::runs::{self, Manifest};
use crate::types::{Columns, FileSchema};

/// Opens the table if it is of one of these kinds.
pub(super) async fn provider(
    context: &SessionContext,
    table: &Table,
) -> Result<Option<Arc<dyn TableProvider>>, Problem> {
    let place = &table.location.place;
    if !may_be(table) {
        return Ok(None);
    }
    let objects = Objects::open(place)?;
    let version = match table.format {
        TableFormat::Delta { version } => {
            // This reports an unreachable server, which the errors of the Delta library do not.
            is_delta(&objects).await?;
            version
        }
        // If the location cannot be inspected, the code that reads it as a plain folder reports the problem.
        _ => match is_delta(&objects).await {
            Ok(true) => None,
            Ok(false) => {
                return runs_of(context, &objects, table).await;
            }
            Err(_) => return Ok(None),
        },
    };
    match delta::open(&objects, version).await? {
        Some(delta) => Ok(Some(delta::provider(&objects, &delta, context).await?)),
        None => Err(format!("{place} is not a Delta table: it has no {}", delta::LOG).into()),
    }
}

/// Returns true if the table lists its own files.
pub(super) async fn is_versioned(table: &Table) -> Result<bool, Problem> {
    if !may_be(table) {
        return Ok(false);
    }
    let objects = Objects::open(&table.location.place)?;
    Ok(matches!(table.format, TableFormat::Delta { .. } | TableFormat::Runs { .. })
        || is_delta(&objects).await?
        || runs::latest(&objects.lock_place()).await?.is_some())
}

/// Returns the current version of a table that lists its own files: the Delta version, or the names of the runs.
pub(super) async fn version(table: &Table) -> Result<Option<String>, Problem> {
    if !is_versioned(table).await? {
        return Ok(None);
    }
    let objects = Objects::open(&table.location.place)?;
    let version = match table.format {
        TableFormat::Delta { version } => version,
        _ => None,
    };
    if let Some(delta) = delta::open(&objects, version).await? {
        return Ok(Some(format!("{objects}@{}", delta.version().unwrap_or_default())));
    }
    let runs: Vec<_> = manifests(&objects, table).await?.into_iter().map(|manifest| manifest.folder()).collect();
    Ok(Some(format!("{objects} {}", runs.join(" "))))
}

fn may_be(table: &Table) -> bool {
    let place = &table.location.place;
    match table.format {
        TableFormat::Delta { .. } | TableFormat::Runs { .. } => true,
        TableFormat::Parquet => {
            // An existing folder is taken literally, even if its name has glob characters.
            let exists = matches!(place, Place::Local(path) if path.is_dir());
            (exists || !place.is_glob()) && place.is_folder() && table.partitions.is_empty()
        }
        _ => false,
    }
}

async fn is_delta(objects: &Objects) -> Result<bool, ObjectsError> {
    objects.folder(delta::LOG).has_children().await
}

/// Returns the manifests of the readable runs in a folder.
pub(super) async fn manifests(objects: &Objects, table: &Table) -> Result<Vec<Manifest>, Problem> {
    let (all, published_in) = match &table.format {
        TableFormat::Runs { all, published_in } => (*all, published_in.as_ref()),
        _ => (false, None),
    };
    let published_in = published_in.map(Objects::open).transpose()?.map(|main| main.lock_place());
    Ok(runs::readable(&objects.lock_place(), all, published_in.as_ref()).await?)
}

fn described(objects: &Objects, error: &DataFusionError) -> Problem {
    match cause_in(error).filter(|_| matches!(objects.place, Place::Remote(_))) {
        Some(cause) => objects.error(cause).into(),
        None => Problem { text: format!("{objects}: {}", error.strip_backtrace()), trouble: Trouble::of(error) },
    }
}

/// Opens the files of the newest run, or of all runs if the sink appends.
async fn runs_of(
    context: &SessionContext,
    objects: &Objects,
    table: &Table,
) -> Result<Option<Arc<dyn TableProvider>>, Problem> {
    let manifests = manifests(objects, table).await?;
    let paths: Vec<_> = manifests.iter().flat_map(|manifest| manifest.paths(&objects.root)).collect();
    if paths.is_empty() {
        return Ok(None);
    }
    let described = |e: DataFusionError| described(objects, &e);
    let files = Files::named(&context.runtime_env(), &table.location.place, &paths).await?;
    let schemas = files.schemas(&context.state(), &TableFormat::Parquet).await.map_err(described)?;
    let columns = Columns::of(&schemas).map_err(Problem::from)?;
    let read = Arc::new(transform_schema_to_view(&columns.schema));
    let provider = Arc::new(FileTable::of_named(table, paths, &read));
    presented(context, provider, &columns, &read, std::iter::empty()).map(Some).map_err(described)
}

/// Reads the schemas of Parquet files.
async fn schemas_of(
    objects: &Objects,
    paths: &[Path],
    footers: &Arc<FileMetadataCache>,
) -> Result<Vec<FileSchema>, DataFusionError> {
    let read = paths.iter().map(|path| async move {
        let meta = objects.store.head(path).await?;
        parquet_schema(footers, &objects.store, &meta, objects.place_of(path).to_string()).await
    });
    futures::stream::iter(read.collect::<Vec<_>>()).buffered(CONCURRENT_READS).try_collect().await
}

/// Returns the schemas of the complete runs in a folder, one per file.
///
/// # Errors
/// A location, a manifest or a footer that cannot be read.
pub async fn columns_of_runs(objects: &Objects) -> Result<Vec<FileSchema>, TableError> {
    let failed =
        |problem: Problem| TableError { table: objects.to_string(), problem: problem.text, trouble: problem.trouble };
    let manifests = runs::all(&objects.lock_place()).await.map_err(|e| failed(e.into()))?;
    let paths: Vec<_> = manifests.iter().flat_map(|manifest| manifest.paths(&objects.root)).collect();
    let footers = RuntimeEnv::default().cache_manager.get_file_metadata_cache();
    schemas_of(objects, &paths, &footers).await.map_err(|e| failed(described(objects, &e)))
}
