//! `couplet plan`: predicts what a run does and where it writes, and writes nothing itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::support::{Job, couplet, golden, quickstart_model, quickstart_pairs, root, stderr_of, stdout_of, write};

/// The files below a folder with their sizes and times.
fn files(folder: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path.display().to_string(), (metadata.len(), metadata.modified().unwrap()));
        }
    }
    found
}

/// The plan of a job, after a check that the job's folder is unchanged.
fn plan(job: &Job, arguments: &[&str]) -> Value {
    let before = files(&job.path(""));
    let mut command = job.couplet(&["plan", "pipeline.toml", "--json"]);
    let json = stdout_of(command.args(arguments));
    assert_eq!(files(&job.path("")), before, "a plan wrote something");
    serde_json::from_str(&json).unwrap()
}

#[test]
fn a_plan_predicts_what_the_run_does() {
    let job = Job::over_quickstart_pairs();
    let planned = plan(&job, &[]);
    let table = &planned["tables"][0];
    assert_eq!((table["rows"].as_u64(), table["format"].as_str()), (Some(525), Some("Parquet")), "by the footer");
    assert_eq!(table["bytes"].as_u64(), Some(quickstart_pairs().metadata().unwrap().len()));

    let report = job.report();
    assert_eq!(planned["score"]["rows"]["to_score"], report["rows"]["scored"]);
    assert_eq!(planned["score"]["model"]["fingerprint"], report["model"]["fingerprint"]);
    // All texts are in the sample, so that nothing is extrapolated.
    assert_eq!(planned["score"]["tokens"]["all"], report["tokens"]["scored"]);
    assert_eq!(planned["score"]["tokens"]["padding_avoided"], report["tokens"]["padding_avoided"]);
    assert_eq!(planned["predicted"]["tokens"], report["tokens"]["scored"]);
    assert!(planned["predicted"]["seconds"]["all"].as_f64().unwrap() > 0.0);

    // The scores are cached, and a plan finds them as the next run will.
    let again = plan(&job, &[]);
    let rows = &again["score"]["rows"];
    assert_eq!((rows["to_score"].as_u64(), rows["remembered"].as_u64()), (Some(0), Some(525)));
    assert_eq!(plan(&job, &["--fresh"])["score"]["rows"]["to_score"], 525);
}

#[test]
fn lengths_are_reported_before_truncation() {
    let long = "one two three four five six seven eight nine ten ".repeat(30);
    let job =
        Job::new(format!("id,a,b\n1,{long},x\n2,a b,c\n3,,y\n4,a b,c\n")).change("[sink]", "max_length = 16\n[sink]");
    let planned = plan(&job, &[]);
    let (tokens, rows) = (&planned["score"]["tokens"], &planned["score"]["rows"]);
    assert!(tokens["max"].as_u64().unwrap() > 300, "{tokens}");
    assert_eq!((tokens["max_length"].as_u64(), tokens["truncated"].as_u64()), (Some(16), Some(1)));
    assert_eq!((rows["repeated"].as_u64(), rows["rejected"].as_u64()), (Some(1), Some(1)));
    assert_eq!(planned["tables"][0]["rows"], Value::Null, "a CSV file does not say");
    let text = stdout_of(&mut job.couplet(&["plan", "pipeline.toml"]));
    assert!(text.contains("1 of 2 are truncated to max_length = 16 (50.0 %)"), "{text}");
    assert!(text.contains("1 with NULL text") || text.contains("1 with empty text"), "{text}");
    assert!(text.ends_with("nothing was written\n"), "{text}");
}

#[test]
fn only_some_rows_are_read_on_request() {
    let job = Job::over_quickstart_pairs();
    let planned = plan(&job, &["--rows", "100"]);
    let rows = &planned["score"]["rows"];
    assert_eq!(
        (rows["read"].as_u64(), rows["of"].as_u64(), rows["limited"].as_bool()),
        (Some(100), Some(525), Some(true))
    );
    // A run reads all rows, and so does the estimate.
    let (predicted, tokens) = (&planned["predicted"], &planned["score"]["tokens"]);
    assert_eq!((&planned["score"]["rows"]["to_score"], &predicted["rows"]), (&100.into(), &525.into()));
    assert_eq!(predicted["tokens"].as_f64(), Some((tokens["mean"].as_f64().unwrap() * 525.0).round()));
    // All rows were read, regardless of `--rows`.
    let all = plan(&job, &["--rows", "525", "--fresh"]);
    assert_eq!((&all["score"]["rows"]["limited"], &all["predicted"]["rows"]), (&false.into(), &525.into()));
}

