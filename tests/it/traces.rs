//! Traces as an OpenTelemetry collector receives them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;

use crate::nights::pairs;
use crate::support::{Job, stderr_of, stdout_of};

/// A collector that accepts requests until the test ends.
fn collector() -> (String, Receiver<(String, ResourceSpans)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (path, body) = request(&mut client.unwrap());
            for spans in ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans {
                // The receiver is gone if the test has failed.
                let _ = sender.send((path.clone(), spans));
            }
        }
    });
    (endpoint, receiver)
}

/// Reads and answers one request. Returns its path and body.
fn request(client: &mut TcpStream) -> (String, Vec<u8>) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 1 << 14]);
    loop {
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0, "the request ends early");
        bytes.extend_from_slice(&buffer[..n]);
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head) = request.parse(&bytes).unwrap() else { continue };
        let header = |name: &str| {
            let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(header.value).into_owned())
        };
        assert_eq!(header("content-type").as_deref(), Some("application/x-protobuf"));
        let length: usize = header("content-length").unwrap().parse().unwrap();
        if bytes.len() == head + length {
            write!(client, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            return (request.path.unwrap().to_owned(), bytes.split_off(head));
        }
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

#[test]
fn a_run_sends_a_trace_of_its_stages_and_steps() {
    let (endpoint, collected) = collector();
    let job = Job::new(pairs(0, 300));
    stdout_of(job.run().env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_RESOURCE_ATTRIBUTES", "night=7"));
    let mut spans: Vec<Span> = Vec::new();
    while let Ok((path, resource)) = collected.recv_timeout(Duration::from_millis(200)) {
        assert_eq!(path, "/v1/traces");
        let about = resource.resource.unwrap().attributes;
        assert_eq!(value(&about, "service.name"), Some(&Value::StringValue("couplet".into())));
        assert_eq!(value(&about, "night"), Some(&Value::StringValue("7".into())));
        spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
    }
    let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:#?}"));
    let (run, score) = (find("run"), find("score"));
    assert!(run.parent_span_id.is_empty());
    assert_eq!(value(&run.attributes, "pipeline"), Some(&Value::StringValue("demo".into())));
    assert_eq!(score.parent_span_id, run.span_id);
    for span in &spans {
        assert_eq!(span.trace_id, run.trace_id);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert!(run.start_time_unix_nano <= span.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= run.end_time_unix_nano);
    }
    let steps: Vec<_> = spans.iter().filter(|span| span.parent_span_id == score.span_id).collect();
    let sums = |key: &str| -> Vec<(&str, i64)> {
        let number = |span: &Span| match value(&span.attributes, key)? {
            Value::IntValue(number) => Some(*number),
            other => panic!("{other:?}"),
        };
        steps.iter().filter_map(|span| Some((span.name.as_str(), number(span)?))).collect()
    };
    println!("{:?} {:?} {:?}", sums("rows"), sums("texts"), sums("tokens"));
    // Every third pair repeats the one before it.
    assert!(sums("rows").iter().all(|(_, rows)| *rows == 300) && !sums("rows").is_empty(), "{steps:#?}");
    assert!(matches!(sums("texts")[..], [(_, 200)]), "{steps:#?}");
    assert!(matches!(sums("tokens")[..], [(_, tokens)] if tokens > 200), "{steps:#?}");
}

#[test]
fn an_unreachable_collector_does_not_fail_a_run() {
    let job = Job::new(pairs(0, 3));
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut run = job.run();
    let stderr = stderr_of(run.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{refused}")), 0);
    println!("{stderr}");
    assert!(job.output().exists());
}
