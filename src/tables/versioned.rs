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
use crate::sink::runs;

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
                return runs_of(context, &objects, matches!(table.format, TableFormat::Runs { all: true })).await;
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

/// The files of the newest run, or of all of them where the sink appends.
async fn runs_of(
    context: &SessionContext,
    objects: &Objects,
    all: bool,
) -> Result<Option<Arc<dyn TableProvider>>, Problem> {
    let place = objects.lock_place();
    let manifests = if all { runs::all(&place).await? } else { runs::latest(&place).await?.into_iter().collect() };
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
