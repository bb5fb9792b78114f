//! Queries a scheduler for its executors and jobs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ballista_core::serde::protobuf::CancelJobParams;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::utils::create_grpc_client_endpoint;
use couplet_storage::words::{counted, format_duration};
use serde_json::Value;

use super::{Address, ClusterError, ExecutorInfo, INSTANCE};

/// The timeout for connecting to a scheduler, and for a short request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The interval between two counts of the executors.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum time without an executor, or without a response of the scheduler.
pub(super) const MAX_SILENCE: Duration = Duration::from_mins(1);

/// The maximum number of times that the scheduler is searched for jobs to cancel.
const CANCEL_ROUNDS: usize = 5;

/// The pause between two searches.
const CANCEL_PAUSE: Duration = Duration::from_millis(200);

/// The state of a run whose scheduler is gone, appended to the error.
const KEPT: &str = "; the scores so far are cached: run the same command again";

/// A client of a scheduler's REST API, which lists executors and jobs.
#[derive(Debug, Clone)]
pub(super) struct SchedulerApi {
    address: Address,
    http: reqwest::Client,
}

impl SchedulerApi {
    pub(super) fn of(address: &Address) -> Result<Self, ClusterError> {
        // Jobs are sent to the scheduler directly, even if the environment names an HTTP proxy. The same holds for
        // these requests.
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).connect_timeout(REQUEST_TIMEOUT);
        let http = http.build().map_err(|e| address.unreachable(&e.to_string(), ""))?;
        Ok(Self { address: address.clone(), http })
    }

    /// Lists the executors, ordered by name.
    async fn executors(&self) -> Result<Vec<ExecutorInfo>, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = |id: &str| id.rsplit_once(INSTANCE).map_or(id, |(name, _)| name).to_owned();
        let seen = self.list("executors").await?.into_iter().map(|executor| ExecutorInfo {
            name: executor["id"].as_str().map(name).unwrap_or_default(),
            host: text(&executor["host"]),
            slots: executor["specification"]["vcores"].as_u64().unwrap_or(0),
        });
        let mut seen: Vec<_> = seen.collect();
        seen.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(seen)
    }

    /// Returns the number of slots of all executors.
    ///
    /// # Errors
    /// A scheduler that does not answer.
    pub(super) async fn slots(&self) -> Result<usize, ClusterError> {
        self.try_slots().await.map_err(|problem| self.address.unreachable(&problem, ""))
    }

    async fn try_slots(&self) -> Result<usize, String> {
        let slots = self.executors().await?.iter().map(|executor| executor.slots).sum::<u64>();
        Ok(usize::try_from(slots).unwrap_or(usize::MAX))
    }

    /// Checks that the scheduler answers. Tries several times.
    pub(super) async fn reach(&self) -> Result<(), ClusterError> {
        let mut problem = String::new();
        for wait in [0, 1, 2, 4] {
            tokio::time::sleep(Duration::from_secs(wait)).await;
            match self.try_slots().await {
                Ok(_) => return Ok(()),
                Err(message) => problem = message,
            }
        }
        Err(self.address.unreachable(&problem, KEPT))
    }

    /// Cancels the unfinished jobs with this name. They are found by name, because a scheduler tells a client the id of
    /// a job only when it ends.
    pub(super) async fn cancel_all(&self, name: &str) {
        let mut cancelled = 0;
        // A job that is being submitted appears a moment later.
        for round in 0..CANCEL_ROUNDS {
            match self.cancel(name).await {
                Ok(0) if round > 0 => break,
                Ok(n) => cancelled += n,
                Err(problem) => {
                    tracing::debug!("jobs could not be cancelled and may continue: {problem}");
                    break;
                }
            }
            tokio::time::sleep(CANCEL_PAUSE).await;
        }
        if cancelled > 0 {
            tracing::debug!("{} cancelled", counted(cancelled, "job"));
        }
    }

    /// Returns the ids of the unfinished jobs with this name.
    async fn open_jobs(&self, name: &str) -> Result<Vec<String>, String> {
        let jobs = self.list("jobs").await?;
        let own = jobs.iter().filter(|job| job["job_name"] == name);
        let open = own.filter(|job| ["Queued", "Running"].iter().any(|status| job["status"] == *status));
        Ok(open.filter_map(|job| job["job_id"].as_str()).map(str::to_owned).collect())
    }

    async fn cancel(&self, name: &str) -> Result<u64, String> {
        let open = self.open_jobs(name).await?;
        if open.is_empty() {
            return Ok(0);
        }
        let endpoint = create_grpc_client_endpoint(self.address.http(), None).map_err(|e| e.to_string())?;
        let connection = endpoint.connect_timeout(REQUEST_TIMEOUT).connect().await.map_err(|e| e.to_string())?;
        let mut scheduler = SchedulerGrpcClient::new(connection);
        let number = open.len() as u64;
        for job_id in open {
            let cancelled =
                tokio::time::timeout(REQUEST_TIMEOUT, scheduler.cancel_job(CancelJobParams { job_id })).await;
            cancelled.map_err(|_| "it does not answer".to_owned())?.map_err(|e| e.to_string())?;
        }
        Ok(number)
    }

    /// Returns an error once a job with this name is unfinished and there has been no executor for `patience`.
    pub(super) async fn starved(&self, name: &str, patience: Duration) -> ClusterError {
        let executors = ExecutorWatch::new(self.try_slots().await.unwrap_or(0));
        loop {
            if let Err(error) = executors.check_slots(&self.address, patience)
                // Before a job is submitted, and while its result is fetched, no executor is needed.
                && self.open_jobs(name).await.is_ok_and(|open| !open.is_empty())
            {
                return error;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            executors.poll(self).await;
        }
    }

    async fn list(&self, what: &str) -> Result<Vec<Value>, String> {
        let url = format!("{}/api/{what}", self.address.http());
        let response = async { self.http.get(url).send().await?.error_for_status()?.json::<Value>().await };
        let response = response.await.map_err(|error| {
            let error = error.without_url();
            let first: &dyn std::error::Error = &error;
            // The error of the operating system is the innermost cause.
            std::iter::successors(Some(first), |error| error.source()).last().unwrap_or(first).to_string()
        })?;
        match response {
            Value::Array(list) => Ok(list),
            _ => Err("it is not a scheduler: its response has another format".into()),
        }
    }
}