#[test]
fn a_plan_of_the_first_rows_estimates_no_run() {
    let job = Job::new("id,a,b\n1,x,y\n2,x,z\n3,y,z\n");
    let planned = plan(&job, &["--rows", "2"]);
    assert_eq!((&planned["score"]["rows"]["limited"], &planned["predicted"]), (&true.into(), &Value::Null));
}

#[test]
fn a_plan_reports_why_a_run_would_fail_with_its_exit_code() {
    let twice = Job::new("id,a,b\n1,x,y\n1,z,y\n");
    let message = stderr_of(&mut twice.couplet(&["plan", "pipeline.toml"]), 2);
    assert!(message.contains("must be unique") && message.contains("2 times"), "{message}");

    let rejected = Job::new("id,a,b\n1,,y\n2,z,y\n").add("[score]\nmax_errors = 0.1");
    let output = rejected.couplet(&["plan", "pipeline.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    // The rest of the plan is complete.
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("1 to score") && stdout.ends_with("a run would fail\n"), "{stdout}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("more than score.max_errors = 0.1 allows"), "{message}");

    let column = Job::new("id,a,b\n1,x,y\n").change("text = [\"a\", \"b\"]", "text = [\"a\", \"c\"]");
    assert!(stderr_of(&mut column.couplet(&["plan", "pipeline.toml"]), 2).contains("`c`"));
}

#[test]
fn an_unknown_partition_column_is_found_before_scoring() {
    let job = Job::new("id,a,b\n1,x,y\n")
        .change("uri = \"out/scores.parquet\"", "uri = \"out/scores\"\nformat = \"delta\"\npartition_by = [\"idd\"]");
    for command in ["plan", "run"] {
        let message = stderr_of(&mut job.couplet(&[command, "pipeline.toml"]), 2);
        insta::allow_duplicates!(
            insta::assert_snapshot!(message, @"error: Delta table out/scores: partition_by names `idd`, which is no column of the output (it has id, a, b, predicted_label, score, probabilities, truncated, error, raw_probabilities, model); did you mean `id`?")
        );
        assert!(!job.path("out/scores").exists());
    }
    let job = job.change("idd", "probabilities");
    assert!(stderr_of(&mut job.couplet(&["plan", "pipeline.toml"]), 2).contains("is no single value"));
}

#[test]
fn the_pipeline_of_the_guide_runs() {
    let guide = std::fs::read_to_string(root().join("docs/pipelines.md")).unwrap();
    let toml = guide.split("```toml\n").find(|part| part.contains("[sink]")).unwrap().split("```").next().unwrap();
    let job = Job::new("");
    write(&job.path("nightly.toml"), toml);
    let pairs = format!("q={}", quickstart_pairs().display());
    let day = job.path("pairs/dt=2026-11-24");
    std::fs::create_dir_all(&day).unwrap();
    let sql = "SELECT id, sentence1, sentence2 FROM q LIMIT 20";
    stdout_of(job.couplet(&["query", "--table", &pairs, sql, "-o"]).arg(day.join("a.parquet")));
    let gold = stdout_of(&mut job.couplet(&["query", "--table", &pairs, "SELECT id, label FROM q", "--format", "csv"]));
    write(&job.path("gold.txt"), gold.replace(',', "\t"));
    std::fs::create_dir(job.path("models")).unwrap();
    std::os::unix::fs::symlink(quickstart_model(), job.path("models/mrpc")).unwrap();
    let day = ["--var", "date=2026-11-24", "--json"];
    let planned: Value = serde_json::from_str(&stdout_of(job.couplet(&["plan", "nightly.toml"]).args(day))).unwrap();
    let report: Value = serde_json::from_str(&stdout_of(job.couplet(&["run", "nightly.toml"]).args(day))).unwrap();
    assert_eq!((&planned["predicted"]["rows"], &report["rows"]["scored"]), (&20.into(), &20.into()));
    assert!(job.path("out/predictions/dt=2026-11-24").is_dir());
    let twice = job.couplet(&["plan", "nightly.toml"]).args(day).args(["--var", "date=2026-11-25"]).output().unwrap();
    let message = String::from_utf8(twice.stderr).unwrap();
    assert!(message.contains("--var date=2026-11-25: date was given before, as 2026-11-24"), "{message}");
}

#[test]
fn every_place_outside_the_pipeline_folder_is_listed() {
    let outside = tempfile::tempdir().unwrap();
    let spill = outside.path().join("not-there/spill");
    let job = Job::new("id,a,b\n1,x,y\n").add(&format!(
        "[score]\nerrors = \"quarantine\"\nstore = {:?}\n[run]\nspill = {spill:?}",
        outside.path().join("state")
    ));
    let planned = plan(&job, &[]);
    assert!(!spill.exists() && !outside.path().join("state").exists(), "a plan makes none of them");
    let place = |what: &str| planned["writes"].as_array().unwrap().iter().find(|w| w["what"] == what).unwrap().clone();
    let outside_of = |what: &str| place(what)["outside_pipeline_folder"].as_bool().unwrap();
    assert!(!outside_of("sink") && !outside_of("rejected rows"));
    assert!(outside_of("store") && outside_of("temporary"));
    assert!(place("rejected rows")["place"].as_str().unwrap().ends_with("scores_rejected.parquet"));
    assert!(place("temporary")["place"].as_str().unwrap().contains("not-there/spill/couplet-"));
    let text = stdout_of(&mut job.couplet(&["plan", "pipeline.toml"]));
    let line = text.lines().find(|line| line.trim_start().starts_with("outside")).unwrap();
    assert!(line.contains("not-there/spill") && !line.contains("state"), "{line}");
}

#[cfg(unix)]
#[test]
fn a_symlink_out_of_the_folder_counts_as_outside() {
    let outside = tempfile::tempdir().unwrap();
    let job = Job::new("id,a,b\n1,x,y\n");
    std::os::unix::fs::symlink(outside.path(), job.path("out")).unwrap();
    let planned = plan(&job, &[]);
    let sink = planned["writes"].as_array().unwrap().iter().find(|write| write["what"] == "sink").unwrap();
    assert_eq!(sink["outside_pipeline_folder"], true, "{sink}");
}

#[test]
fn training_stages_are_planned_before_their_models_exist() {
    let folder = tempfile::tempdir().unwrap();
    let toml = format!(
        r#"
name = "stages"
[tables]
pairs = {:?}
[pretrain]
sql = "SELECT sentence1 AS text FROM pairs"
model = {base:?}
output = "models/domain"
max_length = 32
[finetune]
sql = "SELECT id, sentence1, sentence2, label FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
task = "classification"
model = "models/domain"
output = "models/task"
epochs = 2
max_length = 32
promote_if = "f1 >= 0.1"
[evaluate]
sql = "SELECT id, sentence1, sentence2, label FROM pairs LIMIT 100"
output = "../evaluation"
[source]
sql = "SELECT id, sentence1, sentence2 FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
[model]
uri = "models/task"
max_length = 32
[sink]
uri = "out.parquet"
"#,
        quickstart_pairs(),
        base = golden("tiny-distilbert")
    );
    let file = folder.path().join("job/stages.toml");
    write(&file, &toml);
    let planned = || -> Value {
        let before = files(folder.path());
        let json = stdout_of(couplet().arg("plan").arg(&file).arg("--json"));
        assert_eq!(files(folder.path()), before, "a plan wrote something");
        serde_json::from_str(&json).unwrap()
    };
    let first = planned();
    assert_eq!(first["pretrain"]["training"]["state"], "new");
    assert!(first["pretrain"]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(first["finetune"]["seconds"], Value::Null, "its base is still to be made");
    assert_eq!(first["evaluate"]["rows"], 100);
    assert_eq!(first["score"]["rows"]["to_score"], 525);
    assert!(first["score"]["model"]["stands_for_it"].as_str().unwrap().ends_with("tiny-distilbert"));
    let places: Vec<&str> =
        first["writes"].as_array().unwrap().iter().map(|write| write["place"].as_str().unwrap()).collect();
    for place in ["models/domain", "models/task", "models/task.candidate", "models/task.training", "evaluation"] {
        assert!(places.iter().any(|written| written.ends_with(place)), "{place} is not in {places:?}");
    }

    stdout_of(couplet().arg("run").arg(&file).args(["--only", "pretrain"]));
    let second = planned();
    assert_eq!(second["pretrain"]["training"]["state"], "unchanged");
    assert_eq!(second["pretrain"]["seconds"], 0.0);
    let finetune = &second["finetune"];
    assert_eq!((finetune["rows"].as_u64(), finetune["training"]["state"].as_str()), (Some(525), Some("new")));
    assert_eq!(finetune["training"]["labels"], serde_json::json!(["not_paraphrase", "paraphrase"]));
    assert!(finetune["seconds"].as_f64().unwrap() > 0.0);

    let report: Value = serde_json::from_str(&stdout_of(couplet().arg("run").arg(&file).arg("--json"))).unwrap();
    assert_eq!(report["finetune"]["training"]["steps"], finetune["training"]["steps"]);
    let third = planned();
    assert_eq!(third["finetune"]["training"]["state"], "unchanged");
    assert_eq!(third["score"]["rows"]["remembered"], 525);
}

#[test]
fn a_plan_of_single_texts_shows_the_query_plan() {
    let job = Job::new("id,a,b\n1,x,0.5\n2,z,0.25\n").change("text = [\"a\", \"b\"]", "text = [\"a\"]\nlabel = \"b\"");
    let text = stdout_of(&mut job.couplet(&["plan", "pipeline.toml", "--verbose"]));
    assert!(text.contains("numbers from 0.25 to 0.5"), "{text}");
    assert!(text.contains("the source query:\n") && text.contains("DataSourceExec"), "{text}");
}

#[test]
fn leftovers_of_killed_runs_are_reported() {
    let left = |job: &Job| -> Vec<String> {
        let planned = plan(job, &[]);
        let left = planned["writes"].as_array().unwrap().iter().filter(|write| write["what"] == "left by a killed run");
        left.map(|write| write["place"].as_str().unwrap().to_owned()).collect()
    };
    let job = Job::new("id,a,b\n1,x,y\n").add("[score]\nerrors = \"quarantine\"");
    assert!(left(&job).is_empty());
    let go = [
        ".scores.parquet.0f.couplet-tmp",
        "..scores_rejected.parquet.r1.couplet-pending.0f.couplet-tmp",
        ".scores_rejected.parquet.r1.couplet-pending",
    ];
    for name in go.into_iter().chain([".other.parquet.0f.couplet-tmp", "scores.parquet.couplet-tmp"]) {
        write(&job.path("out").join(name), "x");
    }
    assert_eq!(left(&job), go.map(|name| format!("out/{name}")));
    let message = stdout_of(&mut job.couplet(&["plan", "pipeline.toml"]));
    let line = "left by a killed run: out/.scores.parquet.0f.couplet-tmp: removed, unless that run is still alive";
    assert!(message.contains(line), "{message}");
    job.report();
    assert!(left(&job).is_empty());
    assert!(job.path("out/.other.parquet.0f.couplet-tmp").exists());
    let job = job.change("out/scores.parquet", "runs");
    write(&job.path("runs/.run=000001-a.0f.couplet-tmp/_STARTED"), "{}");
    assert_eq!(left(&job), ["runs/.run=000001-a.0f.couplet-tmp"]);
    job.report();
    assert!(left(&job).is_empty());
}

#[test]
fn too_few_rows_for_held_out_data_are_reported() {
    let learn = "[finetune]\nsql = \"SELECT id, a, b, CASE WHEN id % 2 = 0 THEN 'yes' ELSE 'no' END AS label FROM pairs\"\n\
                 id = \"id\"\ntext = [\"a\", \"b\"]\ntask = \"classification\"\nvalidation = 0.0001\noutput = \"models/task\"";
    let model = golden("tiny-distilbert");
    let job = Job::new("id,a,b\n1,x,y\n2,p,q\n3,v,w\n4,s,t\n").add(&format!("{learn}\nmodel = {model:?}"));
    let planned = plan(&job, &["--only", "finetune"]);
    let note = "[finetune]: no row is held out, so the model is not evaluated: 4 rows are too few for validation = 0.0001; \
                raise it, or use [evaluate]";
    assert_eq!(planned["notes"][0], note);
}
