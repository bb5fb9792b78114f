//! Prepares a run: opens tables, query, model, store and sinks, then reads the rows once and checks them.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use couplet_encoder::scorer::Scorer;
use couplet_storage::trouble::system_error;
use couplet_tables::session::{self, Resources};
use couplet_tables::sink::Misfit;
use couplet_tables::source::Source;
use couplet_tables::store::{ScoreStore, model_class};
use couplet_tables::tables::{self, SourceFile};
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;

use super::checked::output_schema;
use super::cluster_scoring::{self, ClusterScoring};
use super::run_key;
use super::score::Run;
use super::sinks::{self, Sink, SinkKind};
use super::staged_rows::StagedRows;
use super::{
    NOTHING_WRITTEN, blame, folder_of, missing_model, model_name, models_of, outputs, pool, query_text, readable_place,
    resources,
};
use crate::config::SinkMode;
use crate::error::Error;

/// The error number (`ENOSPC`) for a full disk.
const DISK_FULL: i32 = 28;

/// The opened inputs and outputs of a run.
pub(super) struct Prepared {
    pub(super) context: SessionContext,
    pub(super) source: Source,
    pub(super) scorer: Scorer,
    pub(super) scores: ScoreStore,
    pub(super) sinks: Vec<Sink>,
    pub(super) cluster: Option<ClusterScoring>,
    /// The source files as listed before they are read.
    pub(super) files: Vec<SourceFile>,
    /// The key under which rows are appended; `None` if the sink does not append.
    pub(super) key: Option<String>,
}

