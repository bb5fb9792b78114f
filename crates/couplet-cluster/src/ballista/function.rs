//! The function `couplet_score(contract, key, text [, text_pair])`, which tasks call and only executors implement.
//!
//! Clients and schedulers register the function too, as plans that name it pass through them.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::datatypes::DataType;
use couplet_encoder::scorer::{Counts, DeviceSetting, Pool, Scorer, ScorerError, TextColumn, Window};
use couplet_tables::predict::text_values;
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use tokio::sync::OnceCell;

use super::contract::{Contract, Refusal};
use super::outcomes::{fields, to_array};

/// The name of the function.
pub(super) const FUNCTION: &str = "couplet_score";

/// The start of an executor's refusal. It tells the client that a retry would fail as well.
pub(super) const REFUSES: &str = "refuses the task: ";

/// The number of models that an executor keeps loaded. The least recently used one is unloaded first.
pub(super) const MODELS_KEPT: usize = 4;

/// The delay before an executor reports a failed task. Without it, an executor whose tasks fail at once would always be
/// free and would get every task.
const FAILURE_DELAY: Duration = Duration::from_secs(5);

/// The scoring part of an executor: its models and the threads that they share.
#[derive(Debug)]
pub(super) struct Worker {
    name: String,
    pool: Pool,
    device: DeviceSetting,
    models: Mutex<Vec<(Contract, Arc<OnceCell<Scorer>>)>>,
    /// The counts of models that have been unloaded.
    unloaded: Mutex<Counts>,
}

impl Worker {
    pub(super) fn new(name: String, pool: Pool, device: DeviceSetting) -> Self {
        Self { name, pool, device, models: Mutex::default(), unloaded: Mutex::default() }
    }

    pub(super) fn device(&self) -> DeviceSetting {
        self.device
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the loaded models by URI with their counts, and the total counts, which include unloaded models.
    pub(super) fn counts(&self) -> (Vec<(String, Counts)>, Counts) {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = models
            .iter()
            .filter_map(|(contract, cell)| Some((contract.model().to_owned(), cell.get()?.tally().counts())));
        let loaded: Vec<_> = loaded.collect();
        let unloaded = self.unloaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = loaded.iter().fold(unloaded, |all, (_, counts)| sum(&all, counts));
        (loaded, all)
    }

    /// Returns the model of a contract, loading it once for all tasks.
    async fn scorer(&self, contract: &Contract) -> Result<Scorer, Failure> {
        let cell = {
            let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
            let cell = match models.iter().position(|(known, _)| known == contract) {
                Some(place) => models.remove(place).1,
                None => Arc::default(),
            };
            models.insert(0, (contract.clone(), Arc::clone(&cell)));
            if models.len() > MODELS_KEPT
                && let Some((_, evicted)) = models.pop()
                && let Some(evicted) = evicted.get()
            {
                let mut unloaded = self.unloaded.lock().unwrap_or_else(PoisonError::into_inner);
                *unloaded = sum(&unloaded, &evicted.tally().counts());
            }
            cell
        };
        let load = async || {
            let (place, options) = (contract.place()?, contract.options(self.device)?);
            let scorer = Scorer::open(&place, options, &self.pool).await.map_err(|e| {
                let hint = if place.local().is_some() {
                    "; a model that a cluster scores with must be where all machines can read it: a bucket, a hub, or a folder that they share under one path"
                } else {
                    ""
                };
                let message = format!("{e}{hint}");
                if is_transient(&e) { Failure::Transient(message) } else { Failure::Permanent(Refusal(message)) }
            })?;
            contract.check(&scorer)?;
            tracing::info!(
                "loaded model {} ({}, {})",
                contract.model(),
                scorer.precision(),
                scorer.model().fingerprint.as_str()
            );
            Ok(scorer)
        };
        cell.get_or_try_init(load).await.cloned()
    }
}

/// The reason why an executor cannot score a task.
#[derive(Debug)]
enum Failure {
    /// A retry would fail as well.
    Permanent(Refusal),
    /// A retry on another executor, or later on this one, may succeed.
    Transient(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Permanent(refusal)
    }
}

/// Returns true if opening the model may succeed on a retry, for example after a server outage or a full disk.
fn is_transient(error: &ScorerError) -> bool {
    match error {
        ScorerError::Fetch(error) => !error.trouble.is_mistake(),
        ScorerError::Fetched { error, .. } => is_transient(error),
        ScorerError::Stopped | ScorerError::Forward { .. } => true,
        _ => false,
    }
}

fn sum(a: &Counts, b: &Counts) -> Counts {
    Counts {
        rows: a.rows + b.rows,
        scored: a.scored + b.scored,
        remembered: a.remembered + b.remembered,
        tokens: a.tokens + b.tokens,
        ..Counts::default()
    }
}

/// Creates the function. Without a worker, plans can name it but not execute it.
pub(super) fn score(worker: Option<Arc<Worker>>) -> ScalarUDF {
    let signature = Signature::one_of(vec![TypeSignature::Any(3), TypeSignature::Any(4)], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Score { signature, worker })).into_scalar_udf()
}

