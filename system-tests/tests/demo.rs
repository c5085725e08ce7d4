//! Runs the demo with the tests, so that its claims stay true.

use std::process::Command;

#[test]
fn passes_every_check_of_the_demo() {
    let demo = Command::new(env!("CARGO_BIN_EXE_demo")).output().unwrap();
    let (output, errors) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{output}{errors}");
}
