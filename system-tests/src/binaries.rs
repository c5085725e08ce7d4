//! The binaries of the services, built from this checkout: a test of an old build would prove nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::system::{ORDERS, PRODUCTS, USERS};

/// Names a folder of services that are built already, with fault injection: `system-tests/mutants/run` tests a patched copy.
const FOLDER: &str = "SERVICE_BINARIES";

/// Builds the three services, once per process, in this program's profile. Returns the folder of the binaries.
///
/// # Errors
/// If a service does not compile. Cargo has printed the reason on stderr.
pub fn build() -> Result<&'static Path, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if let Some(folder) = env::var_os(FOLDER) {
            return Ok(folder.into());
        }
        let folder = profile_folder()?;
        cargo_build(target_of(&folder)?, &[])?;
        Ok(folder)
    });
    built.as_deref().map_err(Clone::clone)
}

/// Builds the services, once per process, with the hooks of `chassis::fault_injection`. Returns the folder of the binaries.
///
/// # Errors
/// If a service does not compile. Cargo has printed the reason on stderr.
pub(crate) fn build_with_fault_injection() -> Result<&'static Path, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if let Some(folder) = env::var_os(FOLDER) {
            return Ok(folder.into());
        }
        let folder = profile_folder()?;
        let target = target_of(&folder)?;
        // Both builds share their build folder, so that common dependencies are compiled once.
        let shared = format!("build.build-dir={target:?}");
        let features = [PRODUCTS, ORDERS].map(|service| format!("--features={service}/fault-injection"));
        let with_fault_injection = target.join("fault-injection");
        cargo_build(&with_fault_injection, &["--config", &shared, &features[0], &features[1]])?;
        Ok(with_fault_injection.join(folder.file_name().unwrap_or_default()))
    });
    built.as_deref().map_err(Clone::clone)
}

/// Returns the folder of this program, for example `target/debug`. (A test lies in `deps` below it.)
fn profile_folder() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let folder = program.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder.map(Path::to_path_buf).ok_or_else(|| format!("{} is in no folder", program.display()))
}

fn target_of(folder: &Path) -> Result<&Path, String> {
    folder.parent().ok_or_else(|| format!("{} is no cargo folder", folder.display()))
}

fn cargo_build(target: &Path, options: &[&str]) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--locked"]).arg("--target-dir").arg(target);
    cargo.args([USERS, PRODUCTS, ORDERS].map(|service| format!("--package={service}")));
    cargo.args(options);
    // A cargo that runs this program has set these. The build script of ring watches them, so ring would be compiled again.
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_MANIFEST") || name.starts_with("CARGO_PKG") {
            cargo.env_remove(&variable);
        }
    }
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("the services do not compile: cargo build, {status}")) }
}
