//! The stages of a run as OpenTelemetry spans, sent to a collector over HTTP.
//!
//! All settings are the SDK's own environment variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, without which nothing is sent,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and the rest.
//! Spans record counts as signed integers: `tracing-opentelemetry` sends others as text.
//!
//! What is sent is no more confidential than what is said on stderr: a collector keeps it, and shows it to others.

use std::borrow::Cow;
use std::time::Duration;

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
use crate::redact::without_credentials;

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
                eprintln!("warning: no traces are sent: {}", without_credentials(&error.to_string()));
                return None;
            }
        };
        let resource = Resource::builder();
        let is_named = is_set("OTEL_SERVICE_NAME")
            || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|value| value.contains("service.name="));
        let resource = if is_named { resource } else { resource.with_service_name(env!("CARGO_PKG_NAME")) };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(Discreet(exporter), Tokio).build())
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

/// A way to a collector, on which what is secret is left out.
#[derive(Debug)]
struct Discreet<E>(E);

impl<E: trace::SpanExporter> trace::SpanExporter for Discreet<E> {
    async fn export(&self, mut spans: Vec<SpanData>) -> OTelSdkResult {
        spans.iter_mut().for_each(hide);
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

/// Leaves out what is secret of all that a span says.
fn hide(span: &mut SpanData) {
    hide_in(&mut span.name);
    hide_in_values(&mut span.attributes);
    for event in &mut span.events.events {
        hide_in(&mut event.name);
        hide_in_values(&mut event.attributes);
    }
    if let Status::Error { description } = &mut span.status {
        hide_in(description);
    }
}

fn hide_in(text: &mut Cow<'static, str>) {
    let Cow::Owned(shown) = without_credentials(text) else { return };
    *text = Cow::Owned(shown);
}

fn hide_in_values(attributes: &mut [KeyValue]) {
    let hide_in_text = |text: &mut StringValue| {
        let Cow::Owned(shown) = without_credentials(text.as_str()) else { return };
        *text = shown.into();
    };
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => hide_in_text(text),
            Value::Array(Array::String(texts)) => texts.iter_mut().for_each(hide_in_text),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps what a collector would get.
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
        let provider = SdkTracerProvider::builder().with_simple_exporter(Discreet(collected.clone())).build();
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
        let said = format!("{spans:?}");
        assert!(said.contains("s3://…@bucket/key") && said.contains("s3://…@bucket/key is slow"), "{said}");
        assert!(said.contains("https://…@host/x?…"), "{said}");
        assert!(!said.contains("secret") && !said.contains("AKIA"), "{said}");
        assert!(spans[0].attributes.contains(&KeyValue::new("rows", 3_i64)), "{said}");
    }
}
