//! Tables that say themselves which files they have: Delta tables by their log, folders of runs by their manifests.
//!
//! A folder is told by what is in it, so that `--table t=out/predictions` reads what a pipeline wrote there, whatever
//! its format.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::SessionContext;

use super::Problem;
use crate::config::{Place, Table, TableFormat};
use crate::delta;
use crate::objects::{Objects, ObjectsError, cause_in};
use crate::sink::runs::{self, Manifest};

/// The folder of a Delta table's log.
const LOG: &str = "_delta_log";

/// The table, if it is one of these kinds.
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
            // Whether the server answers is not told by what the library says.
            is_delta(&objects).await?;
            version
        }
        // What is wrong with a place that cannot be looked at is said by whoever reads it as a plain folder.
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
        None => Err(format!("{place} is not a Delta table: it has no {LOG}").into()),
    }
}

/// Whether the table says itself which files it has.
pub(super) async fn is_versioned(table: &Table) -> Result<bool, Problem> {
    if !may_be(table) {
        return Ok(false);
    }
    let objects = Objects::open(&table.location.place)?;
    Ok(matches!(table.format, TableFormat::Delta { .. } | TableFormat::Runs { .. })
        || is_delta(&objects).await?
        || runs::latest(&objects.lock_place()).await?.is_some())
}

/// Names what is read of the table now, if it says itself which files it has: a version, or runs.
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
        TableFormat::Parquet => !place.is_glob() && place.is_folder() && table.partitions.is_empty(),
        _ => false,
    }
}

async fn is_delta(objects: &Objects) -> Result<bool, ObjectsError> {
    objects.folder(LOG).has_children().await
}

/// The runs that are read of a folder.
pub(super) async fn manifests(objects: &Objects, table: &Table) -> Result<Vec<Manifest>, Problem> {
    let (all, published_in) = match &table.format {
        TableFormat::Runs { all, published_in } => (*all, published_in.as_ref()),
        _ => (false, None),
    };
    let published_in = published_in.map(Objects::open).transpose()?.map(|main| main.lock_place());
    Ok(runs::readable(&objects.lock_place(), all, published_in.as_ref()).await?)
}

/// The files of the newest run, or of all of them where the sink appends.
async fn runs_of(
    context: &SessionContext,
    objects: &Objects,
    table: &Table,
) -> Result<Option<Arc<dyn TableProvider>>, Problem> {
    let manifests = manifests(objects, table).await?;
    let paths = manifests.iter().flat_map(|manifest| manifest.paths(&objects.root));
    let urls = paths.map(|path| match objects.place_of(&path) {
        Place::Local(path) => ListingTableUrl::parse(path.to_string_lossy()),
        Place::Remote(remote) => {
            context.runtime_env().register_object_store(&remote.session_url(), Arc::clone(&objects.store));
            ListingTableUrl::try_new(remote.session_url(), None)
        }
        Place::Hub(_) => unreachable!("no object store is a hub"),
    });
    let described = |e: DataFusionError| match cause_in(&e).filter(|_| matches!(objects.place, Place::Remote(_))) {
        Some(cause) => Problem::from(objects.error(cause)),
        None => Problem::from(format!("{objects}: {}", e.strip_backtrace())),
    };
    let urls = urls.collect::<Result<Vec<_>, _>>().map_err(described)?;
    let Some(newest) = urls.last().cloned() else { return Ok(None) };
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension("");
    let schema = options.infer_schema(&context.state(), &newest).await.map_err(described)?;
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    Ok(Some(Arc::new(ListingTable::try_new(config).map_err(described)?)))
}
