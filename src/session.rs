//! The DataFusion session: settings, tables, functions, and the memory that plans may use.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

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
use crate::config::Table;
use crate::files;
use crate::files::{TEMPORARY, hold, remove_remains};
use crate::literals::ExactLiterals;
use crate::objects::DurableLocal;
use crate::predict::{self, Models};
use crate::tables::{self, TableError};
use crate::yielding::YieldingJoins;

/// Begins the name of a folder for what does not fit into memory.
const PREFIX: &str = "couplet-";

/// Consumers of memory that an error about too little of it names.
const CONSUMERS_TO_NAME: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// What plans may use besides the processors: memory, and a folder for what does not fit into it.
#[derive(Debug)]
pub struct Resources {
    /// Both, as `DataFusion` takes them.
    pub runtime: Arc<RuntimeEnv>,
    folder: TempDir,
    /// Tells the folder of a live process from that of a killed one.
    _lock: Option<File>,
}

impl Resources {
    /// Gives plans `memory` bytes and a new folder in `spill`, which goes with this value; removes what killed
    /// processes left there.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new(memory: u64, spill: &Path) -> Result<Self, DataFusionError> {
        std::fs::create_dir_all(spill)?;
        remove_remains(spill, PREFIX, |folder| std::fs::remove_dir_all(folder));
        let make = || -> io::Result<_> {
            let folder = tempfile::Builder::new().prefix(PREFIX).suffix(TEMPORARY).tempdir_in(spill)?;
            let lock = files::open_own(folder.path()).ok().filter(hold);
            Ok((folder, lock))
        };
        let (mut folder, mut lock) = make()?;
        // Another process that began before it was locked took it for a dead one's.
        while !folder.path().is_dir() {
            (folder, lock) = make()?;
        }
        // The disk itself says when it is full.
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![folder.path().to_owned()]))
            .with_max_temp_directory_size(u64::MAX);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(pool(memory))
            .with_disk_manager_builder(disk)
            // What a folder held when it was listed first would be what it holds for good: a file that changes while it
            // is read would not be noticed, and the shell would not see what comes.
            .with_object_list_cache_limit(0)
            .build_arc()?;
        register_local_disk(&runtime);
        Ok(Self { runtime, folder, _lock: lock })
    }

    /// The same folder with another pool, for work whose memory must not grow with its rows.
    ///
    /// # Errors
    /// A folder that cannot be used.
    pub fn with_pool(&self, pool: Arc<dyn MemoryPool>) -> Result<Arc<RuntimeEnv>, DataFusionError> {
        RuntimeEnvBuilder::from_runtime_env(&self.runtime).with_memory_pool(pool).build_arc()
    }

    /// The folder, for files that go when this value does.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Has plans read the local disk as everything else here does.
pub(crate) fn register_local_disk(runtime: &RuntimeEnv) {
    let root = Url::parse("file:///").expect("it is a URL");
    runtime.register_object_store(&root, Arc::new(DurableLocal::new()));
}

/// A pool that shares `memory` bytes fairly among those that can spill.
pub(crate) fn pool(memory: u64) -> Arc<dyn MemoryPool> {
    let memory = usize::try_from(memory).unwrap_or(usize::MAX);
    Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory), CONSUMERS_TO_NAME))
}

/// Opens a session in which SQL sees the tables and can call `predict`.
///
/// `window` is the number of rows of a record batch, and so of what `predict` scores together. `partitions`
/// is how many parts of a plan run at once: with one, rows keep the order of the files.
///
/// # Errors
/// A table whose files are missing or unreadable: all of them, not the first.
pub async fn open(
    listed: &[Table],
    models: Arc<Models>,
    window: usize,
    partitions: usize,
    resources: &Resources,
) -> Result<SessionContext, Vec<TableError>> {
    let mut config =
        SessionConfig::new().with_batch_size(window).with_target_partitions(partitions).with_information_schema(true);
    // Delta tables take it from here.
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

/// Gives a session tables.
///
/// # Errors
/// Those whose files are missing or unreadable: all of them, not the first.
pub async fn register(context: &SessionContext, listed: &[Table]) -> Result<(), Vec<TableError>> {
    let mut errors = Vec::new();
    for table in listed {
        errors.extend(tables::register(context, table).await.err());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
