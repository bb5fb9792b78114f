//! Opens the places that a plan names on the machine that executes it, with the settings and credentials there.

use std::sync::Arc;

use couplet_storage::objects::Objects;
use couplet_storage::place;
use couplet_tables::session::register_local_disk;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use object_store::ObjectStore;
use url::Url;

/// Opens a bucket when a plan first names it.
#[derive(Debug, Default)]
struct Stores {
    known: DefaultObjectStoreRegistry,
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.known.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.known.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if let Ok(known) = self.known.get_store(url) {
            return Ok(known);
        }
        let unknown = |problem: String| DataFusionError::Execution(format!("{url}: {problem}"));
        // Azure's account follows an `@`, which sessions write as a dot. A container's name contains no dot.
        let text = match url.scheme() {
            "abfs" | "abfss" => url.as_str().replacen('.', "@", 1),
            _ => url.as_str().to_owned(),
        };
        let place = place::table_place(&text).map_err(unknown)?;
        let store = Objects::open(&place).map_err(|e| DataFusionError::External(Box::new(e)))?.store;
        self.known.register_store(url, Arc::clone(&store));
        Ok(store)
    }
}

/// Builds a runtime for plans that can name any place.
pub(super) fn runtime(builder: RuntimeEnvBuilder) -> Result<Arc<RuntimeEnv>> {
    let runtime = builder.with_object_store_registry(Arc::new(Stores::default())).build_arc()?;
    register_local_disk(&runtime);
    Ok(runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_opened_when_it_is_named() {
        let runtime = runtime(RuntimeEnvBuilder::new()).unwrap();
        for url in ["file:///tmp/a.parquet", "s3://bucket/a/b.parquet", "abfss://c.account.dfs.core.windows.net/a"] {
            let found = runtime.object_store_registry.get_store(&Url::parse(url).unwrap());
            assert!(found.is_ok(), "{url}: {:?}", found.err());
        }
        assert!(runtime.object_store_registry.get_store(&Url::parse("ftp://host/a").unwrap()).is_err());
    }
}
