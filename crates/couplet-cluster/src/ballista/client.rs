//! The client: splits texts into tasks, submits them to the cluster and returns the scores.
//!
//! Each task is a separate job. Its texts go into a file in the store, which executors read. Its scores come back when
//! it is done and are cached as on one machine. So a lost executor costs its running tasks, and a killed client costs
//! the scores that it had not cached. Twice as many jobs are in flight as the executors have slots. When an executor
//! joins or leaves, that number follows within seconds.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::ArrayRef;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use couplet_encoder::scorer::{Prediction, Rejection, Window};
use couplet_storage::objects::Objects;
use couplet_storage::place::Place;
use couplet_storage::words::{counted, format_duration, grouped};
use couplet_tables::predict::Models;
use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::{SessionContext, col, lit};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ArrowWriter;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::function::{self, REFUSES};
use super::lists::{ExecutorWatch, POLL_INTERVAL, SchedulerApi};
use super::outcomes;
use super::session::session;
use super::tasks::{Task, TaskSplitter};
use super::{Address, ClusterError, Scored, Work};

/// Jobs in flight per slot: while one is scored, the next is ready.
const JOBS_PER_SLOT: usize = 2;

/// The number of shares per slot into which the remaining texts are divided. A task is at most one share.
const SHARES_PER_SLOT: usize = 4;

/// The number of attempts for a task that fails with a transient error.
const ATTEMPTS: usize = 4;

/// The pauses after the first, second and third failed attempt.
const PAUSES: [Duration; ATTEMPTS - 1] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(30)];

/// The number of finished tasks from which the timeout of a task is derived.
const TIMED_TASKS: usize = 3;

/// The timeout of a task before [`TIMED_TASKS`] tasks have finished.
const FIRST_TIMEOUT: Duration = Duration::from_hours(2);

/// The timeout of a task as a multiple of the median duration. A task that times out is sent again.
const TIMEOUT_FACTOR: u32 = 10;

/// The shortest timeout of a task.
const MIN_TIMEOUT: Duration = Duration::from_mins(10);

/// The connection of a run or a query to a cluster.
pub struct Client {
    address: Address,
    scheduler: SchedulerApi,
    context: SessionContext,
    executors: Arc<ExecutorWatch>,
    watch: JoinHandle<()>,
    /// The name of this client's jobs at the scheduler.
    name: String,
    /// The durations of the finished tasks.
    took: Mutex<Vec<Duration>>,
    /// True if a job that this client has given up on may still be running.
    gave_up: AtomicBool,
}

