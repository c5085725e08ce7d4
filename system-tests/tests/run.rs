//! What `make run` will not do.

use std::process::Command;

#[test]
fn the_three_services_are_not_started_over_one_database() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_run"));
    let run = run.env("DATABASE_URL", "none of any service").output().expect("it was built");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("each needs one of its own"), "{said}");
}
