//! Scoring on a cluster.

use std::sync::Arc;

use couplet_cluster::{Address, Client, Contract, Work};
use couplet_encoder::scorer::Scorer;
use couplet_storage::objects::StoreFolder;
use couplet_tables::predict::Models;
use futures::StreamExt;
use futures::stream::LocalBoxStream;

use uuid::Uuid;

use super::pending::Pending;
use super::score::{Run, Scored};
use crate::config::Pipeline;
use crate::error::Error;

/// The store's folder for the texts of tasks, while a cluster scores them.
const FOLDER: &str = "cluster";

/// Removes task texts that killed runs left. Only the run that holds the lock may call this.
///
/// # Errors
/// A store that cannot be read or written.
pub(super) async fn clean(store: &StoreFolder) -> Result<(), Error> {
    let folder = store.folder(FOLDER);
    let folders = folder.objects.entries().await?.folders;
    for run in folders.into_iter().filter(|run| Uuid::try_parse(run).is_ok()) {
        remove(&folder.folder(&run)).await?;
    }
    folder.objects.remove_if_empty();
    Ok(())
}

/// Removes the texts of a run's tasks, and its folder if nothing else is in it.
async fn remove(folder: &StoreFolder) -> Result<(), Error> {
    for file in folder.files().await? {
        folder.objects.remove(&file.path).await?;
    }
    folder.objects.remove_if_empty();
    Ok(())
}

/// Texts that are tokenized to estimate the tokens of all: enough for a mean within a few percent.
const SAMPLE: u64 = 512;

/// The folder of a run's task texts.
fn texts_of(run: &Run<'_>) -> StoreFolder {
    run.store.folder(FOLDER).folder(run.lock.run())
}

/// A cluster that scores the texts of a run.
pub(super) struct ClusterScoring {
    client: Arc<Client>,
}

impl ClusterScoring {
    pub(super) async fn reach(address: &Address, pipeline: &Pipeline, models: Arc<Models>) -> Result<Self, Error> {
        Ok(Self { client: Arc::new(Client::connect(address, pipeline.run.window, models).await?) })
    }

    /// Scores the texts in tasks; results arrive in order of completion.
    pub(super) async fn score<'a>(
        &self,
        run: &'a Run<'_>,
        pending: Pending,
        scorer: &'a Scorer,
    ) -> Result<LocalBoxStream<'a, Result<Scored, Error>>, Error> {
        let settings = &run.pipeline.run;
        let sample = pending.sample(SAMPLE).map_err(|e| run.staging_failed(&e))?;
        let scored = (0..sample.len()).filter(|&row| sample.rejection(row).is_none());
        let bytes: usize = scored.map(|row| sample.bytes(row)).sum();
        let rows = sample.len().max(1) as f64;
        let sample = scorer.tokenize(sample).await?;
        let (tokens, uncut) = (sample.tokens() as f64, sample.untruncated.iter().sum::<usize>() as f64);
        let texts = pending.texts;
        let work = Work {
            contract: Contract::of(
                scorer,
                &run.scoring.model.location.place,
                settings.batch_tokens,
                &run.scoring.source.text,
            ),
            folder: texts_of(run),
            texts,
            tokens: (tokens / rows * texts as f64) as u64,
            // Based on untruncated texts; a task counts a text up to the maximum length.
            tokens_per_byte: uncut / bytes.max(1) as f64,
            max_length: scorer.max_length(),
            task_tokens: settings.task_tokens as u64,
        };
        let failed = run.staging_error();
        let windows = pending.windows().map(move |window| window.map_err(|e| failed(&e)));
        let scored = self.client.score::<Error, _>(windows, work);
        let scored = scored.map(move |scored| {
            let scored = scored?;
            scorer.credit(&scored.outcomes);
            Ok(Scored {
                keys: scored.keys,
                outcomes: scored.outcomes,
                executor: Some(scored.executor),
                took: scored.took,
            })
        });
        Ok(scored.boxed_local())
    }

    /// Cancels tasks in progress, and removes their texts. Other runs' texts stay, because another run may have taken
    /// the lock.
    pub(super) async fn end(self, run: &Run<'_>, all_is_back: bool) {
        if !all_is_back || self.client.gave_up() {
            self.client.end().await;
        }
        if let Err(error) = remove(&texts_of(run)).await {
            tracing::warn!("task texts could not be removed; the next run removes them: {error}");
        }
        run.store.folder(FOLDER).objects.remove_if_empty();
    }
}
