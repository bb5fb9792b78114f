//! Sends the stages of a run as OpenTelemetry spans to a collector over HTTP.
//!
//! All settings are the SDK's own environment variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, without which nothing is sent,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and the rest.
//! Spans record counts as signed integers: `tracing-opentelemetry` sends others as text.
//!
//! Credentials are removed from traces as they are from stderr: a collector stores traces and shows them to others.

use std::borrow::Cow;
use std::time::Duration;

use couplet_storage::redact::without_credentials;
use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
use opentelemetry_sdk::trace::{self, SdkTracerProvider, SpanData};
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::up_to;

/// A tracer provider that exports to a collector.
#[derive(Debug)]
pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts sending traces, if the environment names a collector.
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
                // Logging has not started yet.
                eprintln!("warning: no traces are sent: {}", without_credentials(&error.to_string()));
                return None;
            }
        };
        let resource = Resource::builder();
        let is_named = is_set("OTEL_SERVICE_NAME")
            || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|value| value.contains("service.name="));
        let resource = if is_named { resource } else { resource.with_service_name(env!("CARGO_PKG_NAME")) };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(Redacting(exporter), Tokio).build())
            .with_resource(resource.build())
            .build();
        Some(Self { provider })
    }

    /// Returns a layer that collects couplet's spans and the events in them, but not those of libraries.
    pub(super) fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> impl Layer<S> + use<S> {
        let own = |about: &tracing::Metadata<'_>| {
            about.target().starts_with(env!("CARGO_PKG_NAME")) && (about.is_span() || *about.level() <= Level::INFO)
        };
        let tracer = self.provider.tracer(env!("CARGO_PKG_NAME"));
        tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_filter(up_to(Level::INFO, own))
    }

    /// Sends the remaining traces.
    pub(super) fn end(self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last traces could not be sent: {error}");
        }
    }
}

/// An exporter that removes credentials from spans.
#[derive(Debug)]
struct Redacting<E>(E);

impl<E: trace::SpanExporter> trace::SpanExporter for Redacting<E> {
    async fn export(&self, mut spans: Vec<SpanData>) -> OTelSdkResult {
        spans.iter_mut().for_each(redact);
        self.0.export(spans).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Removes credentials from all texts of a span.
fn redact(span: &mut SpanData) {
    redact_text(&mut span.name);
    redact_values(&mut span.attributes);
    for event in &mut span.events.events {
        redact_text(&mut event.name);
        redact_values(&mut event.attributes);
    }
    if let Status::Error { description } = &mut span.status {
        redact_text(description);
    }
}

fn redact_text(text: &mut Cow<'static, str>) {
    let Cow::Owned(shown) = without_credentials(text) else { return };
    *text = Cow::Owned(shown);
}

fn redact_values(attributes: &mut [KeyValue]) {
    let redact_string = |text: &mut StringValue| {
        let Cow::Owned(shown) = without_credentials(text.as_str()) else { return };
        *text = shown.into();
    };
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => redact_string(text),
            Value::Array(Array::String(texts)) => texts.iter_mut().for_each(redact_string),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// An exporter that keeps the spans in memory.
    #[derive(Debug, Clone, Default)]
    struct Collected(Arc<Mutex<Vec<SpanData>>>);

    impl trace::SpanExporter for Collected {
        async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(spans);
            Ok(())
        }
    }

    #[test]
    fn a_collector_gets_no_credentials() {
        let collected = Collected::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(Redacting(collected.clone())).build();
        let traces = Traces { provider };
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        tracing::subscriber::with_default(subscriber, || {
            let uri = "s3://AKIA:secret@bucket/key";
            tracing::info_span!("stage", %uri, rows = 3_i64).in_scope(|| {
                tracing::warn!(place = uri, "{uri} is slow");
                tracing::error!("https://user:secret@host/x?sig=secret cannot be read");
            });
        });
        traces.end();
        let spans = collected.0.lock().unwrap();
        let text = format!("{spans:?}");
        assert!(text.contains("s3://…@bucket/key") && text.contains("s3://…@bucket/key is slow"), "{text}");
        assert!(text.contains("https://…@host/x?…"), "{text}");
        assert!(!text.contains("secret") && !text.contains("AKIA"), "{text}");
        assert!(spans[0].attributes.contains(&KeyValue::new("rows", 3_i64)), "{text}");
    }
}
