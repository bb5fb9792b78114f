//! Tables that SQL names by their path: `SELECT * FROM 'out/predictions.parquet'`.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use couplet_storage::objects::Trouble;
use datafusion::catalog::{DynamicFileCatalog, TableProvider, UrlTableFactory};
use datafusion::common::{DataFusionError, Result};
use datafusion::prelude::SessionContext;

use super::{Table, table_from_uri};
use super::{TableError, open};

/// Lets SQL read the files, globs and folders that it names in quotation marks, local or in a bucket.
///
/// This is meant for interactive SQL. A pipeline declares its inputs under `[tables]`.
#[must_use]
pub fn enable_places(context: SessionContext) -> SessionContext {
    let session_id = context.session_id();
    let listed = Arc::clone(context.state().catalog_list());
    let opened = Arc::new(Opened::default());
    // The original session opens the tables, so that no table's catalogs contain the table itself.
    let places = Arc::new(Places { context: context.clone(), opened: Arc::clone(&opened) });
    let catalogs = Arc::new(DynamicFileCatalog::new(listed, places));
    // The catalogs exist already. A newly created default catalog would be empty.
    let config = context.copied_config().with_extension(opened).with_create_default_catalog_and_schema(false);
    let builder = context.into_state_builder().with_session_id(session_id).with_config(config);
    builder.with_catalog_list(catalogs).build().into()
}

/// The tables that SQL has named by path so far.
#[derive(Default)]
pub(super) struct Opened(Mutex<Vec<Table>>);

impl Opened {
    pub(super) fn of(context: &SessionContext) -> Vec<Table> {
        let opened = context.state_ref().read().config().get_extension::<Self>();
        opened.map(|opened| opened.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }
}

/// Returns true if SQL in this session may name tables by path: in `couplet query`, but not in a pipeline.
#[must_use]
pub fn takes_places(context: &SessionContext) -> bool {
    context.state_ref().read().config().get_extension::<Opened>().is_some()
}

/// Returns true if a name in SQL is a path rather than the name of a table. A folder in the current directory is
/// written `'out/'`.
#[must_use]
pub fn is_place(name: &str) -> bool {
    name.contains(['/', '.', '*'])
}

struct Places {
    context: SessionContext,
    opened: Arc<Opened>,
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl UrlTableFactory for Places {
    async fn try_new(&self, url: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !is_place(url) {
            return Ok(None);
        }
        let failed = |e: TableError| DataFusionError::External(Box::new(e));
        let refused = |problem| failed(TableError { table: url.to_owned(), problem, trouble: Trouble::Other });
        let table = Table { name: url.to_owned(), ..table_from_uri("place", url).map_err(refused)? };
        let provider = open(&self.context, &table).await.map_err(failed)?;
        let mut opened = self.opened.0.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|other| other.name != table.name);
        opened.push(table);
        Ok(Some(provider))
    }
}
