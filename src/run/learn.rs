//! The stages that train: rows from SQL, a job on the inference threads, progress, and what came of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;

use super::rows::Selection;
use super::{folder_of, pool, readable};
use crate::config::{Finetune, Learning, Pipeline, Pretrain, Query, ScheduleShape, Validation};
use crate::error::Error;
use crate::predict::Models;
use crate::progress::{Style, TrainingProgress};
use crate::report::StageReport;
use crate::scorer::Pool;
use crate::session;
use crate::train::course::{Interval, JobError, Outcome, Watch};
use crate::train::sampling::HoldOut;
use crate::train::{AdamW, Hyper, Shape, Warmup, finetune as tuning, pretrain as pretraining};

/// Fine-tunes, unless the output holds already what this very stage leaves.
pub(super) async fn finetune(
    pipeline: &Pipeline,
    stage: &Finetune,
    variables: &BTreeMap<String, String>,
    style: Style,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Result<StageReport, Error> {
    let began = Instant::now();
    let Learning { base, output, .. } = &stage.learning;
    let mut job = tuning::Job::new(&base.path, &output.path, stage.task);
    (job.training, job.validation) = tokio::select! {
        biased;
        () = &mut *stop => return Err(interrupted_before(&stage.learning)),
        rows = labelled_rows(pipeline, stage, variables) => rows?,
    };
    job.labels.clone_from(&stage.labels);
    job.hyper = Hyper { patience: stage.patience.map(|n| n as u64), ..hyper(&stage.learning) };
    job.label_smoothing = stage.label_smoothing as f32;
    job.class_weights = stage.class_weights.clone();
    job.metric = stage.metric;
    job.promote_if = stage.promote_if.clone();
    job.interval = Interval::Seconds(stage.learning.checkpoint.as_secs_f64());
    let pool = pool(pipeline.run.threads)?;
    let done = {
        let job = job.clone();
        blocking(pipeline, "finetune", move || job.is_done()).await?
    };
    if done {
        return Ok(StageReport::unchanged(readable(&output.path), began.elapsed()));
    }
    let rows = job.training.len() as u64;
    let outcome = train(pipeline, "finetune", style, pool, stop, move |pool, watch| {
        tuning::run(&job, &Device::Cpu, pool.rayon(), watch)
    });
    let report = finished(outcome.await?)?;
    let mut lines = vec![format!("{rows} rows, {} steps; the model is that of epoch {}", report.steps, report.epoch)];
    if let Some(evaluation) = &report.evaluation {
        lines.push(format!("{} held-out rows: {}", evaluation.rows, evaluation.metrics));
    }
    let promoted = match &report.promotion {
        tuning::Promotion::Published => true,
        tuning::Promotion::Rejected { candidate, verdict } => {
            lines.push(format!("not promoted, as {verdict}; the new model is {}", readable(candidate).display()));
            false
        }
    };
    Ok(StageReport { folder: readable(&output.path), lines, promoted, elapsed: began.elapsed(), json: report.json })
}

/// Pretrains, unless the output holds already what this very stage leaves.
pub(super) async fn pretrain(
    pipeline: &Pipeline,
    stage: &Pretrain,
    variables: &BTreeMap<String, String>,
    style: Style,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Result<StageReport, Error> {
    let began = Instant::now();
    let Learning { base, output, .. } = &stage.learning;
    let mut job = pretraining::Job::new(pretraining::Start::Checkpoint(base.path.clone()), &output.path);
    job.texts = tokio::select! {
        biased;
        () = &mut *stop => return Err(interrupted_before(&stage.learning)),
        texts = plain_texts(pipeline, stage, variables) => texts?,
    };
    job.hold_out = match stage.learning.validation {
        Validation::Share(share) => Some(hold_out(pipeline, "pretrain", share, stage.learning.seed)?),
        Validation::Sql(_) => {
            let problem = "pretrain.validation must be a share of the rows, as in 0.05".to_owned();
            return Err(Error::Source { pipeline: pipeline.path.display().to_string(), problem });
        }
    };
    job.hyper = hyper(&stage.learning);
    job.mask_probability = stage.mask_probability;
    job.interval = Interval::Seconds(stage.learning.checkpoint.as_secs_f64());
    let pool = pool(pipeline.run.threads)?;
    let done = {
        let job = job.clone();
        blocking(pipeline, "pretrain", move || job.is_done()).await?
    };
    if done {
        return Ok(StageReport::unchanged(readable(&output.path), began.elapsed()));
    }
    let rows = job.texts.len();
    let outcome = train(pipeline, "pretrain", style, pool, stop, move |pool, watch| {
        pretraining::run(&job, &Device::Cpu, pool.rayon(), watch)
    });
    let report = finished(outcome.await?)?;
    let mut lines = vec![format!("{rows} texts, {} steps; the model is that of epoch {}", report.steps, report.epoch)];
    for measured in &report.measured {
        let words = |words: &crate::train::MaskedWords| {
            let (loss, share) = (words.loss, words.correct as f64 / words.words.max(1) as f64);
            format!("perplexity {:.2}, {:.1} % right", loss.exp(), 100.0 * share)
        };
        lines.push(format!(
            "held-out words, {} of them hidden: {} before, {} after",
            measured.mask_probability,
            words(&measured.before),
            words(&measured.after)
        ));
    }
    Ok(StageReport {
        folder: readable(&output.path),
        lines,
        promoted: true,
        elapsed: began.elapsed(),
        json: report.json,
    })
}

/// Runs a job on threads of its own until it is done, or has saved its state after `stop`.
async fn train<R: Send + 'static>(
    pipeline: &Pipeline,
    section: &'static str,
    style: Style,
    pool: Pool,
    stop: &mut (impl Future<Output = ()> + Unpin),
    run: impl FnOnce(&Pool, &mut Watch) -> Result<Outcome<R>, JobError> + Send + 'static,
) -> Result<Outcome<R>, Error> {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopped);
    let mut progress = TrainingProgress::start(style);
    let mut job = std::pin::pin!(blocking(pipeline, section, move || {
        let mut watch = Watch { event: &mut |event| progress.show(event), cancelled: &|| flag.load(Ordering::Relaxed) };
        run(&pool, &mut watch)
    }));
    tokio::select! {
        biased;
        done = &mut job => return done,
        () = &mut *stop => stopped.store(true, Ordering::Relaxed),
    }
    job.await
}

