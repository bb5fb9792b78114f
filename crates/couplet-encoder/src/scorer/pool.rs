//! The threads that tokenize and run encoders: one job a core, first come, first served.

use std::sync::Arc;

/// A set of threads for inference, shared by all models of a process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool(Arc<rayon::ThreadPool>);

impl Pool {
    /// Starts `threads` threads, or one for each core.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn new(threads: Option<usize>) -> std::io::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|i| format!("inference-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Self(Arc::new(pool)))
    }

    /// The threads, for work that is not a scorer's.
    #[must_use]
    pub fn rayon(&self) -> &rayon::ThreadPool {
        &self.0
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs something that is not a job among the threads, whose parallel parts it then uses.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }

    /// Queues a job behind all that are queued.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.spawn_fifo(job);
    }
}
