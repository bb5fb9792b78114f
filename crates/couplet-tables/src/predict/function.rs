//! The SQL function: a thin wrapper around [`Scorer::score`](couplet_encoder::scorer::Scorer::score).

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use couplet_encoder::scorer::{TextColumn, Window};
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::columns::{prediction_fields, predictions_to_array};
use super::{FUNCTION, Models};

/// Creates the function over a set of models.
pub(super) fn predict(models: Arc<Models>) -> ScalarUDF {
    // `Volatile` keeps the planner from evaluating calls on literals itself, which an async function does not support.
    // It does not keep calls from being copied; hoisting does.
    let signature = Signature::one_of(vec![TypeSignature::String(2), TypeSignature::String(3)], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Predict { signature, models })).into_scalar_udf()
}

#[derive(Debug)]
struct Predict {
    signature: Signature,
    models: Arc<Models>,
}

impl PartialEq for Predict {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.models, &other.models)
    }
}

impl Eq for Predict {}

impl Hash for Predict {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.models).hash(state);
    }
}

impl ScalarUDFImpl for Predict {
    fn name(&self) -> &'static str {
        FUNCTION
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(prediction_fields()))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("{FUNCTION} was planned without its node: the session lacks couplet's rule or planner")
    }
}

#[async_trait::async_trait]
impl AsyncScalarUDFImpl for Predict {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ScalarFunctionArgs { args, number_rows, .. } = args;
        let mut args = args.into_iter();
        let Some(ColumnarValue::Scalar(
            ScalarValue::Utf8(Some(model)) | ScalarValue::Utf8View(Some(model)) | ScalarValue::LargeUtf8(Some(model)),
        )) = args.next()
        else {
            return plan_err!("the first argument of {FUNCTION} names the model and must not be NULL");
        };
        let mut columns = ["text", "text_pair"].into_iter().zip(args).map(|(name, values)| -> Result<TextColumn> {
            let values = text_values(&values.to_array(number_rows)?)?;
            Ok(TextColumn { name: name.to_owned(), values })
        });
        let Some(text) = columns.next().transpose()? else {
            return internal_err!("{FUNCTION} has at least two arguments");
        };
        let window = Window::new(text, columns.next().transpose()?);
        let external = |e| DataFusionError::External(Box::new(e));
        let scorer = self.models.get(&model).await.map_err(external)?;
        let outcomes = scorer.score(window).await.map_err(external)?;
        Ok(ColumnarValue::Array(Arc::new(predictions_to_array(&outcomes, &scorer.model().config))))
    }
}

/// Converts any Arrow string array to a string view array.
///
/// # Errors
/// A column that is not text.
pub fn text_values(values: &ArrayRef) -> Result<StringViewArray> {
    match values.data_type() {
        DataType::Utf8View => Ok(values.as_string_view().clone()),
        _ => Ok(cast(values, &DataType::Utf8View)?.as_string_view().clone()),
    }
}
