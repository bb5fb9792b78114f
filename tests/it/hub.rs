//! Models of a hub: downloaded once, verified, shared with `huggingface_hub`, and accepted wherever a model is named.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;

use crate::hub_server::{Access, HubServer, Ranges, TOKEN, git_hash, sha256};
use crate::support::{Job, couplet, golden, quickstart_pairs, root, skip, stderr_of, stdout_of, write};
use crate::venv;

pub const REPOSITORY: &str = "org/tiny";
pub const URI: &str = "hf://org/tiny";

/// A hub and a separate cache.
pub struct Setup {
    pub server: HubServer,
    pub home: tempfile::TempDir,
}

impl Setup {
    /// A hub with the tiny DistilBERT and some unneeded files.
    pub fn new() -> (Self, String) {
        let setup = Self { server: HubServer::start(), home: tempfile::tempdir().unwrap() };
        let others: [(&str, &[u8]); 4] = [
            ("pytorch_model.bin", b"not needed"),
            ("README.md", b"---\nlicense: mit\ndatasets:\n- mrpc\n---\n"),
            ("onnx/model.onnx", b"not needed"),
            (".gitattributes", b""),
        ];
        let commit = setup.server.commit(REPOSITORY, &golden("tiny-distilbert"), &others);
        (setup, commit)
    }

    /// The command `couplet ARGUMENTS` with this hub and cache, without the caller's environment.
    pub fn couplet(&self, arguments: &[&str]) -> Command {
        let mut command = couplet();
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
        ] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", self.server.endpoint()).args(arguments);
        command
    }

    pub fn predict(&self, uri: &str) -> Command {
        self.couplet(&["predict", "--json", "--model", uri, "A man went home.", "He was at home."])
    }

    pub fn repository(&self) -> PathBuf {
        self.home.path().join("hub/models--org--tiny")
    }

    /// The message of a failed command without the parts that differ between tests.
    pub fn problem(&self, command: &mut Command, code: i32) -> String {
        let message = stderr_of(command, code);
        assert!(!message.contains(TOKEN), "the token is in {message}");
        let message =
            message.replace(&self.server.endpoint(), "HUB").replace(self.home.path().to_str().unwrap(), "HOME");
        let lines = message.lines().filter(|line| !line.contains(" INFO "));
        let commit = regex::Regex::new(r"\b[0-9a-f]{12}\b").unwrap();
        commit.replace_all(&lines.collect::<Vec<_>>().join("\n"), "COMMIT").into_owned()
    }
}

pub fn of_folder(folder: &Path) -> Value {
    let mut command = couplet();
    command.args(["predict", "--json", "A man went home.", "He was at home.", "--model"]).arg(folder);
    serde_json::from_str(&stdout_of(&mut command)).unwrap()
}

pub fn json(command: &mut Command) -> Value {
    serde_json::from_str(&stdout_of(command)).unwrap()
}

#[test]
fn a_model_is_downloaded_once_and_scores_like_its_folder() {
    let (setup, commit) = Setup::new();
    let expected = of_folder(&golden("tiny-distilbert"));
    assert_eq!(json(&mut setup.predict(URI)), expected);
    let mut files = setup.server.take_files();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);

    // The layout is that of huggingface_hub.
    let repository = setup.repository();
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), commit);
    let snapshot = repository.join("snapshots").join(&commit);
    let weights = std::fs::read(golden("tiny-distilbert/model.safetensors")).unwrap();
    let config = std::fs::read(golden("tiny-distilbert/config.json")).unwrap();
    for (name, blob) in [("model.safetensors", sha256(&weights)), ("config.json", git_hash(&config))] {
        assert_eq!(std::fs::read_link(snapshot.join(name)).unwrap(), Path::new("../../blobs").join(&blob));
    }
    let left = std::fs::read_dir(&repository).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<String> = left.collect();
    left.sort();
    assert_eq!(left, [".no_exist", "blobs", "refs", "snapshots"]);
    assert!(
        !std::fs::read_dir(repository.join("blobs"))
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().ends_with(".incomplete") })
    );

    // A branch may have moved and is requested; a commit cannot, and offline nothing is requested.
    assert_eq!(json(&mut setup.predict(URI)), expected);
    let requests = setup.server.take_log();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(json(&mut setup.predict(&format!("{URI}@{commit}"))), expected);
    assert_eq!(json(setup.predict(URI).env("HF_HUB_OFFLINE", "1")), expected);
    assert_eq!(setup.server.take_log(), []);
}

