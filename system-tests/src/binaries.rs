//! The services' binaries, built from this checkout: a test that ran yesterday's would prove nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::system::{ORDERS, PRODUCTS, USERS};

/// Builds the three services, once a process, with this program's own profile; the folder that they are in.
///
/// # Errors
/// If one does not compile; cargo has said on stderr why.
pub fn build() -> Result<&'static Path, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = profile_folder()?;
        cargo_build(target_of(&folder)?, &[])?;
        Ok(folder)
    });
    built.as_deref().map_err(Clone::clone)
}

/// Builds them, once a process, with crash points and mistakes on demand (`chassis::fault_injection`); the folder that these are
/// in, beside the others.
///
/// # Errors
/// If one does not compile; cargo has said on stderr why.
pub(crate) fn build_with_fault_injection() -> Result<&'static Path, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = profile_folder()?;
        let target = target_of(&folder)?;
        // What both builds have in common is compiled once: only what they are made for has a folder of its own.
        let shared = format!("build.build-dir={target:?}");
        let features = [PRODUCTS, ORDERS].map(|service| format!("--features={service}/fault-injection"));
        let with_fault_injection = target.join("fault-injection");
        cargo_build(&with_fault_injection, &["--config", &shared, &features[0], &features[1]])?;
        Ok(with_fault_injection.join(folder.file_name().unwrap_or_default()))
    });
    built.as_deref().map_err(Clone::clone)
}

/// `target/debug`, say: where this very program comes from (a test lies in `deps` below it).
fn profile_folder() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let folder = program.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder.map(Path::to_path_buf).ok_or_else(|| format!("{} lies in no folder", program.display()))
}

fn target_of(folder: &Path) -> Result<&Path, String> {
    folder.parent().ok_or_else(|| format!("{} is no cargo folder", folder.display()))
}

fn cargo_build(target: &Path, more: &[&str]) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--locked"]).arg("--target-dir").arg(target);
    cargo.args([USERS, PRODUCTS, ORDERS].map(|service| format!("--package={service}")));
    cargo.args(more);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("the services do not compile: cargo build, {status}")) }
}
