//! The DataFusion session: settings, tables, functions, and the memory available to plans.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use couplet_storage::files::{self, TEMPORARY, lock_temporary, remove_leftovers};
use couplet_storage::objects::DurableLocal;
use datafusion::common::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryLimit, MemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::optimizer::{Analyzer, AnalyzerRule};
use datafusion::prelude::{SessionConfig, SessionContext};
use tempfile::TempDir;
use url::Url;

use crate::bounded_functions;
use crate::literals::ExactLiterals;
use crate::predict::{self, Models};
use crate::tables::Table;
use crate::tables::{self, TableError};
use crate::yielding::YieldingJoins;

/// The default memory of plans, in bytes.
pub const DEFAULT_MEMORY: u64 = 2 << 30;

/// The name prefix of spill folders.
const PREFIX: &str = "couplet-";

/// The number of memory consumers that an out-of-memory error names.
const CONSUMERS_TO_NAME: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// The memory and the spill folder available to plans.
#[derive(Debug)]
pub struct Resources {
    /// Both, in the form that `DataFusion` uses.
    pub runtime: Arc<RuntimeEnv>,
    folder: TempDir,
    /// The lock by which other processes tell the folder of a live process from that of a killed one.
    _lock: Option<File>,
}

impl Resources {
    /// Creates resources with `memory` bytes for plans and a new spill folder in `spill`, which is deleted when this
    /// value is dropped. Also deletes spill folders of killed processes.
    ///
    /// # Errors
    /// A folder that cannot be created.
    pub fn new(memory: u64, spill: &Path) -> Result<Self, DataFusionError> {
        std::fs::create_dir_all(spill)?;
        remove_leftovers(spill, PREFIX, |folder| std::fs::remove_dir_all(folder));
        let make = || -> io::Result<_> {
            let folder = tempfile::Builder::new().prefix(PREFIX).suffix(TEMPORARY).tempdir_in(spill)?;
            let lock = files::open_own(folder.path()).ok().filter(lock_temporary);
            Ok((folder, lock))
        };
        let (mut folder, mut lock) = make()?;
        // Before the lock was taken, another process may have deleted the folder as a leftover.
        while !folder.path().is_dir() {
            (folder, lock) = make()?;
        }
        // No spill limit: a full disk reports an error itself.
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![folder.path().to_owned()]))
            .with_max_temp_directory_size(u64::MAX);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(pool(memory))
            .with_disk_manager_builder(disk)
            // A cached listing would never be refreshed: a file that changes while it is read would go unnoticed, and
            // the shell would not see new files.
            .with_object_list_cache_limit(0)
            .build_arc()?;
        register_local_disk(&runtime);
        Ok(Self { runtime, folder, _lock: lock })
    }

    /// Returns a runtime with the same spill folder and another memory pool, for work whose memory must not grow with
    /// the number of rows.
    ///
    /// # Errors
    /// A folder that cannot be used.
    pub fn with_pool(&self, pool: Arc<dyn MemoryPool>) -> Result<Arc<RuntimeEnv>, DataFusionError> {
        RuntimeEnvBuilder::from_runtime_env(&self.runtime).with_memory_pool(pool).build_arc()
    }

    /// Returns the spill folder. It may also hold other temporary files, which are deleted with this value.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Registers the store that plans use for the local disk, as in the rest of couplet.
#[expect(clippy::missing_panics_doc, reason = "the URL is valid")]
pub fn register_local_disk(runtime: &RuntimeEnv) {
    let root = Url::parse("file:///").expect("it is a URL");
    runtime.register_object_store(&root, Arc::new(DurableLocal::new()));
}

/// Creates a pool that shares `memory` bytes fairly among the consumers that can spill.
#[must_use]
pub fn pool(memory: u64) -> Arc<dyn MemoryPool> {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory), CONSUMERS_TO_NAME))
}

/// Opens a session with the tables and the function `predict`.
///
/// `window` is the number of rows per record batch, and so the number that `predict` scores together. `partitions` is
/// the number of partitions that run in parallel; with one, rows keep the order of the files.
///
/// # Errors
/// All tables whose files are missing or unreadable, not just the first.
pub async fn open(
    listed: &[Table],
    models: Arc<Models>,
    window: usize,
    partitions: usize,
    resources: &Resources,
) -> Result<SessionContext, Vec<TableError>> {
    let mut config =
        SessionConfig::new().with_batch_size(window).with_target_partitions(partitions).with_information_schema(true);
    // Delta tables take this setting from the session.
    config.options_mut().execution.parquet.coerce_int96 = Some(tables::INT96.to_owned());
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![Arc::new(ExactLiterals)];
    rules.extend(Analyzer::new().rules);
    let builder = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(Arc::clone(&resources.runtime))
        .with_default_features()
        .with_analyzer_rules(rules)
        .with_physical_optimizer_rule(Arc::new(YieldingJoins));
    let context = SessionContext::new_with_state(predict::install(builder, models).build());
    if let MemoryLimit::Finite(memory) = resources.runtime.memory_pool.memory_limit() {
        for function in bounded_functions::functions(memory as u64) {
            context.register_udf(function);
        }
    }
    register(&context, listed).await?;
    Ok(context)
}

/// Registers tables in a session.
///
/// # Errors
/// All tables whose files are missing or unreadable, not just the first.
pub async fn register(context: &SessionContext, listed: &[Table]) -> Result<(), Vec<TableError>> {
    let mut errors = Vec::new();
    for table in listed {
        errors.extend(tables::register(context, table).await.err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
