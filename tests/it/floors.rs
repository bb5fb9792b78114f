//! The layers of the code: each crate depends only on crates below it, each module imports only modules below it, and
//! the files of a module form no large import cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

/// The crates, lowest layer first, each with its modules in the same order. A crate may depend on those before it, and a
/// module may import those before it. Modules that are joined by `|` count as one.
const LAYERS: &[(&str, &str)] = &[
    ("crates/couplet-storage", "words backtrace crash escape redact trouble files place objects lock hub lib"),
    ("crates/couplet-encoder", "ops model scorer lib"),
    (
        "crates/couplet-train",
        "chart random statistics sampling masking training_chart optimizer schedule \
         error|example|loss|options|network|weights|gradients|trainer|evaluate|state|hyper|training_loop job \
         finetune pretrain lib",
    ),
    (
        "crates/couplet-tables",
        "dates from_first histogram sql_depth types yielding delta literals bounded_functions sink tables predict \
         sql_error session store source lib",
    ),
    ("crates/couplet-cluster", "unavailable|ballista|lib"),
    (
        ".",
        "config frequent progress report logging error run terminal parameters query history init prometheus page shell \
         cli main lib",
    ),
];

/// The maximum number of files of a module in an import cycle.
const MAX_CYCLE: usize = 10;

/// Collects all Rust files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The text of a file without its comments and its unit tests.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().take_while(|line| *line != "mod tests {");
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths that follow `crate::` in a file, one per name: `crate::{a, b::c}` gives `a` and `b::c`.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            expand("", &code[at + "crate::".len()..], &mut paths);
        }
    }
    paths
}

/// Reads one path, or a group of paths in braces; returns the text after it.
fn expand<'c>(prefix: &str, code: &'c str, paths: &mut Vec<String>) -> &'c str {
    let Some(group) = code.strip_prefix('{') else {
        let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len());
        let (name, rest) = code.split_at(end);
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
        return match rest.strip_prefix("::") {
            Some(rest) => expand(&path, rest, paths),
            None => {
                paths.push(path);
                rest
            }
        };
    };
    let mut rest = group.trim_start();
    while !rest.is_empty() && !rest.starts_with('}') {
        rest = expand(prefix, rest, paths).trim_start();
        rest = rest.strip_prefix('*').unwrap_or(rest).trim_start();
        // A name in a group may have an alias.
        if let Some(alias) = rest.strip_prefix("as ") {
            rest = alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').trim_start();
        }
        match rest.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None if rest.starts_with('}') => {}
            None => return rest,
        }
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// The folder of a crate's source.
fn source(folder: &str) -> PathBuf {
    root().join(folder).join("src")
}

/// The name of a file's module: `a::b` for `a/b.rs` and `a/b/mod.rs` in the source of its crate.
fn module_of(source: &Path, path: &Path) -> String {
    let path = path.strip_prefix(source).unwrap().with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
    parts.join("::")
}

/// The Rust files of a crate, each with its module.
fn source_files(folder: &str) -> Vec<(PathBuf, String)> {
    let source = source(folder);
    let mut found = Vec::new();
    files(&source, &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), module_of(&source, &path))).collect()
}

#[test]
fn no_crate_depends_on_one_above_it() {
    let name = |folder: &str| folder.rsplit('/').next().unwrap().replace('.', "couplet");
    let mut above: Vec<String> = LAYERS.iter().map(|(folder, _)| name(folder)).collect();
    for (folder, _) in LAYERS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        // Each kind of dependency has a line that begins with its name.
        let named = manifest.lines().filter_map(|line| line.split([' ', '.', '=']).next());
        for dependency in named {
            assert!(
                !above.iter().any(|other| other == dependency),
                "{folder} depends on {dependency}, which is above it"
            );
        }
        above.remove(0);
    }
    let crates = fs::read_dir(root().join("crates")).unwrap().count();
    assert_eq!(crates + 1, LAYERS.len(), "a folder of crates/ is missing from LAYERS in tests/it/floors.rs");
}