/// Lists the executors of a scheduler, ordered by name.
///
/// # Errors
/// A scheduler that does not answer.
pub async fn list_executors(address: &Address) -> Result<Vec<ExecutorInfo>, ClusterError> {
    SchedulerApi::of(address)?.executors().await.map_err(|problem| address.unreachable(&problem, ""))
}

/// The slots of a scheduler's executors, counted at intervals.
#[derive(Debug)]
pub(super) struct ExecutorWatch {
    slots: AtomicUsize,
    /// The last time at which there was an executor.
    seen: Mutex<Instant>,
    /// The time of the scheduler's last response.
    answered: Mutex<Instant>,
}

impl ExecutorWatch {
    /// Starts with a known number of slots.
    pub(super) fn new(slots: usize) -> Self {
        let now = || Mutex::new(Instant::now());
        Self { slots: AtomicUsize::new(slots), seen: now(), answered: now() }
    }

    /// Counts the slots at intervals until the future is dropped.
    pub(super) async fn watch(self: Arc<Self>, scheduler: SchedulerApi) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.poll(&scheduler).await;
        }
    }

    /// Counts the slots once, if the scheduler answers.
    async fn poll(&self, scheduler: &SchedulerApi) {
        let now = |instant: &Mutex<Instant>| *instant.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let Ok(slots) = scheduler.try_slots().await else { return };
        now(&self.answered);
        let before = self.slots.swap(slots, Ordering::Relaxed);
        if slots > 0 {
            now(&self.seen);
        }
        if slots != before {
            tracing::info!("{} has {} now", scheduler.address, counted(slots as u64, "slot"));
        }
    }

    /// Returns the number of slots of all executors, but at least 1.
    pub(super) fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed).max(1)
    }

    /// Checks that there was an executor, and a response of the scheduler, recently enough.
    pub(super) fn check(&self, address: &Address) -> Result<(), ClusterError> {
        let answered = since(&self.answered);
        if answered >= MAX_SILENCE {
            return Err(address.unreachable(&format!("no response for {}", format_duration(answered)), KEPT));
        }
        self.check_slots(address, MAX_SILENCE)
    }

    fn check_slots(&self, address: &Address, patience: Duration) -> Result<(), ClusterError> {
        let seen = since(&self.seen);
        if self.slots.load(Ordering::Relaxed) == 0 && seen >= patience {
            return Err(ClusterError::NoExecutor { address: address.to_string(), seconds: seen.as_secs() });
        }
        Ok(())
    }
}

fn since(instant: &Mutex<Instant>) -> Duration {
    instant.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
}

impl Address {
    pub(super) fn unreachable(&self, problem: &str, kept: &'static str) -> ClusterError {
        ClusterError::Unreachable { address: self.to_string(), problem: problem.to_owned(), kept }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    /// Starts a scheduler without executors that has the job of a query.
    async fn scheduler_with(status: &str) -> SchedulerApi {
        let jobs = serde_json::json!([{ "job_id": "x", "job_name": "query", "status": status }]).to_string();
        let routes = Router::new().route("/api/executors", get(|| async { "[]" }));
        let routes = routes.route("/api/jobs", get(move || async move { jobs }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("df://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        SchedulerApi::of(&address.parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_job_that_waits_for_executors_waits_so_long_and_no_longer() {
        for status in ["Queued", "Running"] {
            let scheduler = scheduler_with(status).await;
            let message = scheduler.starved("query", Duration::ZERO).await.to_string();
            let expected = format!("the scheduler at {} has had no executor for ", scheduler.address);
            assert!(message.starts_with(&expected), "{message}");
            // Jobs of other names do not count, and a longer patience is not used up.
            for (name, patience) in [("other", Duration::ZERO), ("query", Duration::from_hours(1))] {
                let waits = tokio::time::timeout(Duration::from_secs(1), scheduler.starved(name, patience)).await;
                assert!(waits.is_err(), "{name}: {waits:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_job_that_is_done_waits_for_no_executor() {
        let scheduler = scheduler_with("Completed").await;
        let waits = tokio::time::timeout(Duration::from_secs(1), scheduler.starved("query", Duration::ZERO)).await;
        assert!(waits.is_err(), "{waits:?}");
    }
}
