//! The client: cuts texts into tasks, has them scored by the cluster, and gives back scores.
//!
//! A task is a job of its own. Its texts go into a file below the store, which executors read; its scores come back when it
//! is done, and are remembered as those of one machine are. So what a lost executor costs is its tasks under way, and what
//! a killed client costs is what it had not remembered. Twice as many jobs are under way as the executors have slots: one
//! that comes or goes changes that within seconds.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::ArrayRef;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
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
use super::lists::{LOOK, Lists, Watched};
use super::outcomes;
use super::session::session;
use super::tasks::{Cutter, Task};
use super::{Address, ClusterError, Scored, Work};
use crate::objects::Objects;
use crate::place::Place;
use crate::predict::Models;
use crate::scorer::{Prediction, Rejection, Window};
use crate::words::{counted, grouped, spoken};

/// Jobs under way for each slot: while one is scored, the next is ready.
const JOBS_PER_SLOT: usize = 2;

/// The shares for each slot into which what is left is divided: a task is one of them at most.
const SHARES_PER_SLOT: usize = 4;

/// How often a task is tried that failed for no reason that will last.
const TRIES: usize = 4;

/// For how long nothing is sent again after the first, second and third of those tries.
const PAUSES: [Duration; TRIES - 1] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(30)];

/// Tasks that must be back before it is known how long one takes.
const KNOWN: usize = 3;

/// How long a task may take while that is not known.
const FIRST: Duration = Duration::from_hours(2);

/// How many times as long as most a task may take, and what that is at least, until it is sent once more.
const TIMES: u32 = 10;
const LEAST: Duration = Duration::from_mins(10);

/// The connection of a run or a query to a cluster.
pub struct Client {
    address: Address,
    scheduler: Lists,
    context: SessionContext,
    executors: Arc<Watched>,
    watch: JoinHandle<()>,
    /// What the scheduler calls this client's jobs.
    name: String,
    /// How long tasks took that are back.
    took: Mutex<Vec<Duration>>,
    /// Whether a job may still be under way of which nothing is awaited any more.
    gave_up: AtomicBool,
}

