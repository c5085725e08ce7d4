//! Rebuilds the service when a migration is added: of the folder `migrate!` reports only the files that were there.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
