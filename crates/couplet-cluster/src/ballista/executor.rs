//! The command `couplet executor`: scores the tasks that a scheduler assigns.
//!
//! Ballista's executor polls the scheduler for tasks and keeps their results until they are fetched. couplet adds the
//! scoring function, one pool of inference threads for all tasks, and the object stores configured on this machine. A
//! small HTTP server reports health and metrics.

use std::fmt::Write;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::extension::SessionConfigExt;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::protobuf::ExecutorStoppedParams;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::utils::create_grpc_client_endpoint;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_executor::health::ExecutorHealth;
use couplet_encoder::scorer::{Pool, ScorerOptions};
use couplet_tables::bounded_functions;
use couplet_tables::predict::{self, Models};
use couplet_tables::session::Resources;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionConfig;
use tokio::net::TcpListener;

use super::function::{self, MODELS_KEPT, Worker};
use super::{Address, ClusterError, ExecutorOptions, INSTANCE, codec, stores};

/// The time that Ballista has to shut down by itself when the executor stops.
const GRACE: Duration = Duration::from_millis(500);

/// The timeout for telling the scheduler that an executor has stopped.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs an executor until `stop`. The scheduler then reassigns its running tasks at once.
///
/// # Errors
/// A port that is in use, threads or a folder that cannot be created.
pub async fn execute(options: ExecutorOptions, stop: impl Future<Output = ()>) -> Result<(), ClusterError> {
    let failed = |problem: String| ClusterError::Start { what: format!("executor {}", options.name), problem };
    // Report a missing device now rather than in the first task.
    options.device.open().map_err(|e| failed(e.to_string()))?;
    let pool = Pool::new(options.threads).map_err(|e| failed(format!("inference threads: {e}")))?;
    // Only the spill folder of these resources is used. It is removed on drop. This also removes the folders of killed
    // executors.
    let folder = Resources::new(options.memory, &options.work);
    let folder = folder.map_err(|e| failed(format!("folder {}: {e}", options.work.display())))?;
    let work = folder.folder().to_owned();
    // If the port is in use, Ballista would only report that it has stopped. It also accepts no host names.
    let data = format!("{}:{}", options.bind, options.port);
    let listener = TcpListener::bind(&data).await.map_err(|e| failed(format!("port {data}: {e}")))?;
    let bound = listener.local_addr().map_err(|e| failed(format!("port {data}: {e}")))?;
    drop(listener);
    // If the id were the same after a restart, the scheduler would wait for the tasks of the previous process.
    let id = format!("{}{INSTANCE}{}", options.name, &uuid::Uuid::new_v4().simple().to_string()[..6]);

    let worker = Arc::new(Worker::new(options.name.clone(), pool, options.device));
    let health = ExecutorHealth::new();
    if let Some(port) = options.http_port {
        let place = format!("{}:{port}", options.bind);
        let listener = TcpListener::bind(&place).await.map_err(|e| failed(format!("port {place}: {e}")))?;
        let routes = routes(&worker, &health);
        tokio::spawn(async move { axum::serve(listener, routes).await });
    }
    let spill = work.clone();
    let config = ExecutorProcessConfig {
        executor_id: id.clone(),
        bind_host: bound.ip().to_string(),
        external_host: options.advertise.clone(),
        // For port 0, the port that the operating system chose, because the scheduler passes the number on to other
        // machines.
        port: bound.port(),
        grpc_port: bound.port(),
        scheduler_host: options.scheduler.host.clone(),
        scheduler_port: options.scheduler.port,
        // Waits for a scheduler that has not started yet.
        scheduler_connect_timeout_seconds: u16::MAX,
        vcores: options.slots,
        task_scheduling_policy: TaskSchedulingPolicy::PullStaged,
        work_dir: Some(work.to_string_lossy().into_owned()),
        memory_pool_size: Some(options.memory),
        health,
        override_function_registry: Some(Arc::new(functions(&worker, options.memory))),
        override_runtime_producer: Some(Arc::new(move |_| {
            stores::runtime(RuntimeEnvBuilder::new().with_temp_file_path(&spill))
        })),
        override_config_producer: Some(Arc::new(SessionConfig::new_with_ballista)),
        override_logical_codec: Some(Arc::new(codec::PlanCodec::default())),
        override_physical_codec: Some(Arc::new(codec::ScanCodec::of_executor())),
        ..ExecutorProcessConfig::default()
    };
    tracing::info!(
        "executor {} of {}: {} tasks at once on {} threads; results at {}:{}",
        options.name,
        options.scheduler,
        options.slots,
        worker.pool().threads(),
        options.bind,
        bound.port()
    );
    // Ballista also handles signals: it deregisters, but then keeps polling for tasks until it has none
    // (execution_loop.rs does not check TERMINATING), so the scheduler treats it as alive again. Its loop ends with the
    // runtime that it was started on, and only then is it deregistered for good.
    let ballista = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| failed(format!("a runtime for tasks: {e}")))?;
    let process = ballista.spawn(async move { start_executor_process(Arc::new(config)).await });
    let ended = tokio::select! {
        ended = process => match ended {
            Ok(ended) => ended.map_err(|e| failed(e.to_string())),
            Err(panicked) => Err(failed(panicked.to_string())),
        },
        () = async { stop.await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    // A runtime must not be shut down on a worker thread of another runtime.
    let stopped = tokio::task::spawn_blocking(move || ballista.shutdown_timeout(GRACE)).await;
    stopped.map_err(|e| failed(e.to_string()))?;
    ended?;
    let notified = tokio::time::timeout(DEREGISTER_TIMEOUT, deregister(&options.scheduler, id)).await;
    if let Err(problem) = notified.unwrap_or_else(|_| Err("it does not answer".into())) {
        tracing::warn!("could not tell the scheduler that executor {} has stopped: {problem}", options.name);
    }
    tracing::info!("executor {} ended", options.name);
    Ok(())
}

/// Tells the scheduler that this executor has stopped, so that it reassigns its tasks.
async fn deregister(scheduler: &Address, executor_id: String) -> Result<(), String> {
    let endpoint = create_grpc_client_endpoint(scheduler.http(), None).map_err(|e| e.to_string())?;
    let connection = endpoint.connect_timeout(DEREGISTER_TIMEOUT).connect().await.map_err(|e| e.to_string())?;
    let notice = ExecutorStoppedParams { executor_id, reason: "it was stopped".into() };
    SchedulerGrpcClient::new(connection).executor_stopped(notice).await.map(drop).map_err(|e| e.to_string())
}

/// Returns DataFusion's functions and couplet's.
fn functions(worker: &Arc<Worker>, memory: u64) -> BallistaFunctionRegistry {
    let mut functions = BallistaFunctionRegistry::default();
    let options = ScorerOptions { device: worker.device(), ..ScorerOptions::default() };
    let models =
        Models::new(worker.pool().clone(), PathBuf::from("/")).with_options(options).with_max_loaded(MODELS_KEPT);
    let own = [function::score(Some(Arc::clone(worker))), predict::function(Arc::new(models))];
    for function in own.into_iter().chain(bounded_functions::functions(memory)) {
        functions.scalar_functions.insert(function.name().to_owned(), Arc::new(function));
    }
    functions
}

/// Returns the HTTP routes: `/healthz` (the process is up), `/readyz` (the scheduler answers) and `/metrics` (for
/// Prometheus).
fn routes(worker: &Arc<Worker>, health: &ExecutorHealth) -> Router {
    let (worker, ready, shown) = (Arc::clone(worker), health.clone(), health.clone());
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.is_ready() {
                    (StatusCode::OK, "ready\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "the scheduler has not answered\n")
                }
            }),
        )
        .route(
            "/metrics",
            get(move || async move {
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics(&worker, shown.is_ready()))
            }),
        )
}

fn metrics(worker: &Worker, ready: bool) -> String {
    let (models, all) = worker.counts();
    let mut text = String::new();
    let mut one = |name: &str, kind: &str, help: &str, value: u64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    one("couplet_executor_ready", "gauge", "Whether the scheduler answers: 1, or 0.", ready.into());
    one("couplet_executor_threads", "gauge", "Inference threads.", worker.pool().threads() as u64);
    one("couplet_executor_models", "gauge", "Models that are loaded.", models.len() as u64);
    one("couplet_executor_rows_total", "counter", "Rows that were scored or refused.", all.rows);
    one("couplet_executor_tokens_total", "counter", "Tokens that the encoders read.", all.tokens);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_there_before_the_first_task() {
        let worker =
            Worker::new("one".into(), Pool::new(Some(1)).unwrap(), couplet_encoder::scorer::DeviceSetting::Cpu);
        let text = metrics(&worker, false);
        assert!(
            text.contains("couplet_executor_ready 0\n") && text.contains("couplet_executor_rows_total 0\n"),
            "{text}"
        );
    }
}
