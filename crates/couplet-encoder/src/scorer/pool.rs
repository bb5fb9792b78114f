//! The thread pool for tokenization and encoders: one job per thread, in FIFO order.

use std::sync::Arc;

/// A thread pool for inference, shared by all models of a process. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Pool(Arc<rayon::ThreadPool>);

impl Pool {
    /// Starts `threads` threads, by default one per core.
    ///
    /// # Errors
    /// Returns an error if the operating system cannot start a thread.
    pub fn new(threads: Option<usize>) -> std::io::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|i| format!("inference-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Self(Arc::new(pool)))
    }

    /// Returns the underlying rayon pool, for work outside a [`super::Scorer`].
    #[must_use]
    pub fn rayon(&self) -> &rayon::ThreadPool {
        &self.0
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs a closure on the pool and waits for it. Parallel iterators in it use the pool's threads.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }

    /// Appends a job to the queue.
    pub(super) fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.0.spawn_fifo(job);
    }
}