#[test]
fn no_module_imports_one_above_it() {
    let mut wrong = Vec::new();
    for (folder, modules) in LAYERS {
        let order: Vec<Vec<&str>> = modules.split_whitespace().map(|unit| unit.split('|').collect()).collect();
        let place = |module: &str| order.iter().position(|unit| unit.contains(&module));
        for (path, module) in source_files(folder) {
            let top = module.split("::").next().unwrap();
            let Some(own) = place(top) else {
                wrong.push(format!("`{top}` of {folder} is missing from LAYERS in tests/it/floors.rs"));
                continue;
            };
            for path in crate_paths(&code_of(&path)) {
                let other = path.split("::").next().unwrap();
                if place(other).is_some_and(|other| other > own) {
                    wrong.push(format!("{folder}: {module} imports {path}, which is above it"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_of_a_module_form_small_cycles() {
    for (folder, _) in LAYERS {
        let files = source_files(folder);
        let modules: BTreeSet<String> = files.iter().map(|(_, module)| module.clone()).collect();
        let arrows: BTreeMap<String, BTreeSet<String>> =
            files.iter().map(|(path, module)| (module.clone(), arrows_of(path, module, &modules))).collect();
        let reachable = |from: &str| {
            let (mut found, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
            while let Some(module) = next.pop() {
                for other in arrows.get(&module).into_iter().flatten() {
                    if found.insert(other.clone()) {
                        next.push(other.clone());
                    }
                }
            }
            found
        };
        let reached: BTreeMap<&String, BTreeSet<String>> =
            modules.iter().map(|module| (module, reachable(module))).collect();
        for (module, others) in &reached {
            let cycle: Vec<_> = others.iter().filter(|other| reached[other].contains(*module)).collect();
            assert!(cycle.len() <= MAX_CYCLE, "{} files import each other: {cycle:?}", cycle.len());
        }
    }
}

/// The modules that a file imports with `crate::` or `super::`. Its submodules, named without either, are not included.
fn arrows_of(path: &Path, module: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let code = code_of(path);
    let mut named = crate_paths(&code);
    // One or more `super::` are relative to the file's module.
    for (at, _) in code.match_indices("super::") {
        let mut above: Vec<&str> = module.split("::").collect();
        above.pop();
        if code[..at].ends_with("super::") {
            continue;
        }
        let mut rest = &code[at + "super::".len()..];
        while let Some(next) = rest.strip_prefix("super::") {
            above.pop();
            rest = next;
        }
        expand(&above.join("::"), rest, &mut named);
    }
    // The longest prefix that names a module identifies the file.
    let of_path = |path: &String| {
        let mut parts: Vec<&str> = path.split("::").collect();
        while !parts.is_empty() {
            let prefix = parts.join("::");
            if modules.contains(&prefix) {
                return Some(prefix);
            }
            parts.pop();
        }
        None
    };
    named.iter().filter_map(of_path).filter(|other| other != module).collect()
}

#[test]
fn the_encoder_depends_on_no_database_and_no_command_line() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut dependencies: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = package.split('"').nth(1).unwrap();
        let listed = package.split_once("dependencies = [").map_or("", |(_, listed)| listed);
        // A dependency is `name`, or `name version` if there are several versions.
        let names = listed.split('"').skip(1).step_by(2).map(|dependency| dependency.split(' ').next().unwrap());
        dependencies.entry(name).or_default().extend(names);
    }
    let (mut found, mut next) = (BTreeSet::new(), vec!["couplet-encoder"]);
    while let Some(name) = next.pop() {
        for dependency in &dependencies[name] {
            if found.insert(*dependency) {
                next.push(dependency);
            }
        }
    }
    assert!(found.contains("candle-core"));
    for above in ["couplet-tables", "clap", "datafusion", "deltalake-core", "plotters", "rustyline"] {
        assert!(!found.contains(above), "couplet-encoder depends on {above}");
    }
}

#[test]
fn the_feature_of_clusters_is_named_in_one_place() {
    let named = |(path, _): &(PathBuf, String)| {
        let code = code_of(path);
        code.contains("feature = \"cluster\"") || code.contains("feature = \"ballista\"")
    };
    let files = LAYERS.iter().flat_map(|(folder, _)| source_files(folder)).filter(named);
    let files: Vec<PathBuf> = files.map(|(path, _)| path).collect();
    assert_eq!(files, [source("crates/couplet-cluster").join("lib.rs")]);
}
