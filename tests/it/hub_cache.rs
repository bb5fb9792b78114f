//! The cache of a hub: complete models load without the hub, others do not; missing files are cached as missing.

use std::path::PathBuf;

use serde_json::Value;

use crate::hub::{REPOSITORY, Setup, URI, json, of_folder};
use crate::support::{Job, golden, quickstart_pairs, stdout_of, write};

const OFFLINE: (&str, &str) = ("HF_HUB_OFFLINE", "1");

fn offline(setup: &Setup, uri: &str) -> assert_cmd::Command {
    let mut command = setup.predict(uri);
    command.env(OFFLINE.0, OFFLINE.1);
    command
}

fn absent(setup: &Setup, commit: &str) -> Vec<String> {
    let folder = setup.repository().join(".no_exist").join(commit);
    let names = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn files_missing_from_a_commit_are_cached_as_missing() {
    let (setup, commit) = Setup::new();
    json(&mut setup.predict(URI));
    let none = [
        "added_tokens.json",
        "calibration.json",
        "config_sentence_transformers.json",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "special_tokens_map.json",
        "vocab.txt",
    ];
    assert_eq!(absent(&setup, &commit), none);
    // A missing model card is requested once.
    let show = || json(&mut setup.couplet(&["model", "show", "--json", &format!("{URI}@{commit}")]));
    assert_eq!(show()["licence"], "mit");
    assert!(absent(&setup, &commit).contains(&"training.json".to_owned()));
    setup.server.take_log();
    assert_eq!(show()["licence"], "mit");
    assert_eq!(setup.server.take_log(), []);
}

/// A killed download leaves some of the files; any of them may be the last.
#[test]
fn an_incomplete_snapshot_is_not_used_offline() {
    let expected = of_folder(&golden("tiny-distilbert"));
    for file in ["tokenizer_config.json", "tokenizer.json", "config.json", "model.safetensors"] {
        let (setup, commit) = Setup::new();
        let pinned = format!("{URI}@{commit}");
        json(&mut setup.predict(&pinned));
        std::fs::remove_file(setup.repository().join("snapshots").join(&commit).join(file)).unwrap();
        let problem = setup.problem(&mut offline(&setup, &pinned), 2);
        let message = match file {
            "tokenizer_config.json" => "is not complete: a download ended before tokenizer_config.json",
            "tokenizer.json" => "has no tokenizer.json or vocab.txt",
            "model.safetensors" => "has no model.safetensors or pytorch_model.bin",
            file => &format!("has no {file}"),
        };
        assert!(problem.contains(message) && problem.contains("HF_HUB_OFFLINE is set; run once without"), "{problem}");
        // Online the snapshot becomes complete, although the commit existed.
        assert_eq!(json(&mut setup.predict(&pinned)), expected);
        assert_eq!(json(&mut offline(&setup, &pinned)), expected);
        // Its blob was still in the cache.
        assert_eq!(setup.server.take_files().iter().filter(|name| *name == file).count(), 1, "{file}");
    }
}

#[test]
fn a_partly_downloaded_branch_is_not_used_offline() {
    let (setup, commit) = Setup::new();
    setup.server.damage(Some("tokenizer_config.json"));
    setup.problem(&mut setup.predict(URI), 1);
    assert!(setup.repository().join("snapshots").join(&commit).join("model.safetensors").exists());
    let problem = setup.problem(&mut offline(&setup, URI), 2).replace(&commit, "COMMIT");
    insta::assert_snapshot!(problem, @r"error: model hf://org/tiny: the cache, HOME/hub, does not know which commit `main` is, and HF_HUB_OFFLINE is set; it has files of commit COMMIT, of which a download may not have ended; run once without HF_HUB_OFFLINE, or fetch it on another machine and copy the cache");
    let problem = setup.problem(&mut offline(&setup, &format!("{URI}@{commit}")), 2);
    assert!(problem.contains("is not complete: a download ended before tokenizer_config.json"), "{problem}");
}

/// transformers downloads other files than couplet. They are used, with a note that some may be missing.
#[test]
fn downloads_of_other_programs_are_used_offline() {
    let (setup, commit) = Setup::new();
    json(&mut setup.predict(URI));
    std::fs::remove_dir_all(setup.repository().join(".no_exist")).unwrap();
    let output = offline(&setup, URI).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), of_folder(&golden("tiny-distilbert")));
    let note = "did not request vocab.txt, special_tokens_map.json, added_tokens.json, \
                 config_sentence_transformers.json, calibration.json and model.safetensors.index.json";
    assert!(message.contains(note), "{message}");
    // A commit of unknown completeness is requested again, or used as it is while the hub is unreachable.
    setup.server.take_log();
    json(setup.predict(&format!("{URI}@{commit}")).env("HF_ENDPOINT", "http://127.0.0.1:9"));
    json(&mut setup.predict(&format!("{URI}@{commit}")));
    assert_eq!((setup.server.take_log().len(), absent(&setup, &commit).len()), (1, 7));
    assert!(offline(&setup, URI).output().unwrap().stderr.is_empty());
}

