//! The stages of a run as OpenTelemetry spans, sent to a collector over HTTP.
//!
//! All settings are the SDK's own environment variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, without which nothing is sent,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and the rest.
//! Spans record counts as signed integers: `tracing-opentelemetry` sends others as text.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::up_to;

/// Traces on their way to a collector.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins to send traces, if the environment names a collector.
    pub(super) fn from_environment() -> Option<Self> {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        if is_off || !["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"].into_iter().any(is_set) {
            return None;
        }
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build();
        let exporter = match exporter {
            Ok(exporter) => exporter,
            Err(error) => {
                // There is nothing yet that writes log lines.
                eprintln!("warning: no traces are sent: {error}");
                return None;
            }
        };
        let resource = Resource::builder();
        let is_named = is_set("OTEL_SERVICE_NAME")
            || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|value| value.contains("service.name="));
        let resource = if is_named { resource } else { resource.with_service_name(env!("CARGO_PKG_NAME")) };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter, Tokio).build())
            .with_resource(resource.build())
            .build();
        Some(Self { provider })
    }

    /// What collects couplet's own spans, and what is said within them; not what the libraries below say.
    pub(super) fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> impl Layer<S> + use<S> {
        let own = |about: &tracing::Metadata<'_>| {
            about.target().starts_with(env!("CARGO_PKG_NAME")) && (about.is_span() || *about.level() <= Level::INFO)
        };
        let tracer = self.provider.tracer(env!("CARGO_PKG_NAME"));
        tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_filter(up_to(Level::INFO, own))
    }

    /// Sends what is left.
    pub(super) fn end(self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last traces could not be sent: {error}");
        }
    }
}