#[test]
fn revisions_and_folders_are_found() {
    let (setup, first) = Setup::new();
    setup.server.name(REPOSITORY, "v1.0", &first);
    assert_eq!(json(&mut setup.predict(&format!("{URI}@v1.0"))), of_folder(&golden("tiny-distilbert")));
    let mut files = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(golden("tiny-bert-bin")).unwrap() {
        let entry = entry.unwrap();
        let name = format!("models/bert/{}", entry.file_name().into_string().unwrap());
        files.insert(name, std::fs::read(entry.path()).unwrap());
    }
    let second = setup.server.commit_files(REPOSITORY, files);
    setup.server.name(REPOSITORY, "feature/bin", &second);
    let expected = of_folder(&golden("tiny-bert-bin"));
    for revision in ["", "@feature%2Fbin", &format!("@{second}")] {
        assert_eq!(json(&mut setup.predict(&format!("{URI}{revision}/models/bert"))), expected, "{revision}");
    }
    assert_eq!(std::fs::read_to_string(setup.repository().join("refs/feature/bin")).unwrap(), second);
    // The tag is unchanged.
    let card = json(&mut setup.couplet(&["model", "show", "--json", &format!("{URI}@v1.0")]));
    assert_eq!((card["revision"].as_str(), card["licence"].as_str()), (Some(&*first), Some("mit")));
    insta::assert_snapshot!(setup.problem(&mut setup.predict(URI), 2), @r"error: model hf://org/tiny: the repository has no files at commit COMMIT; there is a model in its folder models/bert: hf://org/tiny/models/bert");
    insta::assert_snapshot!(setup.problem(&mut setup.predict(&format!("{URI}/models/bart")), 2), @r"error: model hf://org/tiny/models/bart: the repository has no folder `models/bart` at commit COMMIT; did you mean hf://org/tiny/models/bert?");
}

#[test]
fn a_broken_download_resumes() {
    let (setup, _) = Setup::new();
    let size = std::fs::metadata(golden("tiny-distilbert/model.safetensors")).unwrap().len() as usize;
    setup.server.cut("model.safetensors", size / 3, 2);
    assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")));
    let log = setup.server.take_log();
    let from: Vec<Option<usize>> =
        log.iter().filter(|request| request.path.starts_with("/cdn/")).map(|request| request.from).collect();
    assert_eq!(from, [None, Some(size / 3), Some(size / 3 * 2)]);
}

#[test]
fn unfinished_downloads_of_other_processes_are_resumed_if_valid() {
    let weights = std::fs::read(golden("tiny-distilbert/model.safetensors")).unwrap();
    for (left, ignores_ranges) in
        [(weights[..5000].to_vec(), false), (weights[..5000].to_vec(), true), (vec![7; 5000], false)]
    {
        let (setup, _) = Setup::new();
        if ignores_ranges {
            setup.server.set_ranges(Ranges::Ignored);
        }
        write(&setup.repository().join(format!("blobs/{}.incomplete", sha256(&weights))), &left);
        assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")));
        let log = setup.server.take_log();
        let first = log.iter().find(|request| request.path.starts_with("/cdn/")).unwrap();
        assert_eq!(first.from, Some(5000));
    }
}

#[test]
fn damaged_downloads_are_not_used() {
    for file in ["model.safetensors", "config.json"] {
        let (setup, commit) = Setup::new();
        setup.server.damage(Some(file));
        let problem = setup.problem(&mut setup.predict(URI), 1);
        assert!(problem.contains(&format!("the download of {file} is damaged")), "{problem}");
        assert!(!setup.repository().join("snapshots").join(&commit).join(file).exists());
        assert!(!setup.repository().join("refs/main").exists());
        setup.server.damage(None);
        assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")));
    }
}

#[test]
fn a_hub_whose_file_lists_lack_hashes_works() {
    let (setup, commit) = Setup::new();
    setup.server.forget_hashes();
    assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")));
    assert!(setup.repository().join("snapshots").join(commit).join("config.json").is_symlink());
}

#[test]
fn concurrent_processes_download_each_file_once() {
    let (setup, _) = Setup::new();
    setup.server.pause(Duration::from_millis(150));
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_couplet"));
            command.args(["predict", "--json", "--model", URI, "A man went home.", "He was at home."]);
            command.env("HF_HOME", setup.home.path()).env("HF_ENDPOINT", setup.server.endpoint());
            command.env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let expected = of_folder(&golden("tiny-distilbert"));
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);
    }
    let mut files = setup.server.take_files();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
}

