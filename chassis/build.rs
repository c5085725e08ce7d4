//! Gives release builds the commit that they are built from: `REVISION`, or else what git says. A build without both works too.

use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=REVISION");
    // Debug builds do not name their commit, because each commit would compile all crates again.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let given = env::var("REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(|| if is_release { head() } else { None });
    println!("cargo::rustc-env=REVISION={}", revision.as_deref().unwrap_or("unknown commit"));
}

/// Returns the commit that is checked out, and has cargo run this script again after the next commit or checkout.
fn head() -> Option<String> {
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if fs::exists(&log).unwrap_or(false) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
