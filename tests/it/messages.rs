//! The amount and the format of messages on stderr.

use serde_json::Value;

use crate::fuzz_targets::archive;
use crate::support::{Job, couplet, stderr_of, stdout_of};
use crate::tiny::{ARCHIVE, Variant};

const PAIRS: &str = "id,a,b\n1,He sold it.,It was sold.\n2,,x\n";

fn outputs_of(job: &Job, arguments: &[&str]) -> (String, String) {
    let output = job.run().arg("--fresh").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

#[test]
fn quiet_prints_nothing_and_verbose_prints_more() {
    let job = Job::new(PAIRS);
    let usual = outputs_of(&job, &[]);
    assert!(usual.0.starts_with("demo: done\n"), "{}", usual.0);
    for quiet in [&["-q"][..], &["--quiet"], &["-qq"]] {
        assert_eq!(outputs_of(&job, quiet), (String::new(), String::new()));
    }
    let verbose = outputs_of(&job, &["-v"]).1;
    assert!(verbose.contains("DEBUG"), "{verbose}");
    let more = outputs_of(&job, &["-vvv"]).1;
    assert!(more.len() > verbose.len() && more.contains("datafusion"), "{more}");
    // The option is accepted before and after the command.
    assert_eq!(stdout_of(&mut job.couplet(&["-q", "run", "pipeline.toml"])), "");
    let wrong = stderr_of(job.run().args(["-q", "-v"]), 2);
    assert!(wrong.contains("cannot be used with"), "{wrong}");
}

#[test]
fn rust_log_overrides_the_switches() {
    let job = Job::new(PAIRS);
    let stderr = stderr_of(job.run().args(["-vvv"]).env("RUST_LOG", "off"), 0);
    assert_eq!(stderr, "");
    let stderr = stderr_of(job.run().arg("-q").env("RUST_LOG", "couplet=debug"), 0);
    assert!(stderr.contains("DEBUG"), "{stderr}");
}

#[test]
fn json_logs_have_one_document_per_line_and_include_errors() {
    let job = Job::new(PAIRS);
    let (stdout, stderr) = outputs_of(&job, &["--log-format", "json", "-v"]);
    assert!(stdout.starts_with("demo: done\n"));
    let lines: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
    // The stage that logged the message.
    assert!(lines.iter().any(|line| line["span"]["name"].is_string()), "{stderr}");

    let job = job.change("\"id\"", "\"key\"");
    let stderr = stderr_of(job.run().args(["--log-format", "json"]), 2);
    let error: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&error["level"], &error["fields"]["exit_code"]), (&"ERROR".into(), &2.into()));
    let message = error["fields"]["message"].as_str().unwrap();
    assert!(message.contains("source.id names `key`"), "{message}");
    let job = job.add("[runn]");
    let stderr = stderr_of(job.run().args(["--log-format", "json"]), 2);
    let error: Value = serde_json::from_str(stderr.trim_end()).unwrap();
    assert!(error["fields"]["message"].as_str().unwrap().contains("unknown key `runn`"), "{stderr}");
}

#[test]
fn argument_errors_use_the_requested_log_format() {
    let job = Job::new(PAIRS);
    for json in [&["--log-format", "json"][..], &["--log-format=json"]] {
        let stderr = stderr_of(job.run().arg("--nope").args(json), 2);
        let error: Value = serde_json::from_str(stderr.trim_end()).unwrap();
        assert_eq!((&error["level"], &error["fields"]["exit_code"]), (&"ERROR".into(), &2.into()));
        let message = error["fields"]["message"].as_str().unwrap();
        assert!(message.starts_with("unexpected argument '--nope' found"), "{message}");
    }
    assert!(stderr_of(job.run().arg("--nope"), 2).starts_with("error: unexpected argument '--nope' found"));
    // A request for help is not an error.
    assert!(stdout_of(job.run().args(["--log-format", "json", "--help"])).starts_with("Run a pipeline"));
}

#[test]
fn output_to_a_file_has_no_colors() {
    let job = Job::new(PAIRS);
    let mut run = job.run();
    let output = run.env_remove("NO_COLOR").args(["-v", "--fresh"]).output().unwrap();
    for bytes in [output.stdout, output.stderr] {
        assert!(!bytes.contains(&0x1b));
    }
}

#[test]
fn library_errors_have_no_backtrace() {
    // candle's pickle interpreter meets an unknown opcode, and captures a backtrace if RUST_BACKTRACE is set.
    let pickle = archive(&[("archive/data.pkl".into(), b"\x80\x02\xff.".into())]);
    let model = Variant::of("tiny-bert-bin").with(ARCHIVE, pickle);
    for arguments in [&["model", "show"][..], &["predict", "a", "b", "--model"]] {
        let stderr_with = |backtrace: &str| {
            let mut command = couplet();
            command.args(arguments).arg(model.folder()).env("RUST_BACKTRACE", backtrace);
            stderr_of(&mut command, 2)
        };
        let plain = stderr_with("0");
        assert!(plain.contains("(unknown op-code 255)"), "{plain}");
        assert_eq!(stderr_with("1"), plain);
        assert_eq!(stderr_with("full"), plain);
    }
    let query = |backtrace: &str| {
        let mut command = couplet();
        command.args(["query", "SELECT a FROM (SELECT 1 AS b)"]).env("RUST_BACKTRACE", backtrace);
        stderr_of(&mut command, 2)
    };
    assert_eq!(query("1"), query("0"));
}