impl Run<'_> {
    /// Opens the tables, plans the query, loads the model, and opens the store and the sinks: everything that can fail
    /// before scoring starts.
    #[tracing::instrument(skip_all)]
    pub(super) async fn prepare(&self) -> Result<(Prepared, Resources), Error> {
        let Self { pipeline, scoring, .. } = self;
        let settings = &scoring.source;
        outputs::check_sinks(pipeline)?;
        cluster_scoring::clean(&self.store).await?;
        let sql = query_text(pipeline, &settings.query, "source.file", self.variables)?;
        let models = Arc::new(models_of(pipeline, pool(pipeline.run.threads)?, &folder_of(&pipeline.path)));
        let resources = resources(&pipeline.run)?;
        let versions = tables::source_versions(&pipeline.tables).await.map_err(Error::Tables)?;
        // One partition keeps the rows in the order of the files; the cores belong to the model.
        let context = session::open(&pipeline.tables, Arc::clone(&models), pipeline.run.window, 1, &resources)
            .await
            .map_err(Error::Tables)?;
        // Plans keep reading the file versions that were opened, even if the files change later.
        let opened = tables::source_versions(&pipeline.tables).await.map_err(Error::Tables)?;
        if let Some((before, after)) = versions.iter().zip(&opened).find(|(before, after)| before != after) {
            let change = format!("{before} was replaced by {after}");
            return Err(Error::SourceChanged { pipeline: pipeline.path.display().to_string(), change });
        }
        let files = tables::source_files(&context, &pipeline.tables).await.map_err(Error::Tables)?;
        let source = Source::open(&context, &sql, &settings.id, &settings.text, settings.label.as_deref())
            .await
            .map_err(|e| Error::source(pipeline, &scoring.source.query, e, &context))?;
        if let Some(error) = missing_model(&scoring.model) {
            return Err(error);
        }
        let scorer = models.get(&model_name(&scoring.model)).await?;
        let cluster = match &self.options.cluster {
            Some(address) => Some(ClusterScoring::reach(address, pipeline, models).await?),
            None => None,
        };
        let mut scores = ScoreStore::open(&self.store, model_class(&scorer)).await?;
        if self.options.fresh {
            scores.forget().await?;
        } else if self.options.retry_errors {
            scores.forget_errors().await?;
        }
        let key = (scoring.sink.mode == SinkMode::Append).then(|| {
            let given = self.options.run_key.clone();
            given.unwrap_or_else(|| run_key::default(pipeline, &sql, self.variables, &files, &versions))
        });
        let schema = output_schema(source.schema());
        let mut sinks = Vec::new();
        // Opens the sink that is committed last first: once it is open, no older run can commit to it.
        for kind in sinks::kinds(scoring).into_iter().rev() {
            sinks.insert(0, self.open_sink(kind, &schema, &scorer, key.as_ref()).await?);
        }
        Ok((Prepared { context, source, scorer, scores, sinks, cluster, files, key }, resources))
    }

    pub(super) async fn open_sink(
        &self,
        kind: SinkKind,
        schema: &SchemaRef,
        scorer: &Scorer,
        key: Option<&String>,
    ) -> Result<Sink, Error> {
        let origin = self.lock.origin(key.filter(|_| kind == SinkKind::Predictions).cloned());
        let metadata = self.metadata(scorer);
        Sink::open(kind, self.pipeline, self.scoring, schema, &metadata, origin, &self.store).await
    }

    fn metadata(&self, scorer: &Scorer) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            ("couplet.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("couplet.pipeline", self.pipeline.name.clone()),
            ("couplet.model", scorer.model().fingerprint.as_str().to_owned()),
            ("couplet.model_uri", self.scoring.model.location.place.to_string()),
            ("couplet.max_length", scorer.max_length().to_string()),
            ("couplet.precision", scorer.precision().to_string()),
        ];
        metadata.extend(scorer.revision().map(|commit| ("couplet.model_revision", commit.to_owned())));
        metadata
    }

    /// Reads the source rows, and fails if the source files change while they are read.
    #[tracing::instrument(skip_all, fields(rows))]
    pub(super) async fn read(&self, prepared: &Prepared, resources: Resources) -> Result<StagedRows, Error> {
        let Self { pipeline, scoring, .. } = self;
        let Prepared { context, source, scorer, files: before, .. } = prepared;
        let broken = async |error: Error| blame(context, &pipeline.tables, error, NOTHING_WRITTEN).await;
        let text = &scoring.source.text;
        let labels = scorer.model().config.labels.len();
        let filled = StagedRows::fill(source.frame().clone(), text, labels, pipeline.run.memory, resources).await;
        let staged = match filled {
            Ok(staged) => staged,
            // The full disk is the one with the staged rows.
            Err(e) if system_error(&e) == Some(DISK_FULL) => return Err(self.staging_failed(&e)),
            Err(e) => {
                let origin = format!("{}: the source query", pipeline.path.display());
                return Err(broken(Error::sql(origin, &e, Some(context))).await);
            }
        };
        let after = tables::source_files(context, &pipeline.tables).await.map_err(Error::Tables)?;
        if let Some(changed) = SourceFile::first_change(before, &after) {
            return Err(Error::SourceChanged { pipeline: pipeline.path.display().to_string(), change: changed });
        }
        let rows = staged.rows().await.map_err(|e| self.staging_failed(&e))?;
        let ids = Source::check_ids(&rows, &scoring.source.id).await;
        ids.map_err(|e| Error::source(pipeline, &scoring.source.query, e, context))?;
        tracing::Span::current().record("rows", staged.len().cast_signed());
        Ok(staged)
    }

    /// Rejects values that the sink tables cannot hold, before anything is scored.
    pub(super) async fn check_fit(&self, staged: &StagedRows, sinks: &[Sink]) -> Result<(), Error> {
        for sink in sinks {
            let Some(table) = sink.table_schema() else { continue };
            let fits = staged.check_fit(table, (sinks.len() > 1).then_some(sink.kind())).await;
            fits.map_err(|e| match e.find_root() {
                DataFusionError::External(cause) if cause.is::<Misfit>() => {
                    let place = readable_place(&sink.kind().place(self.scoring));
                    Error::sql(format!("{}: the rows for {place}", self.pipeline.path.display()), &e, None)
                }
                _ => self.staging_failed(&e),
            })?;
        }
        Ok(())
    }
}
