//! Plans on their way: Ballista's codec, and couplet's node for calls of `predict`.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use ballista_core::serde::BallistaLogicalExtensionCodec;
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue, TableReference, plan_datafusion_err};
use datafusion::datasource::file_format::FileFormatFactory;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan};
use datafusion_proto::bytes::Serializeable;
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use serde::{Deserialize, Serialize};

use crate::predict::{self, Models};

/// Begins the form of couplet's node, which no message of Ballista's does.
const PREDICT: &[u8] = b"couplet predict\n";

/// Encodes and decodes what plans have besides DataFusion's own nodes.
#[derive(Debug, Default)]
pub(super) struct PlanCodec {
    ballista: BallistaLogicalExtensionCodec,
    /// How a client runs the models that its calls name.
    models: Option<Arc<Models>>,
}

impl PlanCodec {
    /// A client's: calls say how their models are to be run.
    pub(super) fn of(models: Arc<Models>) -> Self {
        Self { ballista: BallistaLogicalExtensionCodec::default(), models: Some(models) }
    }

    /// A call as another process understands it.
    fn sent(&self, call: &Expr) -> Result<Expr> {
        let Some(models) = &self.models else { return Ok(call.clone()) };
        // It may stand behind a name.
        let sent = call.clone().transform(|part| {
            let Expr::ScalarFunction(mut function) = part else { return Ok(Transformed::no(part)) };
            if function.func.name() == predict::FUNCTION
                && let Some(Expr::Literal(value, _)) = function.args.first_mut()
                && let Some(Some(name)) = value.try_as_str()
            {
                *value = ScalarValue::from(models.sent(name));
            }
            Ok(Transformed::yes(Expr::ScalarFunction(function)))
        });
        sent.map(|sent| sent.data)
    }
}

/// A call of `predict`, as DataFusion encodes expressions, and the column that it fills.
#[derive(Serialize, Deserialize)]
struct Call {
    call: Vec<u8>,
    name: String,
}

impl LogicalExtensionCodec for PlanCodec {
    fn try_decode(&self, buf: &[u8], inputs: &[LogicalPlan], ctx: &TaskContext) -> Result<Extension> {
        let Some(calls) = buf.strip_prefix(PREDICT) else { return self.ballista.try_decode(buf, inputs, ctx) };
        let [input] = inputs else { return Err(plan_datafusion_err!("calls of predict have one input")) };
        let calls: Vec<Call> =
            serde_json::from_slice(calls).map_err(|e| plan_datafusion_err!("calls of predict cannot be read: {e}"))?;
        let calls = calls.into_iter().map(|call| Ok((Expr::from_bytes_with_ctx(&call.call, ctx)?, call.name)));
        predict::node_of_calls(input.clone(), calls.collect::<Result<_>>()?)
    }

    fn try_encode(&self, node: &Extension, buf: &mut Vec<u8>) -> Result<()> {
        let Some(calls) = predict::calls_of_node(node) else { return self.ballista.try_encode(node, buf) };
        let calls = calls
            .iter()
            .map(|(call, name)| Ok(Call { call: self.sent(call)?.to_bytes()?.to_vec(), name: name.clone() }));
        buf.extend_from_slice(PREDICT);
        serde_json::to_writer(buf, &calls.collect::<Result<Vec<_>>>()?)
            .map_err(|e| plan_datafusion_err!("calls of predict cannot be written: {e}"))
    }

    fn try_decode_table_provider(
        &self,
        buf: &[u8],
        table_ref: &TableReference,
        schema: SchemaRef,
        ctx: &TaskContext,
    ) -> Result<Arc<dyn TableProvider>> {
        self.ballista.try_decode_table_provider(buf, table_ref, schema, ctx)
    }

    fn try_encode_table_provider(
        &self,
        table_ref: &TableReference,
        node: Arc<dyn TableProvider>,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        self.ballista.try_encode_table_provider(table_ref, node, buf).map_err(|_| {
            plan_datafusion_err!(
                "a cluster cannot read table {table_ref}, which is only in this process: query it without --cluster"
            )
        })
    }

    fn try_decode_file_format(&self, buf: &[u8], ctx: &TaskContext) -> Result<Arc<dyn FileFormatFactory>> {
        self.ballista.try_decode_file_format(buf, ctx)
    }

    fn try_encode_file_format(&self, buf: &mut Vec<u8>, node: Arc<dyn FileFormatFactory>) -> Result<()> {
        self.ballista.try_encode_file_format(buf, node)
    }
}
