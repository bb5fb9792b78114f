//! The documentation is up to date: `docs/guarantees.md` names tests that exist, the README shows a pipeline of
//! `pipelines/`, and `CONTRIBUTING.md` names every module.

use crate::support::root;

#[test]
fn the_tests_named_in_the_guarantees_exist() {
    let tests = root().join("tests/it");
    let page = std::fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let (_, page) = page.split_once("## Faults and tests").unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.contains("| Tests |"));
    let mut named = 0;
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        for name in cell.split('`').skip(1).step_by(2) {
            let (module, test) = name.split_once("::").unwrap_or((name, ""));
            let file = [format!("{module}.rs"), format!("{module}/mod.rs")].map(|file| tests.join(file));
            let text = file.iter().find_map(|file| std::fs::read_to_string(file).ok());
            let text = text.unwrap_or_else(|| panic!("there is no module {module}, which is named in: {row}"));
            assert!(test.is_empty() || text.contains(&format!("fn {test}(")), "there is no test {name}");
            named += 1;
        }
        assert!(cell == "none" || cell.contains('`'), "no test is named in: {row}");
    }
    assert!(named > 20, "{named}");
}

#[test]
fn the_readme_shows_the_nightly_pipeline() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let pipeline = read("pipelines/nightly.toml");
    // The comment at the top of the file is not part of the README.
    let (_, shown) = pipeline.split_once("\n\n").unwrap();
    assert!(
        read("README.md").contains(&format!("```toml\n{shown}```")),
        "README.md shows another pipelines/nightly.toml"
    );
}

#[test]
fn every_module_and_crate_is_named_in_contributing() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let page = read("CONTRIBUTING.md");
    let crates = root().join("crates").read_dir().unwrap();
    let crates: Vec<String> =
        crates.map(|entry| format!("crates/{}", entry.unwrap().file_name().to_str().unwrap())).collect();
    let mut missing = Vec::new();
    for folder in crates.iter().map(String::as_str).chain(["."]) {
        if !page.contains(&format!("`{}`", if folder == "." { "src/" } else { folder })) {
            missing.push(folder.to_owned());
        }
        let library = read(&format!("{folder}/src/lib.rs"));
        let modules = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        missing.extend(modules.filter(|name| !page.contains(&format!("| `{name}` |"))).map(ToOwned::to_owned));
    }
    assert!(missing.is_empty(), "CONTRIBUTING.md has no line on {missing:?}");
}
