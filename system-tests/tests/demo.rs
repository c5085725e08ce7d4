//! The demo is run with the tests, so that what it tells stays true.

use std::process::Command;

#[test]
fn the_story_of_make_demo_ends_well() {
    let demo = Command::new(env!("CARGO_BIN_EXE_demo")).output().unwrap();
    let (told, errors) = (String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{told}{errors}");
}