#[test]
fn a_token_opens_private_models_and_goes_to_no_other_host() {
    let (setup, _) = Setup::new();
    setup.server.set_access(REPOSITORY, Access::Gated);
    insta::assert_snapshot!(setup.problem(&mut setup.predict(URI), 2), @r"error: model hf://org/tiny: the model is gated: accept its conditions at HUB/org/tiny, then set HF_TOKEN, or log in once with `hf auth login`");
    insta::assert_snapshot!(setup.problem(setup.predict(URI).env("HF_TOKEN", "hf_wrong"), 2), @r"error: model hf://org/tiny: HUB does not accept the token (status 401: Invalid credentials in Authorization header); check HF_TOKEN or the file that `hf auth login` writes");
    setup.server.take_log();
    assert!(setup.predict(URI).env("HF_TOKEN", TOKEN).output().unwrap().status.success());
    for request in setup.server.take_log() {
        assert_eq!(request.authorized, !request.path.starts_with("/cdn/"), "{request:?}");
    }
    let (setup, _) = Setup::new();
    setup.server.set_access(REPOSITORY, Access::Private);
    insta::assert_snapshot!(setup.problem(&mut setup.predict(URI), 2), @r"error: model hf://org/tiny: HUB has no repository org/tiny that everybody may read; check the name, or, if it is private, set HF_TOKEN, or log in once with `hf auth login`");
    write(&setup.home.path().join("token"), format!("{TOKEN}\n"));
    assert!(setup.predict(URI).output().unwrap().status.success());
    insta::assert_snapshot!(setup.problem(&mut setup.predict("hf://org/none"), 2), @r"error: model hf://org/none: HUB has no repository org/none; check the name; if it is private, the token may not read it");
}

#[test]
fn errors_say_how_to_fix_them() {
    let (setup, _) = Setup::new();
    let model = golden("tiny-distilbert");
    insta::assert_snapshot!(setup.problem(&mut setup.predict("hf://org/none"), 2), @r"error: model hf://org/none: HUB has no repository org/none that everybody may read; check the name, or, if it is private, set HF_TOKEN, or log in once with `hf auth login`");
    insta::assert_snapshot!(setup.problem(&mut setup.predict("hf://org/tiny@v9"), 2), @r"error: model hf://org/tiny@v9: the repository has no branch, tag or commit `v9`; see HUB/org/tiny/tree/main");
    insta::assert_snapshot!(setup.problem(&mut setup.predict("hf://datasets/org/tiny"), 2), @r"error: model hf://datasets/org/tiny: `hf://datasets/…` is not a model; write hf://ORG/NAME[@REVISION][/FOLDER]");
    insta::assert_snapshot!(setup.problem(setup.predict(URI).env("HF_HUB_OFFLINE", "1"), 2), @r"error: model hf://org/tiny: it is not in the cache, HOME/hub, and HF_HUB_OFFLINE is set; run once without HF_HUB_OFFLINE, or fetch it on another machine and copy the cache");
    let commit = |name: &str, keep: &[&str], others: &[(&str, &[u8])]| {
        let mut files: std::collections::BTreeMap<String, Vec<u8>> =
            keep.iter().map(|file| ((*file).to_owned(), std::fs::read(model.join(file)).unwrap())).collect();
        files.extend(others.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())));
        setup.server.commit_files(name, files);
        setup.problem(&mut setup.predict(&format!("hf://{name}")), 2)
    };
    insta::assert_snapshot!(commit("org/empty", &[], &[("README.md", b"soon")]), @r"error: model hf://org/empty: it has no config.json at commit COMMIT, so it is not a model as transformers saves one");
    insta::assert_snapshot!(commit("org/bare", &["config.json", "model.safetensors"], &[]), @r"error: model hf://org/bare: it has no tokenizer, which is tokenizer.json or vocab.txt: save that of the model it was trained from beside it, with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`");
    insta::assert_snapshot!(commit("org/piece", &["config.json", "model.safetensors"], &[("spiece.model", b"x")]), @r"error: model hf://org/piece: it has no tokenizer, which is tokenizer.json or vocab.txt: its tokenizer is spiece.model, of another family than BERT");
    insta::assert_snapshot!(commit("org/keras", &["config.json", "tokenizer.json"], &[("tf_model.h5", b"x")]), @r"error: model hf://org/keras: its weights are tf_model.h5 only, of TensorFlow; couplet reads model.safetensors or pytorch_model.bin: with a transformers that still has TensorFlow (4.x), `from_pretrained(…, from_tf=True)` and `save_pretrained` convert them");
    insta::assert_snapshot!(commit("org/onnx", &["config.json", "tokenizer.json"], &[("model.onnx", b"x")]), @r"error: model hf://org/onnx: its weights are model.onnx only, of ONNX; couplet reads model.safetensors or pytorch_model.bin: convert them with transformers");
    insta::assert_snapshot!(commit("org/lora", &["tokenizer.json"], &[("adapter_config.json", b"{}")]), @r"error: model hf://org/lora: it is an adapter (PEFT), not a model: merge it into its base with `merge_and_unload()` and `save_pretrained` the result");
    setup.server.fail("/api/models/org/tiny", 503, 9);
    insta::assert_snapshot!(setup.problem(&mut setup.predict(URI), 1), @r"error: model hf://org/tiny: HUB failed, even after retries (status 503: injected)");
    // Nothing listens on this port.
    let gone = setup.predict(URI).env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    let message = String::from_utf8(gone.stderr).unwrap();
    assert!(
        message.contains("http://127.0.0.1:9 cannot be reached") && message.contains("HF_HUB_OFFLINE=1"),
        "{message}"
    );
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn a_failing_hub_is_retried_and_then_the_cache_is_used() {
    let (setup, commit) = Setup::new();
    setup.server.fail("/api/models/org/tiny", 503, 2);
    let expected = json(&mut setup.predict(URI));
    setup.server.fail("/api/models/org/tiny", 503, 9);
    let output = setup.predict(URI).output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("WARN") && message.contains(&format!("using commit {commit} from the cache")),
        "{message}"
    );
}

