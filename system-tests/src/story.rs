//! A story told on a terminal: numbered steps, and for each what was expected and what came.

use std::process::ExitCode;

use crate::http::Received;
use crate::terminal::{Colour, paint};

/// How far the story is, and how it went so far.
#[derive(Default)]
pub struct Story {
    step: usize,
    passed: usize,
    failed: usize,
}

impl Story {
    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        println!("\n{:2}. {title}", self.step);
    }

    /// Tells what was done, what was expected of it and what came.
    pub fn check(&mut self, what: &str, expected: impl ToString, came: impl ToString) {
        let (expected, came) = (expected.to_string(), came.to_string());
        let verdict = if came == expected {
            self.passed += 1;
            paint("PASS", Colour::Green)
        } else {
            self.failed += 1;
            paint("FAIL", Colour::Red)
        };
        println!("    {verdict}  {what}\n          expected  {expected}\n          came      {came}");
    }

    /// The last line, and the exit code: success if nothing failed.
    pub fn end(self) -> ExitCode {
        let Self { step: steps, passed, failed } = self;
        let (verdict, colour) = if failed == 0 { ("PASS", Colour::Green) } else { ("FAIL", Colour::Red) };
        println!("\n{}: {steps} steps, {passed} checks passed, {failed} failed", paint(verdict, colour));
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// An answer in one line: its status and these members of its body, `201, status "pending", total 2598.98`.
pub fn brief(answer: &Received, members: &[&str]) -> String {
    let json = answer.json();
    let tell = |name: &&str| json.get(name).map_or(format!("no {name}"), |value| format!("{name} {value}"));
    let told = std::iter::once(answer.status.to_string()).chain(members.iter().map(tell));
    told.collect::<Vec<_>>().join(", ")
}

/// One member of each thing in a list, in one line: `John Doe, Jane Smith`.
pub fn each(list: &Received, member: &str) -> String {
    let json = list.json();
    let tell = |thing: &serde_json::Value| thing[member].as_str().map_or(thing[member].to_string(), str::to_owned);
    json.as_array().into_iter().flatten().map(tell).collect::<Vec<_>>().join(", ")
}