async fn blocking<R: Send + 'static>(
    pipeline: &Pipeline,
    section: &'static str,
    work: impl FnOnce() -> Result<R, JobError> + Send + 'static,
) -> Result<R, Error> {
    let context = || format!("{}: [{section}]", pipeline.path.display());
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Error::Training { context: context(), error: Box::new(error) }),
        Err(error) => Err(Error::Io { context: context(), error: std::io::Error::other(error) }),
    }
}

fn finished<R>(outcome: Outcome<R>) -> Result<R, Error> {
    match outcome {
        Outcome::Finished(report) => Ok(report),
        Outcome::Interrupted { step, total_steps, state } => Err(Error::Interrupted {
            after: format!("after step {step} of {total_steps}"),
            kept: format!("its state is in {}. Run the same command again to go on", readable(&state).display()),
        }),
    }
}

fn interrupted_before(learning: &Learning) -> Error {
    let kept = format!("{} is as it was before", readable(&learning.output.path).display());
    Error::Interrupted { after: "before training began".into(), kept }
}

fn hyper(learning: &Learning) -> Hyper {
    Hyper {
        epochs: learning.epochs as u64,
        batch_size: learning.batch_size,
        learning_rate: learning.learning_rate,
        shape: match learning.schedule {
            ScheduleShape::Linear => Shape::Linear,
            ScheduleShape::Cosine => Shape::Cosine,
            ScheduleShape::Constant => Shape::Constant,
        },
        warmup: Warmup::Share(learning.warmup),
        adamw: AdamW { eps: learning.adam_epsilon, weight_decay: learning.weight_decay, ..AdamW::default() },
        max_grad_norm: Some(learning.max_grad_norm),
        max_length: learning.max_length,
        seed: learning.seed,
        ..Hyper::default()
    }
}

fn hold_out(pipeline: &Pipeline, section: &str, share: f64, seed: u64) -> Result<HoldOut, Error> {
    HoldOut::try_new(share, seed).map_err(|e| Error::Source {
        pipeline: pipeline.path.display().to_string(),
        problem: format!("{section}.validation: {e}"),
    })
}

/// A session over the pipeline's tables.
async fn open(pipeline: &Pipeline) -> Result<datafusion::prelude::SessionContext, Error> {
    let models = Models::new(pool(Some(1))?, folder_of(&pipeline.path));
    // One partition keeps the rows in the order of the files, on which training depends.
    session::open(&pipeline.tables, Arc::new(models), pipeline.run.window, 1).await.map_err(Error::Tables)
}

async fn labelled_rows(
    pipeline: &Pipeline,
    stage: &Finetune,
    variables: &BTreeMap<String, String>,
) -> Result<(Vec<tuning::Row>, Vec<tuning::Row>), Error> {
    let context = open(pipeline).await?;
    let selection = Selection { pipeline, context: &context, section: "finetune", variables };
    let id = stage.id.as_ref().unwrap_or(&stage.text);
    let read = async |query: &Query| {
        let columns: Vec<&str> =
            stage.text.iter().chain(id).map(String::as_str).chain([stage.label.as_str()]).collect();
        let mut rows = Vec::new();
        for batch in selection.read(query, &columns).await? {
            let text = selection.texts(&batch, &stage.text[0])?;
            let pair = stage.text.get(1).map(|name| selection.texts(&batch, name)).transpose()?;
            let mut pair = pair.map(Vec::into_iter);
            for (i, (text, label)) in text.into_iter().zip(selection.labels(&batch, &stage.label)?).enumerate() {
                let text_pair = pair.as_mut().and_then(Iterator::next);
                rows.push(tuning::Row { id: selection.id(&batch, id, i)?, text, text_pair, label });
            }
        }
        Ok::<_, Error>(rows)
    };
    let rows = read(&stage.learning.query).await?;
    match &stage.learning.validation {
        Validation::Sql(sql) => Ok((rows, read(&Query::Sql(sql.clone())).await?)),
        Validation::Share(share) => {
            let hold_out = hold_out(pipeline, "finetune", *share, stage.learning.seed)?;
            let (validation, training) = rows.into_iter().partition(|row| hold_out.holds_out(&row.id));
            Ok((training, validation))
        }
    }
}

async fn plain_texts(
    pipeline: &Pipeline,
    stage: &Pretrain,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<String>, Error> {
    let context = open(pipeline).await?;
    let selection = Selection { pipeline, context: &context, section: "pretrain", variables };
    let column = stage.text.as_deref().unwrap_or("text");
    let mut texts = Vec::new();
    for batch in selection.read(&stage.learning.query, &[column]).await? {
        texts.append(&mut selection.texts(&batch, column)?);
    }
    Ok(texts)
}
