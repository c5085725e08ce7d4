//! README's tables are true: every setting with its default, every file and every test that a claim names.

use std::fs;
use std::path::{Path, PathBuf};

use system_tests::{Launch, ORDERS, PRODUCTS, USERS};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("README.md")
}

/// The cells of the rows of the table whose header begins with `first`.
fn table(first: &str) -> Vec<Vec<String>> {
    let text = readme();
    let rows = text.lines().skip_while(|line| !line.starts_with(&format!("| {first} |"))).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between back ticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[tokio::test]
async fn every_setting_is_there_with_its_default_and_no_other() {
    let mut listed = Vec::new();
    for service in [USERS, PRODUCTS, ORDERS] {
        let help = Launch::of(service).output(&["--help"]).await;
        let help = String::from_utf8(help.stdout).expect("text");
        for setting in help.split("[env: ").skip(1) {
            let variable = setting.split(['=', ']']).next().expect("a variable");
            // What has no default is off by itself, and its cell in README is empty.
            let default = setting.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
            let default = default.map_or("", |(default, _)| default);
            listed.push((
                service.strip_suffix("-service").expect("a service"),
                variable.to_owned(),
                default.to_owned(),
            ));
        }
    }
    let rows = table("variable");
    assert!(rows.len() > 10, "the table of settings is found: {rows:?}");
    for (service, variable, default) in &listed {
        let row = rows.iter().find(|row| quoted(&row[0]) == [variable.as_str()]);
        let row = row.unwrap_or_else(|| panic!("{service}-service has {variable}, which README does not"));
        let told = row[1].contains(default.as_str()) && row[1].is_empty() == default.is_empty();
        assert!(told, "{variable} of {service}-service is {default} by default: {row:?}");
        assert!(row[3] == "all" || row[3].contains(service), "{service}-service has {variable}: {row:?}");
    }
    for row in &rows {
        let variable = quoted(&row[0])[0];
        assert!(listed.iter().any(|(_, listed, _)| listed == variable), "no service has {variable}");
    }
}

#[test]
fn every_claim_names_files_and_tests_that_there_are() {
    let rows = table("claim");
    assert!(rows.len() > 10, "the table of claims is found: {rows:?}");
    for row in &rows {
        for file in quoted(&row[1]) {
            assert!(root().join(file).exists(), "there is no {file}: {row:?}");
        }
        let tests = quoted(&row[2]);
        assert!(!tests.is_empty(), "a claim without a test: {row:?}");
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("`file::test`, not {test}"));
            let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}: {row:?}"));
            assert!(text.contains(&format!("fn {name}(")), "there is no {name} in {file}: {row:?}");
        }
    }
}
