//! `docs/guarantees.md` names tests that exist.

use crate::support::root;

#[test]
fn the_tests_of_promises_exist() {
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
