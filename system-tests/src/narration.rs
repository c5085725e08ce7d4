//! Prints numbered steps on a terminal, each with its checks: expected and actual.

use std::process::ExitCode;

use crate::http::Response;
use crate::terminal::{Colour, paint};

/// The steps so far, and the number of passed and failed checks.
#[derive(Default)]
pub struct Narration {
    step: usize,
    passed: usize,
    failed: usize,
}

impl Narration {
    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        println!("\n{:2}. {title}", self.step);
    }

    /// Compares the actual result with the expected one, and prints both.
    pub fn check(&mut self, what: &str, expected: impl ToString, actual: impl ToString) {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        let verdict = if actual == expected {
            self.passed += 1;
            paint("PASS", Colour::Green)
        } else {
            self.failed += 1;
            paint("FAIL", Colour::Red)
        };
        println!("    {verdict}  {what}\n          expected  {expected}\n          actual    {actual}");
    }

    /// Prints the totals. Returns success if no check failed.
    pub fn end(self) -> ExitCode {
        let Self { step: steps, passed, failed } = self;
        let (verdict, colour) = if failed == 0 { ("PASS", Colour::Green) } else { ("FAIL", Colour::Red) };
        println!("\n{}: {steps} steps, {passed} checks passed, {failed} failed", paint(verdict, colour));
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Returns the status and these members of the body, in one line: `201, status "pending", total 2598.98`.
pub fn summary(response: &Response, members: &[&str]) -> String {
    let json = response.json();
    let show = |name: &&str| json.get(name).map_or(format!("no {name}"), |value| format!("{name} {value}"));
    let parts = std::iter::once(response.status.to_string()).chain(members.iter().map(show));
    parts.collect::<Vec<_>>().join(", ")
}

/// Returns one member of each element of a list, in one line: `John Doe, Jane Smith`.
pub fn each(list: &Response, member: &str) -> String {
    let json = list.json();
    let show =
        |element: &serde_json::Value| element[member].as_str().map_or(element[member].to_string(), str::to_owned);
    json.as_array().into_iter().flatten().map(show).collect::<Vec<_>>().join(", ")
}