/// A cache on a read-only disk, as a team may share it.
#[test]
#[cfg(unix)]
fn a_read_only_cache_is_used() {
    use std::os::unix::fs::PermissionsExt;
    let (setup, _) = Setup::new();
    json(&mut setup.predict(URI));
    std::fs::remove_dir_all(setup.repository().join(".no_exist")).unwrap();
    let set = |mode: u32| {
        std::fs::set_permissions(setup.repository(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o555);
    let found = json(&mut setup.predict(URI));
    set(0o755);
    assert_eq!(found, of_folder(&golden("tiny-distilbert")));
}

#[test]
fn two_uses_of_a_branch_resolve_to_one_commit() {
    let (setup, first) = Setup::new();
    let second = setup.server.commit(REPOSITORY, &golden("tiny-bert"), &[]);
    setup.server.name(REPOSITORY, "main", &first);
    setup.server.move_main(REPOSITORY, &second);
    let pairs = format!("t={}", quickstart_pairs().display());
    let sql = format!(
        "SELECT count(*) AS n FROM t WHERE predict('{URI}', sentence1)['score'] = predict('{URI}@main', sentence1)['score']"
    );
    let rows = json(&mut setup.couplet(&["query", "--format", "json", "--table", &pairs, &sql]));
    assert_eq!(rows[0]["n"], 525);
    let log = setup.server.take_log();
    assert_eq!(log.iter().filter(|request| request.path.starts_with("/api/")).count(), 1, "{log:?}");
    // The next process uses the branch's new commit.
    assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-bert")));
    assert_eq!(std::fs::read_to_string(setup.repository().join("refs/main")).unwrap(), second);
}

#[test]
fn a_plan_names_the_caches_of_models_in_sql() {
    let (setup, _) = Setup::new();
    let sql = format!("SELECT *, predict('{URI}', sentence1)['label'] AS other FROM pairs LIMIT 20");
    let job = Job::over_quickstart_pairs();
    let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
    let (before, rest) = toml.split_once("sql = \"").unwrap();
    let (_, after) = rest.split_once('"').unwrap();
    let sql = sql.replace("SELECT *,", "SELECT id, sentence1 AS a, sentence2 AS b,");
    write(&job.path("pipeline.toml"), format!("{before}sql = \"{sql}\"{after}"));
    let plan = json(setup.couplet(&["plan", "--json", "pipeline.toml"]).current_dir(job.path("")));
    let caches: Vec<&Value> =
        plan["writes"].as_array().unwrap().iter().filter(|write| write["what"] == "model cache").collect();
    assert_eq!(caches.len(), 1, "{plan:#}");
    assert_eq!(
        PathBuf::from(caches[0]["place"].as_str().unwrap()),
        setup.home.path().canonicalize().unwrap().join("hub")
    );
    assert_eq!(caches[0]["change"], format!("a copy of {URI}, once"));
    let text = stdout_of(setup.couplet(&["plan", "pipeline.toml"]).current_dir(job.path("")));
    assert!(text.contains(&format!("a copy of {URI}, once")), "{text}");
}
