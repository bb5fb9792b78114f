//! Credentials in a URI are never repeated in an error message, on any path by which the URI came in.

use crate::support::{Job, stderr_of};

const SECRET: &str = "wJalr/XUtn+FEMI";

#[test]
fn keys_in_a_uri_are_not_repeated() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let key = |scheme: &str| format!("{scheme}://AKIA:{SECRET}@bucket/x.parquet");
    for scheme in ["s3", "gs", "az", "abfss", "hf", "https"] {
        let uri = key(scheme);
        let table = format!("d={uri}");
        let options = format!("d={{ uri = \"{uri}\" }}");
        let by_place = format!("SELECT * FROM '{uri}'");
        let in_sql = format!("SELECT predict('{uri}', 'a')");
        for arguments in [
            &["query", "-t", &table, "SELECT 1"][..],
            &["query", "-t", &options, "SELECT 1"],
            &["query", &by_place],
            &["query", &in_sql],
            &["predict", "-m", &uri, "a"],
            &["init", "--from", &uri],
            &["init", "new", "--model", &uri],
            &["model", "show", &uri],
            &["model", "import", &uri, "new"],
        ] {
            for log in ["text", "json"] {
                let message = stderr_of(job.couplet(arguments).args(["-v", "--log-format", log]), 2);
                assert!(message.contains("credentials") && !message.contains("AKIA"), "{arguments:?}: {message}");
                assert!(SECRET.split('/').all(|part| !message.contains(part)), "{arguments:?}: {message}");
            }
        }
    }
}

#[test]
fn keys_in_invalid_arguments_are_not_repeated() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let keyed = format!("s3://AKIA:{SECRET}@bucket/x.parquet");
    let signed = "https://host/x.parquet?X-Amz-Signature=AKIA";
    for uri in [&*keyed, signed] {
        for arguments in [&[uri][..], &["run", "pipeline.toml", uri], &["runs", "pipeline.toml", "-n", uri]] {
            for log in ["text", "json"] {
                let printed = stderr_of(job.couplet(arguments).args(["--log-format", log]), 2);
                assert!(
                    printed.contains("bucket/x.parquet") || printed.contains("host/x.parquet"),
                    "{arguments:?}: {printed}"
                );
                assert!(!printed.contains("AKIA") && !printed.contains(SECRET), "{arguments:?}: {printed}");
                // The rest of the message is clap's.
                assert_eq!(printed.starts_with("error: "), log == "text", "{printed}");
                assert!(printed.contains("try '--help'"), "{printed}");
            }
        }
    }
}

#[test]
fn keys_in_a_pipeline_are_not_printed_or_recorded() {
    let uri = format!("https://user:{SECRET}@host/pairs.csv");
    let message = Job::new("id,a,b\n1,x,y\n").change("pairs.csv", &uri).error(2);
    assert!(
        message.contains("pipeline.toml:") && message.contains("credentials") && !message.contains("user"),
        "{message}"
    );
    let sql = format!("SELECT id, predict('s3://AKIA:{SECRET}@bucket/m', a)['label'] AS a, b FROM pairs");
    let job = Job::new("id,a,b\n1,x,y\n").change("SELECT id, a, b FROM pairs", &sql);
    let message = job.error(2);
    assert!(message.contains("s3://…@bucket/m") && !message.contains("AKIA"), "{message}");
    let runs = job.couplet(&["runs", "pipeline.toml", "--json"]).output().unwrap();
    assert!(!String::from_utf8(runs.stdout).unwrap().contains("AKIA"));
}