#[test]
fn hub_models_are_accepted_everywhere() {
    let (setup, commit) = Setup::new();
    let job = Job::over_quickstart_pairs()
        .change(&format!("{:?}", golden("tiny-distilbert")), &format!("{URI:?}"))
        .change("\"id\"\ntext", "\"id\"\nlabel = \"label\"\ntext")
        .change("sentence2 AS b FROM", "sentence2 AS b, label FROM")
        .add(
            r#"
[finetune]
sql = "SELECT id, sentence1 AS a, sentence2 AS b, label FROM pairs LIMIT 64"
id = "id"
text = ["a", "b"]
task = "classification"
model = "hf://org/tiny"
output = "models/task"
epochs = 1
max_length = 32
[evaluate]
sql = "SELECT id, sentence1 AS a, sentence2 AS b, CASE label WHEN 'paraphrase' THEN 'LABEL_1' ELSE 'LABEL_0' END AS label FROM pairs"
model = "hf://org/tiny"
output = "out/evaluation"
resamples = 20
"#,
        );
    let mut command = setup.couplet(&["run", "pipeline.toml"]);
    command.current_dir(job.path(""));
    let labels = json(&mut setup.couplet(&["model", "show", URI, "--json"]))["labels"].clone();
    let labels: Vec<&str> = labels.as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
    let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
    let toml = toml.replace("LABEL_1", labels[1]).replace("LABEL_0", labels[0]);
    write(&job.path("pipeline.toml"), toml);
    let text = stdout_of(&mut command);
    assert!(text.contains(&format!("{URI} (")) && text.contains(&format!("commit {commit}")), "{text}");
    let report = json(command.arg("--json"));
    assert_eq!(report["model"]["uri"], URI);
    assert_eq!(report["model"]["revision"], commit);
    assert_eq!(report["evaluate"]["evaluation"]["model"]["revision"], commit);
    let training: Value =
        serde_json::from_slice(&std::fs::read(job.path("models/task/training.json")).unwrap()).unwrap();
    assert_eq!(training["base"], format!("{URI}@{commit}"));

    let sql = format!("SELECT predict('{URI}', 'A man went home.', 'He was at home.')['label'] AS label");
    let rows = json(&mut setup.couplet(&["query", "--format", "json", &sql]));
    assert_eq!(rows[0]["label"], json(&mut setup.predict(URI))["label"]);
    let target = job.path("imported");
    let text = stdout_of(setup.couplet(&["model", "import", URI]).arg(&target));
    assert!(text.contains(&format!("{URI}@{commit}")) && target.join("config.json").exists(), "{text}");
}

