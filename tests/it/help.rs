//! The `--help` texts, whose examples are executed, shell completions and manual pages.

use std::process::Command;

use clap::CommandFactory;
use couplet::cli::Cli;

use crate::support::{couplet, root, stderr_of, stdout_of};

/// Examples that need files or services that a clone does not have.
const ELSEWHERE: [&str; 18] = [
    "couplet run nightly.toml --var date=2026-11-24 --wait 10m --json",
    "couplet predict --model models/sentiment 'A warm and funny film.'",
    "couplet model import downloads/bert-base-uncased models/bert-base",
    "couplet model import hf://nreimers/MiniLM-L6-H384-uncased models/minilm --as distilbert",
    "couplet model show hf://org/name@v1.0 --json",
    "couplet run nightly.toml --metrics /var/lib/node_exporter/couplet_nightly.prom",
    "couplet plan nightly.toml --var date=2026-11-24 --json > plan.json",
    "couplet report nightly.toml --var date=2026-11-24 --run 0198c2 --format json",
    "couplet report nightly.toml --format prometheus -o /var/lib/node_exporter/couplet_nightly.prom",
    "couplet init --from pairs.parquet",
    "couplet init --from reviews.csv reviews --text review --label stars --model models/sentiment",
    // A shell, which needs a terminal.
    "couplet query --pipeline pipelines/quickstart/pipeline.toml",
    "#:schema ./pipeline.schema.json",
    // A cluster, which `clusters` starts.
    "couplet run nightly.toml --cluster df://10.0.0.7:50050",
    "couplet scheduler",
    "couplet scheduler --bind 10.0.0.7 --port 50050",
    "couplet executor",
    "couplet executor --scheduler df://10.0.0.7:50050 --bind 10.0.0.8 --name gpu-3 --device cuda:0",
];

/// The commands without subcommands, and all commands with their help.
fn commands() -> Vec<(String, String, bool)> {
    fn visit(command: &clap::Command, name: &str, found: &mut Vec<(String, String, bool)>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.push((name.to_owned(), help, command.get_subcommands().next().is_none()));
        for inner in command.get_subcommands() {
            visit(inner, &format!("{name} {}", inner.get_name()), found);
        }
    }
    let mut found = Vec::new();
    visit(&Cli::command(), "couplet", &mut found);
    found
}

/// The indented lines of a command's help. A line that ends in a backslash continues in the next one.
fn examples(help: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in help.lines().filter(|line| line.starts_with("  ")) {
        match lines.last_mut().filter(|last| last.ends_with('\\')) {
            Some(last) => last.push_str(&format!("\n{line}")),
            None => lines.push(line.trim().to_owned()),
        }
    }
    lines
}

#[test]
fn every_command_has_examples() {
    for (name, help, is_leaf) in commands() {
        let own = examples(&help).into_iter().filter(|example| example.starts_with(&name));
        assert!(!is_leaf || own.count() > 0, "`{name} --help` has no example");
    }
}

#[test]
fn the_examples_in_the_help_work_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    copy(&root().join("pipelines/quickstart"), &folder.path().join("pipelines/quickstart"));
    copy(&root().join("sql"), &folder.path().join("sql"));
    let mut all: Vec<String> = commands().iter().flat_map(|(_, help, _)| examples(help)).collect();
    // Later examples read the output of a run.
    all.sort_by_key(|example| !example.starts_with("couplet run"));
    all.dedup();
    let known = |example: &String| ELSEWHERE.contains(&example.as_str());
    assert_eq!(all.iter().filter(|example| known(example)).count(), ELSEWHERE.len(), "an exception is out of date");
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_couplet")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for example in all.iter().filter(|example| !known(example)) {
        let mut shell = Command::new("sh");
        shell.args(["-c", example]).current_dir(folder.path()).env("PATH", &path).env_remove("RUST_LOG");
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{example}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    for made in ["pairs.csv", "pipeline.schema.json", "couplet.bash", "_couplet", "man/man1/couplet-run.1"] {
        assert!(folder.path().join(made).metadata().unwrap().len() > 100, "{made}");
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            // A clone does not contain the stores of earlier runs.
            if entry.file_name() != ".couplet" {
                copy(&entry.path(), &target);
            }
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn completion_scripts_of_all_shells_list_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout_of(couplet().args(["completions", shell]));
        for word in ["predict", "completions", "dry-run"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

/// Lets bash itself complete a command and an option with the script.
#[test]
fn bash_completes_with_the_generated_script() {
    let script = stdout_of(couplet().args(["completions", "bash"]));
    let test = format!(
        "{script}\ncomplete_it() {{ COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _couplet couplet \"${{@: -1}}\" \
         \"${{@: -2:1}}\"; echo \"${{COMPREPLY[*]}}\"; }}\ncomplete_it couplet pre\ncomplete_it couplet query --pipe\n"
    );
    let Ok(output) = Command::new("bash").args(["--norc", "-c", &test]).output() else {
        return crate::support::skip("bash_completes_with_the_generated_script", "there is no bash");
    };
    let message = String::from_utf8(output.stdout).unwrap();
    assert_eq!(message, "predict\n--pipeline\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let message = stdout_of(couplet().arg("man").arg(folder.path().join("man1")));
    let pages: Vec<_> = message.lines().map(std::path::PathBuf::from).collect();
    let names: Vec<_> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    for (name, ..) in commands() {
        assert!(names.contains(&format!("{}.1", name.replace(' ', "-"))), "{name}: {names:?}");
    }
    let run = std::fs::read_to_string(pages.iter().find(|page| page.ends_with("couplet-run.1")).unwrap()).unwrap();
    assert!(
        run.contains(".SH EXAMPLES\n.nf") && run.contains("couplet run pipelines/quickstart/pipeline.toml"),
        "{run}"
    );
    assert!(run.contains(concat!("\"couplet ", env!("CARGO_PKG_VERSION"), "\"")), "the foot has no version: {run}");
    // If groff is installed, it reports no warnings.
    if let Ok(output) = Command::new("groff").args(["-man", "-Kutf8", "-Tutf8", "-ww"]).args(&pages).output() {
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn a_manual_page_is_found_by_the_words_of_its_command() {
    let page = stdout_of(couplet().args(["man", "store", "gc"]));
    assert!(page.contains("couplet\\-store\\-gc \\- Delete "), "{page}");
    for name in ["store-gc", "couplet-store-gc"] {
        assert_eq!(stdout_of(couplet().args(["man", name])), page);
    }
    let folder = tempfile::tempdir().unwrap();
    for (words, near) in [(vec!["stor", "gc"], "store gc"), (vec!["reprot"], "report")] {
        let message = stderr_of(couplet().current_dir(folder.path()).arg("man").args(&words), 2);
        let name = words.join(" ");
        assert!(
            message.starts_with(&format!("error: man {name}: no command and no folder has this name")),
            "{message}"
        );
        assert!(message.contains(&format!("did you mean `couplet man {near}`?")), "{message}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "a command that is not there makes no folder");
    }
    std::fs::create_dir(folder.path().join("there")).unwrap();
    for name in ["there", "./run"] {
        stdout_of(couplet().current_dir(folder.path()).args(["man", name]));
        assert!(folder.path().join(name).join("couplet-run.1").exists(), "{name}");
    }
}