impl Client {
    /// Connects to the scheduler. `window` is the number of rows that an executor scores together; `models` are used to
    /// plan calls of `predict`.
    ///
    /// # Errors
    /// A scheduler that does not answer.
    pub async fn connect(address: &Address, window: usize, models: Arc<Models>) -> Result<Self, ClusterError> {
        let scheduler = SchedulerApi::of(address)?;
        let slots = scheduler.slots().await?;
        let executors = Arc::new(ExecutorWatch::new(slots));
        let watch = tokio::spawn(Arc::clone(&executors).watch(scheduler.clone()));
        // A task is one file, which is one partition of the plan.
        let name = format!("couplet-{}", Uuid::new_v4().simple());
        let context = session(address, &name, window, 1, models)?;
        match slots {
            0 => tracing::warn!("{address} has no executor yet"),
            slots => tracing::info!("{address} has {}", counted(slots as u64, "slot")),
        }
        let (took, gave_up) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { address: address.clone(), scheduler, context, executors, watch, name, took, gave_up })
    }

    /// Scores texts in tasks. Yields each task's scores when it is done.
    ///
    /// # Errors
    /// An error of `windows`, a cluster that cannot score. Either ends the stream.
    pub fn score<E, W>(self: &Arc<Self>, windows: W, work: Work) -> impl Stream<Item = Result<Scored, E>> + use<E, W>
    where
        E: From<ClusterError> + Send + 'static,
        W: Stream<Item = Result<(ArrayRef, Window), E>> + Send + 'static,
    {
        tracing::debug!("{} with about {} tokens", counted(work.texts, "text"), grouped(work.tokens));
        let state = InFlight {
            client: Arc::clone(self),
            source: PendingTexts {
                windows: Some(Box::pin(windows)),
                splitter: TaskSplitter::new(work.tokens, work.tokens_per_byte, work.max_length, work.task_tokens),
                ready: VecDeque::new(),
            },
            work: Arc::new(work),
            tasks: 0,
            jobs: FuturesUnordered::new(),
        };
        futures::stream::unfold(Some(state), |state| async {
            let mut state = state?;
            match state.next().await {
                None => None,
                Some(Ok(scored)) => Some((Ok(scored), Some(state))),
                Some(Err(error)) => Some((Err(error), None)),
            }
        })
    }

    /// Cancels the jobs that are still in flight.
    pub async fn end(&self) {
        self.scheduler.cancel_all(&self.name).await;
    }

    /// Scores a task on the cluster, retrying it on another executor if one is lost.
    async fn run(self: Arc<Self>, work: Arc<Work>, task: Task, number: usize) -> Result<Scored, ClusterError> {
        let start = Instant::now();
        let path = work.folder.path(&format!("{number:06}.parquet"));
        let folder = &work.folder.objects;
        let place = folder.place_of(&path);
        let texts = |problem: String| ClusterError::Texts { place: place.to_string(), problem };
        let bytes = to_parquet(&task).map_err(|e| texts(e.to_string()))?;
        let put = folder.store.put(&path, bytes.into()).await;
        put.map_err(|e| texts(folder.error_at(&path, &e).problem))?;
        let (schema, texts) = (task.schema(), task.texts);
        // The texts are in the store now.
        drop(task);
        let mut pauses = PAUSES.iter();
        let (keys, outcomes, executor) = loop {
            let timeout = self.task_timeout();
            let tried = tokio::time::timeout(timeout, self.try_task(&work, &schema, texts, &place)).await;
            let problem = match tried {
                Ok(Ok(done)) => break done,
                Ok(Err(error)) => {
                    let error = error.strip_backtrace();
                    let problem = readable(&error);
                    if error.contains(REFUSES) {
                        return Err(ClusterError::Failed { address: self.address.to_string(), problem });
                    }
                    problem
                }
                // Ballista loses a task if an executor's poll for work fails on the way: the executor drops the status
                // that it was about to report (execution_loop.rs), so the scheduler considers the task to be running
                // forever.
                Err(_) => {
                    self.gave_up.store(true, Ordering::Relaxed);
                    format!("no result after {}", format_duration(timeout))
                }
            };
            self.scheduler.reach().await?;
            self.executors.check(&self.address)?;
            let Some(pause) = pauses.next() else {
                return Err(ClusterError::Failed { address: self.address.to_string(), problem });
            };
            tracing::warn!("a task failed and is retried: {problem}");
            tokio::time::sleep(*pause).await;
        };
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed());
        // If the file cannot be removed now, it is removed with the folder.
        let _ = folder.store.delete(&path).await;
        Ok(Scored { keys, outcomes, executor, took: start.elapsed() })
    }

    /// Returns the timeout of a task. Sending a task twice is safe, because both attempts compute the same scores.
    fn task_timeout(&self) -> Duration {
        let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if took.len() < TIMED_TASKS {
            return FIRST_TIMEOUT;
        }
        let middle = took.len() / 2;
        (TIMEOUT_FACTOR * *took.select_nth_unstable(middle).1).max(MIN_TIMEOUT)
    }

    /// Returns true if a job that this client has given up on may still be running.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
    }

    async fn try_task(
        &self,
        work: &Work,
        schema: &SchemaRef,
        texts: usize,
        place: &Place,
    ) -> PlanResult<(ArrayRef, Vec<Result<Prediction, Rejection>>, String)> {
        let url = match place {
            Place::Remote(remote) => remote.session_url(),
            place => Objects::open(place).map_err(|e| DataFusionError::External(Box::new(e)))?.url,
        };
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension("");
        let listed = ListingTableConfig::new(ListingTableUrl::try_new(url, None)?).with_listing_options(options);
        let table = ListingTable::try_new(listed.with_schema(Arc::clone(schema)))?;
        let mut arguments = vec![lit(work.contract.to_text())];
        // The key lets an executor detect a text that differs from the one that was written.
        arguments.extend(schema.fields().iter().map(|field| col(field.name())));
        let score = function::score(None).call(arguments).alias("outcome");
        let scored = self.context.read_table(Arc::new(table))?.select(vec![col("key"), score])?;
        let batches = scored.collect().await?;
        let Some(first) = batches.first() else {
            return Err(DataFusionError::Execution("a task returned no scores".into()));
        };
        let batch = concat_batches(&first.schema(), &batches)?;
        if batch.num_rows() != texts {
            let problem = format!("a task of {texts} texts returned {} scores", batch.num_rows());
            return Err(DataFusionError::Execution(problem));
        }
        let (outcomes, executor) = outcomes::of_array(batch.column(1))?;
        Ok((Arc::clone(batch.column(0)), outcomes, executor))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .field("executors", &self.executors)
            .finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A stream of text windows with their keys.
type Windows<E> = Pin<Box<dyn Stream<Item = Result<(ArrayRef, Window), E>> + Send>>;

type Job = Pin<Box<dyn Future<Output = Result<Scored, ClusterError>> + Send>>;

/// The jobs of a run that are in flight.
struct InFlight<E> {
    client: Arc<Client>,
    source: PendingTexts<E>,
    work: Arc<Work>,
    tasks: usize,
    jobs: FuturesUnordered<Job>,
}

impl<E: From<ClusterError>> InFlight<E> {
    async fn next(&mut self) -> Option<Result<Scored, E>> {
        loop {
            let executors = &self.client.executors;
            let accepts_more = self.jobs.len() < JOBS_PER_SLOT * executors.slots() && !self.source.is_done();
            if self.jobs.is_empty() && !accepts_more {
                return None;
            }
            // If the source is slow, finished jobs are returned while it is read. If it is fast, tasks are sent first.
            tokio::select! {
                biased;
                task = self.source.task(executors), if accepts_more => match task {
                    Ok(Some(task)) => {
                        let job = Arc::clone(&self.client).run(Arc::clone(&self.work), task, self.tasks);
                        self.jobs.push(job.boxed());
                        self.tasks += 1;
                    }
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                },
                Some(done) = self.jobs.next() => return Some(done.map_err(E::from)),
                // Executors may have joined or left.
                () = tokio::time::sleep(POLL_INTERVAL), if !self.jobs.is_empty() => {
                    if let Err(error) = executors.check(&self.client.address) {
                        return Some(Err(error.into()));
                    }
                }
            }
        }
    }
}

/// The texts of a run that are not part of a job yet.
struct PendingTexts<E> {
    /// None once all windows are split into tasks.
    windows: Option<Windows<E>>,
    splitter: TaskSplitter,
    ready: VecDeque<Task>,
}

impl<E> PendingTexts<E> {
    fn is_done(&self) -> bool {
        self.windows.is_none() && self.ready.is_empty()
    }

    /// Returns the next task. Dropping the future loses nothing, because each window is stored before the next await.
    async fn task(&mut self, executors: &ExecutorWatch) -> Result<Option<Task>, E> {
        while self.ready.is_empty() {
            let Some(windows) = &mut self.windows else { break };
            if let Some((keys, window)) = windows.next().await.transpose()? {
                let shares = SHARES_PER_SLOT * executors.slots();
                self.ready.extend(self.splitter.push(&keys, &window, shares));
            } else {
                self.ready.extend(self.splitter.finish());
                self.windows = None;
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// Writes the rows of a task as a Parquet file.
fn to_parquet(task: &Task) -> PlanResult<Vec<u8>> {
    let mut writer = ArrowWriter::try_new(Vec::new(), task.schema(), None)?;
    for batch in task.batches() {
        writer.write(&batch?)?;
    }
    Ok(writer.into_inner()?)
}

/// Returns an executor's message without the error messages that Ballista wraps around it.
fn readable(error: &str) -> String {
    let message = error.find("executor ").filter(|_| error.contains(REFUSES)).map_or(error, |start| &error[start..]);
    let message = message.split("\\n").next().unwrap_or(message);
    let message = message.split_once("\")").map_or(message, |(message, _)| message);
    message.replace("\\\"", "\"").trim().to_owned()
}