#[test]
fn a_calibration_is_downloaded_with_its_model() {
    let setup = Setup { server: HubServer::start(), home: tempfile::tempdir().unwrap() };
    let model = golden("tiny-distilbert");
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let problem = config["problem_type"].as_str().unwrap_or("single_label_classification");
    let calibration =
        format!(r#"{{"version": 1, "problem_type": "{problem}", "temperature": 2.5, "threshold": null}}"#);
    setup.server.commit(REPOSITORY, &model, &[("calibration.json", calibration.as_bytes())]);
    let prediction = json(&mut setup.predict(URI));
    assert!(prediction["raw_probabilities"].is_object(), "{prediction}");
    let text = stdout_of(&mut setup.couplet(&["model", "show", URI]));
    assert!(text.contains("calibration   temperature 2.5"), "{text}");
}

#[test]
fn tables_sinks_and_stores_cannot_be_on_a_hub() {
    let job = Job::new("id,a,b\n1,x,y\n");
    let problem = job.error_of(&mut job.couplet(&["query", "SELECT 1", "--table", "t=hf://datasets/org/t"]), 2);
    assert!(problem.contains("`hf://datasets/…` is not a model"), "{problem}");
    let job = job.change("\"out/scores.parquet\"", "\"hf://org/name\"");
    let problem = job.error(2);
    assert!(problem.contains("only models are read from a hub"), "{problem}");
}

/// Checks that `huggingface_hub` and couplet share the cache, in both directions.
const PYTHON: &str = r#"
import os, sys
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, scan_cache_dir, try_to_load_from_cache
files = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
found = [hf_hub_download("org/tiny", name, local_files_only=sys.argv[1] == "find") for name in files]
folder, = {os.path.dirname(path) for path in found}
assert try_to_load_from_cache("org/tiny", "config.json") == os.path.join(folder, "config.json")
if sys.argv[1] == "find":
    assert try_to_load_from_cache("org/tiny", "vocab.txt") is _CACHED_NO_EXIST
    assert try_to_load_from_cache("org/tiny", "README.md") is None
info = scan_cache_dir()
assert not info.warnings, info.warnings
assert [repo.repo_id for repo in info.repos] == ["org/tiny"], info.repos
print(os.path.basename(folder))
"#;

#[test]
fn huggingface_hub_and_couplet_share_the_cache() {
    let test = "huggingface_hub_and_couplet_share_the_cache";
    let python = match venv::program("hub-venv", &["huggingface_hub==2.4.0"], "python") {
        Ok(python) => python,
        Err(why) => return skip(test, &why),
    };
    let run = |setup: &Setup, what: &str| {
        let mut command = std::process::Command::new(&python);
        command
            .args(["-c", PYTHON, what])
            .env("HF_HOME", setup.home.path())
            .env("HF_ENDPOINT", setup.server.endpoint());
        command.env("HF_HUB_DISABLE_TELEMETRY", "1").env("HF_HUB_DISABLE_XET", "1").env_remove("HF_HUB_CACHE");
        let output = command.current_dir(root()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (setup, commit) = Setup::new();
    json(&mut setup.predict(URI));
    assert_eq!(run(&setup, "find"), commit);
    let (setup, commit) = Setup::new();
    assert_eq!(run(&setup, "fetch"), commit);
    setup.server.take_log();
    assert_eq!(json(setup.predict(URI).env("HF_HUB_OFFLINE", "1")), of_folder(&golden("tiny-distilbert")));
    assert_eq!(json(&mut setup.predict(URI)), of_folder(&golden("tiny-distilbert")));
    assert_eq!(setup.server.take_files(), Vec::<String>::new());
}

#[test]
fn a_commit_in_the_cache_needs_no_hub() {
    let (setup, commit) = Setup::new();
    let pairs = format!("t={}", quickstart_pairs().display());
    let sql = format!("SELECT count(predict('{URI}@{commit}', sentence1)['score']) AS n FROM t");
    let rows = json(&mut setup.couplet(&["query", "--format", "json", "--table", &pairs, &sql]));
    assert_eq!(rows[0]["n"], 525);
    let mut gone = setup.couplet(&["query", "--format", "json", "--table", &pairs, &sql]);
    assert_eq!(json(gone.env("HF_ENDPOINT", "http://127.0.0.1:9")), rows);
}
