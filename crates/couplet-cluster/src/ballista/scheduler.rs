//! The command `couplet scheduler`: plans the jobs of clients, assigns their tasks to executors and reassigns lost
//! tasks.
//!
//! It is Ballista's scheduler with couplet's functions and plan nodes. Its state is in memory: if it ends, running
//! clients fail, and their next runs resume from their caches.

use std::path::PathBuf;
use std::sync::Arc;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::extension::{
    SessionConfigExt, ballista_aggregate_functions, ballista_scalar_functions, ballista_window_functions,
};
use ballista_core::optimizer::ballista_default_optimizer_rules;
use ballista_scheduler::SessionBuilder;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::{create_scheduler, start_grpc_service_with_listener};
use couplet_encoder::scorer::Pool;
use couplet_tables::predict::{self, Models};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::net::TcpListener;

use super::{ClusterError, SchedulerOptions, codec, function, stores};

/// The longest interval between two polls of a healthy executor, in seconds.
const EXPECTED_WITHIN_SECONDS: u64 = 5;

/// Runs a scheduler until the process ends.
///
/// # Errors
/// A port that is in use.
pub async fn schedule(options: SchedulerOptions) -> Result<(), ClusterError> {
    let place = format!("{}:{}", options.bind, options.port);
    let failed = |problem: String| ClusterError::Start { what: format!("scheduler at {place}"), problem };
    // Bind first, so that the log line below is true and a port in use is reported before anything is set up.
    let listener = TcpListener::bind(&place).await.map_err(|e| failed(e.to_string()))?;
    let pool = Pool::new(Some(1)).map_err(|e| failed(e.to_string()))?;
    let session = session_builder(Arc::new(Models::new(pool, PathBuf::from("/"))));
    let config = SchedulerConfig {
        external_host: options.bind.clone(),
        bind_host: options.bind.clone(),
        bind_port: options.port,
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        executor_timeout_seconds: options.executor_timeout.max(2 * EXPECTED_WITHIN_SECONDS),
        expire_dead_executor_interval_seconds: EXPECTED_WITHIN_SECONDS,
        // A run consists of about a thousand small jobs, so finished jobs are removed soon. A client fetches results at
        // once, unless its store does not answer for a minute.
        finished_job_data_clean_up_interval_seconds: 600,
        finished_job_state_clean_up_interval_seconds: 900,
        // With the proxy, clients need to reach only the scheduler.
        enable_embedded_flight_proxy: true,
        override_config_producer: Some(Arc::new(SessionConfig::new_with_ballista)),
        override_session_builder: Some(Arc::clone(&session)),
        override_logical_codec: Some(Arc::new(codec::PlanCodec::default())),
        override_physical_codec: Some(Arc::new(codec::ScanCodec::default())),
        ..SchedulerConfig::default()
    };
    config.validate().map_err(|e| failed(e.to_string()))?;
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(|e| failed(e.to_string()))?;
    let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config)).await;
    let scheduler = scheduler.map_err(|e| failed(e.to_string()))?;
    tracing::info!("scheduler at df://{place}, for clients and executors; http://{place}/api/executors lists those");
    start_grpc_service_with_listener(listener, scheduler).await.map_err(|e| failed(e.to_string()))
}

/// Returns a builder of sessions that can plan calls of couplet's functions.
fn session_builder(models: Arc<Models>) -> SessionBuilder {
    Arc::new(move |config| {
        let builder = SessionStateBuilder::new()
            .with_default_features()
            .with_config(config)
            .with_runtime_env(stores::runtime(RuntimeEnvBuilder::new())?)
            .with_optimizer_rules(ballista_default_optimizer_rules())
            .with_scalar_functions(ballista_scalar_functions())
            .with_aggregate_functions(ballista_aggregate_functions())
            .with_window_functions(ballista_window_functions());
        let mut builder = predict::install(builder, Arc::clone(&models));
        builder.scalar_functions().get_or_insert_default().push(Arc::new(function::score(None)));
        Ok(builder.build())
    })
}