#[derive(Debug)]
struct Score {
    signature: Signature,
    worker: Option<Arc<Worker>>,
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.worker.as_ref().map(Arc::as_ptr) == other.worker.as_ref().map(Arc::as_ptr)
    }
}

impl Eq for Score {}

impl Hash for Score {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.worker.as_ref().map(Arc::as_ptr).hash(state);
    }
}

impl ScalarUDFImpl for Score {
    fn name(&self) -> &'static str {
        FUNCTION
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields()))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("{FUNCTION} is executed asynchronously")
    }
}

#[async_trait::async_trait]
impl AsyncScalarUDFImpl for Score {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(worker) = &self.worker else {
            return internal_err!("{FUNCTION} can only be executed by an executor");
        };
        let ScalarFunctionArgs { args, number_rows, .. } = args;
        let mut args = args.into_iter();
        let Some(ColumnarValue::Scalar(
            ScalarValue::Utf8(Some(contract))
            | ScalarValue::Utf8View(Some(contract))
            | ScalarValue::LargeUtf8(Some(contract)),
        )) = args.next()
        else {
            return plan_err!("the first argument of {FUNCTION} is a contract");
        };
        let name = &worker.name;
        let refused = |refusal: Refusal| DataFusionError::Execution(format!("executor {name} {REFUSES}{refusal}"));
        let failed = async |problem: String| {
            tokio::time::sleep(FAILURE_DELAY).await;
            DataFusionError::Execution(format!("executor {name} failed: {problem}"))
        };
        let contract = Contract::read(&contract).map_err(refused)?;
        let Some(keys) = args.next() else { return internal_err!("{FUNCTION} has keys") };
        let keys = keys.to_array(number_rows)?;
        let mut columns = args.enumerate().map(|(i, values)| -> Result<TextColumn> {
            Ok(TextColumn { name: contract.column(i), values: text_values(&values.to_array(number_rows)?)? })
        });
        let Some(text) = columns.next().transpose()? else { return internal_err!("{FUNCTION} has texts") };
        let window = Window::new(text, columns.next().transpose()?);
        if !window.has_keys(&keys) {
            return Err(failed("the texts of the task are damaged".into()).await);
        }
        let scorer = match worker.scorer(&contract).await {
            Ok(scorer) => scorer,
            Err(Failure::Permanent(refusal)) => return Err(refused(refusal)),
            Err(Failure::Transient(problem)) => return Err(failed(problem).await),
        };
        let outcomes = match scorer.score(window).await {
            Ok(outcomes) => outcomes,
            // A device error may not occur again, so the task is retried.
            Err(error) => return Err(failed(error.to_string()).await),
        };
        Ok(ColumnarValue::Array(Arc::new(to_array(&outcomes, &worker.name))))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use couplet_encoder::scorer::ScorerOptions;
    use couplet_storage::objects::Trouble;
    use couplet_storage::place::Place;

    fn refusal(opened: Result<Scorer, Failure>) -> String {
        match opened {
            Err(Failure::Permanent(refusal)) => refusal.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_server_says_once_is_no_refusal() {
        let fetch = |trouble| {
            ScorerError::Fetch(couplet_storage::objects::ObjectsError {
                place: "s3://b".into(),
                problem: "503".into(),
                trouble,
            })
        };
        assert!(is_transient(&fetch(Trouble::Other)) && !is_transient(&fetch(Trouble::Refused)));
    }

    #[tokio::test]
    async fn a_worker_keeps_contracts_and_refuses_another_model() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/goldens/tiny-distilbert");
        let pool = Pool::new(Some(1)).unwrap();
        let scorer = Scorer::load(&model, ScorerOptions::default(), &pool).unwrap();
        let columns = ["a".to_owned(), "b".to_owned()];
        let contract = Contract::of(&scorer, &Place::Local(model), None, &columns);
        let worker = Worker::new("one".into(), pool, DeviceSetting::Cpu);
        let loaded = worker.scorer(&contract).await.unwrap();
        assert_eq!(loaded.model().fingerprint, scorer.model().fingerprint);
        assert_eq!(worker.counts().0.len(), 1);
        let fingerprint = scorer.model().fingerprint.as_str();
        let other = contract.to_text().replace(fingerprint, &"0".repeat(fingerprint.len()));
        let refusal = refusal(worker.scorer(&Contract::read(&other).unwrap()).await);
        assert!(refusal.contains("is not the client's") && refusal.contains(fingerprint), "{refusal}");
        let nowhere = contract.to_text().replace("tiny-distilbert", "nowhere");
        let refusal = self::refusal(worker.scorer(&Contract::read(&nowhere).unwrap()).await);
        assert!(refusal.contains("nowhere") && refusal.contains("where all machines can read it"), "{refusal}");
    }
}
