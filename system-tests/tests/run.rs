//! Limits of `make run`.

use std::process::Command;

#[test]
fn refuses_to_run_three_services_over_one_database() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_run"));
    let run = run.env("DATABASE_URL", "none of any service").output().expect("it was built");
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && errors.contains("each needs its own"), "{errors}");
}

#[test]
fn says_that_it_ignores_a_host_that_is_no_address() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_run"));
    let run = run.env("HOST", "mybox").env("DATABASE_URL", "stops it here").output().expect("it was built");
    let printed = String::from_utf8_lossy(&run.stdout);
    assert!(printed.starts_with("HOST=mybox is not an IP address; the services ignore it"), "{printed}");
}
