//! Rebuilds the service when a migration is added. `migrate!` can report only the files that it found.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