impl Client {
    /// Finds the scheduler. `window` is the number of rows that an executor scores together; `models` are for planning calls
    /// of `predict`.
    ///
    /// # Errors
    /// A scheduler that does not answer.
    pub async fn connect(address: &Address, window: usize, models: Arc<Models>) -> Result<Self, ClusterError> {
        let scheduler = Lists::of(address)?;
        let slots = scheduler.slots().await?;
        let executors = Arc::new(Watched::new(slots));
        let watch = tokio::spawn(Arc::clone(&executors).watch(scheduler.clone()));
        // A task is a file, and a file one part of a plan.
        let name = format!("couplet-{}", Uuid::new_v4().simple());
        let context = session(address, &name, window, 1, models)?;
        match slots {
            0 => tracing::warn!("{address} has no executor yet"),
            slots => tracing::info!("{address} has {}", counted(slots as u64, "slot")),
        }
        let (took, gave_up) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { address: address.clone(), scheduler, context, executors, watch, name, took, gave_up })
    }

    /// Scores texts, in tasks; they come back as they are done.
    ///
    /// # Errors
    /// Each is the end of the stream: what `windows` says, a cluster that cannot score.
    pub fn score<E, W>(self: &Arc<Self>, windows: W, work: Work) -> impl Stream<Item = Result<Scored, E>> + use<E, W>
    where
        E: From<ClusterError> + Send + 'static,
        W: Stream<Item = Result<(ArrayRef, Window), E>> + Send + 'static,
    {
        tracing::debug!("{} with about {} tokens", counted(work.texts, "text"), grouped(work.tokens));
        let state = UnderWay {
            client: Arc::clone(self),
            source: Source {
                windows: Some(Box::pin(windows)),
                cutter: Cutter::new(work.tokens, work.tokens_per_byte, work.max_length, work.task_tokens),
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

    /// Cancels the jobs that are still under way.
    pub async fn end(&self) {
        self.scheduler.cancel_all(&self.name).await;
    }

    /// Has a task scored, by another executor if one is lost.
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
        // They are in the store.
        drop(task);
        let mut pauses = PAUSES.iter();
        let (keys, outcomes, executor) = loop {
            let patience = self.patience();
            let tried = tokio::time::timeout(patience, self.try_task(&work, &schema, texts, &place)).await;
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
                // Ballista loses sight of a task when an executor's question for work fails on its way: the scheduler
                // takes it for under way for ever (execution_loop.rs forgets what it was about to say).
                Err(_) => {
                    self.gave_up.store(true, Ordering::Relaxed);
                    format!("it is not back after {}", spoken(patience))
                }
            };
            self.scheduler.reach().await?;
            self.executors.check(&self.address)?;
            let Some(pause) = pauses.next() else {
                return Err(ClusterError::Failed { address: self.address.to_string(), problem });
            };
            tracing::warn!("a task failed and is tried again: {problem}");
            tokio::time::sleep(*pause).await;
        };
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed());
        // What cannot be removed now goes with the folder.
        let _ = folder.store.delete(&path).await;
        Ok(Scored { keys, outcomes, executor, took: start.elapsed() })
    }

    /// How long a task may take: the scores of one that is sent a second time are the same.
    fn patience(&self) -> Duration {
        let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if took.len() < KNOWN {
            return FIRST;
        }
        let middle = took.len() / 2;
        (TIMES * *took.select_nth_unstable(middle).1).max(LEAST)
    }

    /// Whether a job may still be under way of which nothing is awaited any more.
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
        // With the key, by which an executor notices a text that is not as it was written.
        arguments.extend(schema.fields().iter().map(|field| col(field.name())));
        let score = function::score(None).call(arguments).alias("outcome");
        let scored = self.context.read_table(Arc::new(table))?.select(vec![col("key"), score])?;
        let batches = scored.collect().await?;
        let Some(first) = batches.first() else {
            return Err(DataFusionError::Execution("a task came back without its scores".into()));
        };
        let batch = concat_batches(&first.schema(), &batches)?;
        if batch.num_rows() != texts {
            let problem = format!("a task of {texts} texts came back with {} scores", batch.num_rows());
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

/// Windows of texts with their keys, from wherever they come.
type Windows<E> = Pin<Box<dyn Stream<Item = Result<(ArrayRef, Window), E>> + Send>>;

type Job = Pin<Box<dyn Future<Output = Result<Scored, ClusterError>> + Send>>;

/// The tasks of a run that are not back.
struct UnderWay<E> {
    client: Arc<Client>,
    source: Source<E>,
    work: Arc<Work>,
    tasks: usize,
    jobs: FuturesUnordered<Job>,
}

impl<E: From<ClusterError>> UnderWay<E> {
    async fn next(&mut self) -> Option<Result<Scored, E>> {
        loop {
            let executors = &self.client.executors;
            let takes_more = self.jobs.len() < JOBS_PER_SLOT * executors.slots() && !self.source.is_over();
            if self.jobs.is_empty() && !takes_more {
                return None;
            }
            // A slow source keeps no job waiting; of a fast one, tasks go out before results are looked at.
            tokio::select! {
                biased;
                task = self.source.task(executors), if takes_more => match task {
                    Ok(Some(task)) => {
                        let job = Arc::clone(&self.client).run(Arc::clone(&self.work), task, self.tasks);
                        self.jobs.push(job.boxed());
                        self.tasks += 1;
                    }
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                },
                Some(done) = self.jobs.next() => return Some(done.map_err(E::from)),
                // Executors may have come or gone.
                () = tokio::time::sleep(LOOK), if !self.jobs.is_empty() => {
                    if let Err(error) = executors.check(&self.client.address) {
                        return Some(Err(error.into()));
                    }
                }
            }
        }
    }
}

/// The texts of a run that are in no job yet.
struct Source<E> {
    /// None when all are cut into tasks.
    windows: Option<Windows<E>>,
    cutter: Cutter,
    ready: VecDeque<Task>,
}

impl<E> Source<E> {
    fn is_over(&self) -> bool {
        self.windows.is_none() && self.ready.is_empty()
    }

    /// The next task. Nothing is lost if the future is dropped: what it has read is kept before it waits again.
    async fn task(&mut self, executors: &Watched) -> Result<Option<Task>, E> {
        while self.ready.is_empty() {
            let Some(windows) = &mut self.windows else { break };
            if let Some((keys, window)) = windows.next().await.transpose()? {
                let shares = SHARES_PER_SLOT * executors.slots();
                self.ready.extend(self.cutter.push(&keys, &window, shares));
            } else {
                self.ready.extend(self.cutter.finish());
                self.windows = None;
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// The rows of a task as a Parquet file.
fn to_parquet(task: &Task) -> PlanResult<Vec<u8>> {
    let mut writer = ArrowWriter::try_new(Vec::new(), task.schema(), None)?;
    for batch in task.batches() {
        writer.write(&batch?)?;
    }
    Ok(writer.into_inner()?)
}

/// What an executor said, without the layers of errors that it came through.
fn readable(error: &str) -> String {
    let said = error.find("executor ").filter(|_| error.contains(REFUSES)).map_or(error, |start| &error[start..]);
    let said = said.split("\\n").next().unwrap_or(said);
    let said = said.split_once("\")").map_or(said, |(said, _)| said);
    said.replace("\\\"", "\"").trim().to_owned()
}
