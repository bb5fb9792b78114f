//! The client: cuts texts into tasks, has them scored by the cluster, and gives back scores.
//!
//! A task is a job of its own. Its texts go into a file below the store, which executors read; its scores come back when it
//! is done, and are remembered as those of one machine are. So what a lost executor costs is its tasks under way, and what
//! a killed client costs is what it had not remembered. Twice as many jobs are under way as the executors have slots: one
//! that comes or goes changes that within seconds.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::ArrayRef;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use ballista_core::extension::{SessionConfigExt, SessionStateExt};
use ballista_core::serde::protobuf::CancelJobParams;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::utils::create_grpc_client_endpoint;
use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext, col, lit};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::codec::PlanCodec;
use super::contract::Contract;
use super::delta::SentAway;
use super::function::{self, REFUSES};
use super::outcomes;
use super::tasks::{Cutter, Task};
use super::{Address, ClusterError, INSTANCE, Seen};
use crate::config::Place;
use crate::objects::Objects;
use crate::predict;
use crate::predict::Models;
use crate::progress::{counted, grouped, spoken};
use crate::scorer::{Prediction, Rejection, Window};

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

/// How long a scheduler has to answer what it answers at once.
const ANSWER: Duration = Duration::from_secs(5);

/// Between two looks at the executors.
const LOOK: Duration = Duration::from_secs(2);

/// For how long there may be no executor, or no answer from the scheduler.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often jobs are looked for that are to be cancelled, at most.
const ROUNDS: usize = 5;

/// Between two of those.
const ROUND: Duration = Duration::from_millis(200);

/// The connection of a run or a query to a cluster.
pub struct Client {
    address: Address,
    http: reqwest::Client,
    context: SessionContext,
    executors: Arc<Executors>,
    watch: JoinHandle<()>,
    /// What the scheduler calls this client's jobs.
    name: String,
    /// How long tasks took that are back.
    took: Mutex<Vec<Duration>>,
    /// Whether a job may still be under way of which nothing is awaited any more.
    gave_up: AtomicBool,
}

/// What the scheduler says of its executors.
#[derive(Debug)]
struct Executors {
    slots: AtomicUsize,
    /// When there was one last.
    seen: Mutex<Instant>,
    /// When the scheduler answered last.
    answered: Mutex<Instant>,
}

/// The scores of a task.
#[derive(Debug)]
pub struct Scored {
    /// The keys of its texts.
    pub keys: ArrayRef,
    /// What became of them, in the same order.
    pub outcomes: Vec<Result<Prediction, Rejection>>,
    /// Who scored them.
    pub executor: String,
    /// How long it took, from being sent to being fetched.
    pub took: Duration,
}

/// What a client is to have scored.
#[derive(Debug)]
pub struct Work {
    /// With what.
    pub contract: Contract,
    /// The folder for the texts, which executors reach under the same name.
    pub folder: Objects,
    /// How many texts there are.
    pub texts: u64,
    /// How many tokens they have, as far as a sample tells.
    pub tokens: u64,
    /// Tokens to a byte of text, by the same sample.
    pub tokens_per_byte: f64,
    /// Tokens of a text at most.
    pub max_length: usize,
    /// Tokens of a task at most.
    pub task_tokens: u64,
}

impl Client {
    /// Finds the scheduler. `window` is the number of rows that an executor scores together; `models` are for planning calls
    /// of `predict`.
    ///
    /// # Errors
    /// A scheduler that does not answer.
    pub async fn connect(address: &Address, window: usize, models: Arc<Models>) -> Result<Self, ClusterError> {
        let http = http_client(address)?;
        let slots = slots(&http, address).await.map_err(|problem| unreachable(address, &problem, ""))?;
        let now = || Mutex::new(Instant::now());
        let executors = Arc::new(Executors { slots: AtomicUsize::new(slots), seen: now(), answered: now() });
        let watch = tokio::spawn(watch(http.clone(), address.clone(), Arc::clone(&executors)));
        // A task is a file, and a file one part of a plan.
        let name = format!("couplet-{}", Uuid::new_v4().simple());
        let context = session(address, &name, window, 1, models)?;
        match slots {
            0 => tracing::warn!("{address} has no executor yet"),
            slots => tracing::info!("{address} has {}", counted(slots as u64, "slot")),
        }
        let (took, gave_up) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { address: address.clone(), http, context, executors, watch, name, took, gave_up })
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
            windows: Some(Box::pin(windows)),
            cutter: Cutter::new(work.tokens, work.tokens_per_byte, work.max_length, work.task_tokens),
            work: Arc::new(work),
            ready: VecDeque::new(),
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

    /// Cancels the jobs that are still under way. They are found by their name, as the scheduler tells a client the id of a
    /// job only when it ends.
    pub async fn end(&self) {
        let mut cancelled = 0;
        // One that was just being sent shows up a moment later.
        for round in 0..ROUNDS {
            match self.cancel().await {
                Ok(0) if round > 0 => break,
                Ok(n) => cancelled += n,
                Err(problem) => {
                    tracing::debug!("jobs may go on, as they could not be cancelled: {problem}");
                    break;
                }
            }
            tokio::time::sleep(ROUND).await;
        }
        if cancelled > 0 {
            tracing::debug!("{} cancelled", counted(cancelled, "job"));
        }
    }

