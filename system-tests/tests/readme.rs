//! The documentation is true: its settings are those of `--help`, and the files, tests and headings that it names exist.

use std::fs;
use std::path::{Path, PathBuf};

use system_tests::{Launch, ORDERS, PRODUCTS, USERS};

const SETTINGS: &str = "docs/configuration.md";
const CLAIMS: &str = "docs/guarantees.md";
const MAX_README_LINES: usize = 150;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the text of a page, by its path from the root.
fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the paths of all pages, from the root.
fn pages() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let docs = docs.map(|name| format!("docs/{}", name.to_string_lossy())).filter(|path| path.ends_with(".md"));
    ["README.md", "CONTRIBUTING.md"].map(str::to_owned).into_iter().chain(docs).collect()
}

/// Returns the cells of the rows of every table in `text` whose header begins with `first`.
fn rows(text: &str, first: &str) -> Vec<Vec<String>> {
    let header = format!("| {first} |");
    let mut in_table = false;
    let rows = text.lines().filter(|line| {
        let is_header = line.starts_with(&header);
        in_table = is_header || (in_table && line.starts_with('|'));
        in_table && !is_header && !line.starts_with("|-")
    });
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Returns the texts between back ticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Returns the lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    })
}

/// Returns the targets of the links and pictures in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    [("](", ')'), ("src=\"", '"'), ("srcset=\"", '"')].into_iter().flat_map(move |(before, end)| {
        line.split(before).skip(1).filter_map(move |rest| rest.split_once(end)).map(|(target, _)| target)
    })
}

/// Returns the anchors of the headings of a page, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// Returns whether a Rust file in `folder`, or below it, has a function whose name contains `part`.
fn has_function(folder: &Path, part: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.into_iter().any(|path| {
        if path.is_dir() {
            return has_function(&path, part);
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let is_it = |rest: &str| rest.split('(').next().is_some_and(|name| name.contains(part));
        path.extension().is_some_and(|extension| extension == "rs") && text.split("fn ").skip(1).any(is_it)
    })
}

#[test]
fn keeps_the_readme_short() {
    let lines = page("README.md").lines().count();
    assert!(lines <= MAX_README_LINES, "README.md has {lines} lines");
}

#[test]
fn says_for_every_alert_what_to_do() {
    let rules = page("deploy/prometheus/rules.yml");
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let rows = rows(&page("docs/operations.md"), "alert");
    assert!(alerts.len() > 5 && rows.iter().all(|row| row.len() == 3 && !row[2].is_empty()), "{rows:?}");
    assert_eq!(rows.iter().flat_map(|row| quoted(&row[0])).collect::<Vec<_>>(), alerts);
}

#[tokio::test]
async fn lists_every_setting_with_its_default_and_no_other() {
    let mut settings = Vec::new();
    for service in [USERS, PRODUCTS, ORDERS] {
        let help = Launch::of(service).output(&["--help"]).await;
        let help = String::from_utf8(help.stdout).expect("text");
        for setting in help.split("[env: ").skip(1) {
            let variable = setting.split(['=', ']']).next().expect("a variable");
            // A setting without a default is off, and its cell in the table is empty.
            let default = setting.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
            let default = default.map_or("", |(default, _)| default);
            settings.push((
                service.strip_suffix("-service").expect("a service"),
                variable.to_owned(),
                default.to_owned(),
            ));
        }
    }
    let rows = rows(&page(SETTINGS), "variable");
    assert!(rows.len() > 10, "{SETTINGS} has no table of settings: {rows:?}");
    for (service, variable, default) in &settings {
        let row = rows.iter().find(|row| quoted(&row[0]) == [variable.as_str()]);
        let row = row.unwrap_or_else(|| panic!("{SETTINGS} lacks {variable} of {service}-service"));
        let is_same = row[1].contains(default.as_str()) && row[1].is_empty() == default.is_empty();
        assert!(is_same, "the default of {variable} of {service}-service is {default:?}: {row:?}");
        assert!(row[3] == "all" || row[3].contains(service), "{service}-service has {variable}: {row:?}");
    }
    for row in &rows {
        let variable = quoted(&row[0])[0];
        assert!(settings.iter().any(|(_, listed, _)| listed == variable), "no service has {variable}");
    }
}

#[test]
fn names_files_and_tests_that_exist_for_every_claim() {
    let rows = rows(&page(CLAIMS), "claim");
    assert!(rows.len() > 10, "{CLAIMS} has no table of claims: {rows:?}");
    let mut missing = Vec::new();
    for row in &rows {
        missing.extend(quoted(&row[1]).into_iter().filter(|file| !root().join(file).exists()));
        let tests = quoted(&row[2]);
        assert!(!tests.is_empty(), "a claim without a test: {row:?}");
        missing.extend(tests.into_iter().filter(|test| {
            if test.starts_with(".ci/") {
                return !root().join(test).exists();
            }
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("not `file::test`: {test}"));
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            !text.contains(&format!("fn {name}("))
        }));
    }
    assert!(missing.is_empty(), "{CLAIMS} names what does not exist:\n{}", missing.join("\n"));
}

#[test]
fn names_tests_that_exist_in_every_cargo_test_command() {
    let (mut missing, mut found) = (Vec::new(), 0);
    for path in pages() {
        for command in page(&path).split("cargo test ").skip(1) {
            let command = command.split(['`', '\n', '#', '|']).next().unwrap_or_default();
            let words: Vec<_> = command.split_whitespace().take_while(|word| *word != "--").collect();
            let value = |option: &str| words.iter().skip_while(|word| **word != option).nth(1).copied();
            let Some(package) = value("-p").map(|package| root().join(package)) else { continue };
            found += 1;
            if let Some(target) = value("--test") {
                let file = package.join("tests").join(target);
                let exists = file.with_extension("rs").exists() || file.join("main.rs").exists();
                missing.extend((!exists).then(|| format!("{path}: {command}")));
            }
            let options = [value("-p"), value("--test")];
            let filter = words.iter().find(|word| !word.starts_with('-') && !options.contains(&Some(**word)));
            let exists = filter.is_none_or(|part| has_function(&package, part));
            missing.extend((!exists).then(|| format!("{path}: {command}")));
        }
    }
    assert!(found > 2, "the pages have commands that run a test");
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}

#[test]
fn links_only_to_files_and_headings_that_exist() {
    let (mut missing, mut found) = (Vec::new(), 0);
    for path in pages() {
        let text = page(&path);
        let links = prose(&text).flat_map(targets).filter(|target| !target.contains("://"));
        for target in links {
            found += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => root().join(&path),
                file => root().join(&path).parent().expect("a file").join(file),
            };
            let has_anchor = || anchors(&fs::read_to_string(&file).unwrap_or_default()).iter().any(|it| it == anchor);
            if !file.exists() || !(anchor.is_empty() || has_anchor()) {
                missing.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(found > 50, "the pages have links, not {found}");
    assert!(missing.is_empty(), "links to nowhere:\n{}", missing.join("\n"));
}
