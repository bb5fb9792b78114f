//! Sessions whose plans a scheduler executes.

use std::sync::Arc;

use ballista_core::extension::{SessionConfigExt, SessionStateExt};
use couplet_tables::bounded_functions;
use couplet_tables::delta::FileScan;
use couplet_tables::predict::{self, Models};
use couplet_tables::session::DEFAULT_MEMORY;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use uuid::Uuid;

use super::codec::PlanCodec;
use super::delta::{RemoteSession, provider};
use super::function;
use super::lists::{MAX_SILENCE, SchedulerApi};
use super::{Address, ClusterError};

/// Creates a session whose queries run on the slots of a cluster's executors.
///
/// # Errors
/// A scheduler that does not answer.
pub async fn session_of(address: &Address, window: usize, models: Arc<Models>) -> Result<SessionContext, ClusterError> {
    let slots = SchedulerApi::of(address)?.slots().await?;
    if slots == 0 {
        tracing::warn!("{address} has no executor yet");
    }
    let name = format!("couplet-query-{}", Uuid::new_v4().simple());
    session(address, &name, window, slots.max(1), models)
}

/// Cancels the unfinished jobs of a session. A session that executes its plans locally has none.
pub async fn cancel(context: &SessionContext) {
    let Some(sent) = context.copied_config().get_extension::<RemoteSession>() else { return };
    if let Ok(scheduler) = SchedulerApi::of(&sent.address) {
        scheduler.cancel_all(&sent.name).await;
    }
}

/// Returns an error once a job of the session has waited too long for an executor. Never resolves for a session that
/// executes its plans locally.
pub async fn starved(context: &SessionContext) -> ClusterError {
    if let Some(sent) = context.copied_config().get_extension::<RemoteSession>()
        && let Ok(scheduler) = SchedulerApi::of(&sent.address)
    {
        return scheduler.starved(&sent.name, MAX_SILENCE).await;
    }
    std::future::pending().await
}

/// Creates a session whose plans a scheduler executes, with the given number of partitions.
pub(super) fn session(
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
        .with_extension(Arc::new(FileScan(provider)))
        .with_extension(Arc::new(RemoteSession { address: address.clone(), name: name.to_owned() }))
        .with_ballista_logical_extension_codec(Arc::new(PlanCodec::of(Arc::clone(&models))));
    let builder = SessionStateBuilder::new().with_config(config).with_default_features();
    let state = predict::install(builder, Arc::clone(&models)).build().upgrade_for_ballista(address.http());
    let state = state.map_err(|e| address.unreachable(&e.to_string(), ""))?;
    let context = SessionContext::new_with_state(state);
    // Ballista drops the functions that were registered with the session.
    context.register_udf(predict::function(models));
    context.register_udf(function::score(None));
    // A call with only constant arguments is executed locally.
    for function in bounded_functions::functions(DEFAULT_MEMORY) {
        context.register_udf(function);
    }
    Ok(context)
}
