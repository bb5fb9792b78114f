//! Serializes plans: Ballista's codecs, extended by couplet's node for calls of `predict`, its tables of files and its
//! reader of text files.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use ballista_core::serde::{BallistaLogicalExtensionCodec, BallistaPhysicalExtensionCodec};
use couplet_tables::predict::{self, Models};
use couplet_tables::tables::{FileTable, TextSource};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue, TableReference, plan_datafusion_err};
use datafusion::datasource::file_format::FileFormatFactory;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::bytes::Serializeable;
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use datafusion_proto::physical_plan::from_proto::{parse_protobuf_file_scan_config, parse_table_schema_from_proto};
use datafusion_proto::physical_plan::to_proto::serialize_file_scan_config;
use datafusion_proto::physical_plan::{
    PhysicalExtensionCodec, PhysicalPlanDecodeContext, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::FileScanExecConf;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::listed::only_listed;

/// The prefix of a serialized `predict` node. No message of Ballista starts with it.
const PREDICT: &[u8] = b"couplet predict\n";

/// The prefix of a serialized table of files.
const TABLE: &[u8] = b"couplet table\n";

/// The prefix of a serialized scan of text files.
const SCAN: &[u8] = b"couplet scan\n";

/// Encodes and decodes the logical nodes and tables that are not DataFusion's own.
#[derive(Debug, Default)]
pub(super) struct PlanCodec {
    ballista: BallistaLogicalExtensionCodec,
    /// The client's models and their settings; none on schedulers and executors.
    models: Option<Arc<Models>>,
}

impl PlanCodec {
    /// Returns the codec of a client, which adds the settings of its models to calls of `predict`.
    pub(super) fn of(models: Arc<Models>) -> Self {
        Self { ballista: BallistaLogicalExtensionCodec::default(), models: Some(models) }
    }

    /// Rewrites a call so that another process runs it with the same settings.
    fn portable_call(&self, call: &Expr) -> Result<Expr> {
        let Some(models) = &self.models else { return Ok(call.clone()) };
        // The call may have an alias.
        let sent = call.clone().transform(|part| {
            let Expr::ScalarFunction(mut function) = part else { return Ok(Transformed::no(part)) };
            if function.func.name() == predict::FUNCTION
                && let Some(Expr::Literal(value, _)) = function.args.first_mut()
                && let Some(Some(name)) = value.try_as_str()
            {
                *value = ScalarValue::from(models.portable_name(name));
            }
            Ok(Transformed::yes(Expr::ScalarFunction(function)))
        });
        sent.map(|sent| sent.data)
    }
}

/// A call of `predict` in DataFusion's encoding of expressions, and the name of its result column.
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
            .map(|(call, name)| Ok(Call { call: self.portable_call(call)?.to_bytes()?.to_vec(), name: name.clone() }));
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
        let Some(table) = buf.strip_prefix(TABLE) else {
            return self.ballista.try_decode_table_provider(buf, table_ref, schema, ctx);
        };
        let table = FileTable::from_json(table);
        Ok(Arc::new(table.map_err(|e| plan_datafusion_err!("table {table_ref} cannot be read: {e}"))?))
    }

    fn try_encode_table_provider(
        &self,
        table_ref: &TableReference,
        node: Arc<dyn TableProvider>,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        if let Some(table) = node.downcast_ref::<FileTable>() {
            buf.extend_from_slice(TABLE);
            let json = table.to_json();
            buf.extend(json.map_err(|e| plan_datafusion_err!("table {table_ref} cannot be sent to a cluster: {e}"))?);
            return Ok(());
        }
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

/// Encodes and decodes the physical nodes that are not DataFusion's own.
#[derive(Debug, Default)]
pub(super) struct ScanCodec {
    ballista: BallistaPhysicalExtensionCodec,
    /// True if scans refuse files that have been replaced since they were listed.
    only_listed: bool,
}

impl ScanCodec {
    /// Returns the codec of an executor, whose scans read only the listed versions of files.
    pub(super) fn of_executor() -> Self {
        Self { only_listed: true, ..Self::default() }
    }
}

/// A scan of text files.
#[derive(Clone, PartialEq, Message)]
struct TextScan {
    /// The files and the columns to read.
    #[prost(message, required, tag = "1")]
    scan: FileScanExecConf,
    /// The settings of the reader: a [`TextSource`] as JSON.
    #[prost(bytes = "vec", tag = "2")]
    source: Vec<u8>,
}

impl PhysicalExtensionCodec for ScanCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(scan) = buf.strip_prefix(SCAN) else {
            if !self.only_listed {
                return self.ballista.try_decode(buf, inputs, ctx, converter);
            }
            // Each plan of a task is the input of a Ballista node that writes its result.
            let inputs = inputs.iter().map(|input| only_listed(Arc::clone(input), ctx)).collect::<Result<Vec<_>>>()?;
            return self.ballista.try_decode(buf, &inputs, ctx, converter);
        };
        let TextScan { scan, source } =
            TextScan::decode(scan).map_err(|e| plan_datafusion_err!("a scan cannot be read: {e}"))?;
        let source = TextSource::from_json(&source, parse_table_schema_from_proto(&scan)?)?;
        let context = PhysicalPlanDecodeContext::new(ctx, self);
        let config = parse_protobuf_file_scan_config(&scan, &context, converter, Arc::new(source))?;
        Ok(DataSourceExec::from_data_source(config))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let scan = node.downcast_ref::<DataSourceExec>();
        let scan = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
        let Some((scan, source)) = scan.and_then(|scan| Some((scan, scan.file_source().downcast_ref::<TextSource>()?)))
        else {
            return self.ballista.try_encode(node, buf, converter);
        };
        let source = source.to_json().map_err(|e| plan_datafusion_err!("a scan cannot be sent: {e}"))?;
        let scan = serialize_file_scan_config(scan, self, converter)?;
        buf.extend_from_slice(SCAN);
        TextScan { scan, source }.encode(buf).map_err(|e| plan_datafusion_err!("a scan cannot be sent: {e}"))
    }
}