    async fn cancel(&self) -> Result<u64, String> {
        let jobs = list(&self.http, &self.address, "jobs").await?;
        let own = jobs.iter().filter(|job| job["job_name"] == self.name.as_str());
        let open = own.filter(|job| ["Queued", "Running"].iter().any(|status| job["status"] == *status));
        let open: Vec<&str> = open.filter_map(|job| job["job_id"].as_str()).collect();
        if open.is_empty() {
            return Ok(0);
        }
        let endpoint = create_grpc_client_endpoint(self.address.http(), None).map_err(|e| e.to_string())?;
        let connection = endpoint.connect_timeout(ANSWER).connect().await.map_err(|e| e.to_string())?;
        let mut scheduler = SchedulerGrpcClient::new(connection);
        for job_id in &open {
            let job_id = (*job_id).to_owned();
            let cancelled = tokio::time::timeout(ANSWER, scheduler.cancel_job(CancelJobParams { job_id })).await;
            cancelled.map_err(|_| "it does not answer".to_owned())?.map_err(|e| e.to_string())?;
        }
        Ok(open.len() as u64)
    }

    /// Has a task scored, by another executor if one is lost.
    async fn run(self: Arc<Self>, work: Arc<Work>, task: Task, number: usize) -> Result<Scored, ClusterError> {
        let start = Instant::now();
        let path = work.folder.path(&format!("{number:06}.parquet"));
        let place = work.folder.place_of(&path);
        let texts = |problem: String| ClusterError::Texts { place: place.to_string(), problem };
        let bytes = to_parquet(&task).map_err(|e| texts(e.to_string()))?;
        let put = work.folder.store.put(&path, bytes.into()).await;
        put.map_err(|e| texts(work.folder.error_at(&path, &e).problem))?;
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
            self.reach().await?;
            let Some(pause) = pauses.next() else {
                return Err(ClusterError::Failed { address: self.address.to_string(), problem });
            };
            tracing::warn!("a task failed and is tried again: {problem}");
            tokio::time::sleep(*pause).await;
        };
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed());
        // What cannot be removed now goes with the folder.
        let _ = work.folder.store.delete(&path).await;
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
        arguments.extend(schema.fields().iter().skip(1).map(|field| col(field.name())));
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

    /// Makes sure that the scheduler is there, and has had executors.
    async fn reach(&self) -> Result<(), ClusterError> {
        let mut problem = String::new();
        for wait in [0, 1, 2, 4] {
            tokio::time::sleep(Duration::from_secs(wait)).await;
            match slots(&self.http, &self.address).await {
                Ok(_) => return self.executors.check(&self.address),
                Err(said) => problem = said,
            }
        }
        Err(unreachable(&self.address, &problem, KEPT))
    }
}

/// What there is of a run whose scheduler is gone.
const KEPT: &str = "; what was scored is remembered: run the same command again";

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

impl Executors {
    fn check(&self, address: &Address) -> Result<(), ClusterError> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if answered >= PATIENCE {
            let problem = format!("not a word for {}", spoken(answered));
            return Err(unreachable(address, &problem, KEPT));
        }
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if self.slots.load(Ordering::Relaxed) == 0 && seen.elapsed() >= PATIENCE {
            return Err(ClusterError::NoExecutor { address: address.to_string(), seconds: seen.elapsed().as_secs() });
        }
        Ok(())
    }
}

/// Windows of texts with their keys, from wherever they come.
type Windows<E> = Pin<Box<dyn Stream<Item = Result<(ArrayRef, Window), E>> + Send>>;

type Job = Pin<Box<dyn Future<Output = Result<Scored, ClusterError>> + Send>>;

/// The tasks of a run that are not back.
struct UnderWay<E> {
    client: Arc<Client>,
    /// None when all are cut into tasks.
    windows: Option<Windows<E>>,
    cutter: Cutter,
    work: Arc<Work>,
    ready: VecDeque<Task>,
    tasks: usize,
    jobs: FuturesUnordered<Job>,
}

impl<E: From<ClusterError>> UnderWay<E> {
    async fn next(&mut self) -> Option<Result<Scored, E>> {
        loop {
            let limit = JOBS_PER_SLOT * self.client.executors.slots.load(Ordering::Relaxed).max(1);
            while self.jobs.len() < limit {
                match self.task().await {
                    Ok(Some(task)) => {
                        let job = Arc::clone(&self.client).run(Arc::clone(&self.work), task, self.tasks);
                        self.jobs.push(job.boxed());
                        self.tasks += 1;
                    }
                    Ok(None) => break,
                    Err(error) => return Some(Err(error)),
                }
            }
            if self.jobs.is_empty() {
                return None;
            }
            match tokio::time::timeout(LOOK, self.jobs.next()).await {
                Ok(done) => return done.map(|done| done.map_err(E::from)),
                // Executors may have come or gone.
                Err(_) => {
                    if let Err(error) = self.client.executors.check(&self.client.address) {
                        return Some(Err(error.into()));
                    }
                }
            }
        }
    }

    async fn task(&mut self) -> Result<Option<Task>, E> {
        while self.ready.is_empty() {
            let Some(windows) = &mut self.windows else { break };
            if let Some((keys, window)) = windows.next().await.transpose()? {
                let shares = SHARES_PER_SLOT * self.client.executors.slots.load(Ordering::Relaxed).max(1);
                self.ready.extend(self.cutter.push(&keys, &window, shares));
            } else {
                self.ready.extend(self.cutter.finish());
                self.windows = None;
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// A session whose queries the executors of a cluster share among their slots.
///
/// # Errors
/// A scheduler that does not answer.
pub async fn session_of(address: &Address, window: usize, models: Arc<Models>) -> Result<SessionContext, ClusterError> {
    let slots = slots(&http_client(address)?, address).await.map_err(|problem| unreachable(address, &problem, ""))?;
    if slots == 0 {
        tracing::warn!("{address} has no executor yet");
    }
    session(address, "couplet query", window, slots.max(1), models)
}

fn http_client(address: &Address) -> Result<reqwest::Client, ClusterError> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).connect_timeout(Duration::from_secs(5));
    http.build().map_err(|e| unreachable(address, &e.to_string(), ""))
}

/// A session whose plans a scheduler executes, in so many parts at once.
fn session(
    address: &Address,
    name: &str,
    window: usize,
    partitions: usize,
    models: Arc<Models>,
) -> Result<SessionContext, ClusterError> {
    let config = SessionConfig::new_with_ballista()
        .with_batch_size(window)
        .with_target_partitions(partitions)
        .with_information_schema(true)
        .with_ballista_job_name(name)
        .with_extension(Arc::new(SentAway))
        .with_ballista_logical_extension_codec(Arc::new(PlanCodec::of(Arc::clone(&models))));
    let builder = SessionStateBuilder::new().with_config(config).with_default_features();
    let state = predict::install(builder, Arc::clone(&models)).build().upgrade_for_ballista(address.http());
    let state = state.map_err(|e| unreachable(address, &e.to_string(), ""))?;
    let context = SessionContext::new_with_state(state);
    // Ballista leaves out the functions that the session had.
    context.register_udf(predict::function(models));
    context.register_udf(function::score(None));
    Ok(context)
}

/// Counts the slots of the executors, every now and then.
async fn watch(http: reqwest::Client, address: Address, executors: Arc<Executors>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.tick().await;
    loop {
        looks.tick().await;
        if let Ok(now) = slots(&http, &address).await {
            *executors.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let before = executors.slots.swap(now, Ordering::Relaxed);
            if now > 0 {
                *executors.seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
            if now != before {
                tracing::info!("{address} has {} now", counted(now as u64, "slot"));
            }
        }
    }
}

/// Asks a scheduler for its executors, in the order of their names.
///
/// # Errors
/// A scheduler that does not answer.
pub async fn look(address: &Address) -> Result<Vec<Seen>, ClusterError> {
    let seen = executors(&http_client(address)?, address).await;
    seen.map_err(|problem| unreachable(address, &problem, ""))
}

async fn executors(http: &reqwest::Client, address: &Address) -> Result<Vec<Seen>, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let seen = list(http, address, "executors").await?.into_iter().map(|executor| Seen {
        name: executor["id"].as_str().map_or("", |id| id.rsplit_once(INSTANCE).map_or(id, |(name, _)| name)).to_owned(),
        host: text(&executor["host"]),
        slots: executor["specification"]["vcores"].as_u64().unwrap_or(0),
    });
    let mut seen: Vec<_> = seen.collect();
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// The slots of all executors of a scheduler.
async fn slots(http: &reqwest::Client, address: &Address) -> Result<usize, String> {
    let slots = executors(http, address).await?.iter().map(|executor| executor.slots).sum::<u64>();
    Ok(usize::try_from(slots).unwrap_or(usize::MAX))
}

/// Asks the scheduler for one of its lists.
async fn list(http: &reqwest::Client, address: &Address, what: &str) -> Result<Vec<Value>, String> {
    let url = format!("{}/api/{what}", address.http());
    let answer = async { http.get(url).send().await?.error_for_status()?.json::<Value>().await };
    let answer = answer.await.map_err(|error| {
        let error = error.without_url();
        let first: &dyn std::error::Error = &error;
        // What the system said stands behind what each layer says of the one below it.
        std::iter::successors(Some(first), |error| error.source()).last().unwrap_or(first).to_string()
    })?;
    match answer {
        Value::Array(list) => Ok(list),
        _ => Err("it is no scheduler: it answered otherwise".into()),
    }
}

fn unreachable(address: &Address, problem: &str, kept: &'static str) -> ClusterError {
    ClusterError::Unreachable { address: address.to_string(), problem: problem.to_owned(), kept }
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
