//! PgBouncer in transaction mode, in front of the throw-away server.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;

use super::START_LIMIT;

/// The PgBouncers of this test process, by their settings. Each has a number, which is its port.
static RUNNING: Mutex<Option<HashMap<String, (u16, Child)>>> = Mutex::new(None);
/// The lowest port. PgBouncer listens on a Unix socket only, whose name contains the port.
const FIRST_PORT: u16 = 6432;

/// Returns the address of this database through PgBouncer, or `None` where none is installed. Two connections to the server serve
/// all clients of a database. `settings` are further lines of its configuration.
///
/// # Panics
/// If PgBouncer does not start, if `REQUIRE_PGBOUNCER=1` is set and none is installed, or if the database is not one of this
/// module.
pub fn behind_pgbouncer(database: &PgConnectOptions, settings: &str) -> Option<PgConnectOptions> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    let Some(program) = folders.find_map(|folder| Some(folder.join("pgbouncer")).filter(|path| path.exists())) else {
        assert!(env::var("REQUIRE_PGBOUNCER").as_deref() != Ok("1"), "REQUIRE_PGBOUNCER=1, but it is not installed");
        let _ = writeln!(io::stderr(), "SKIPPED: the tests behind PgBouncer, because it is not installed");
        return None;
    };
    let folder = database.get_socket().expect("a server of this module");
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let running = running.get_or_insert_default();
    let port = FIRST_PORT + u16::try_from(running.len()).expect("few PgBouncers");
    let (port, _) = running
        .entry(format!("{} {settings}", folder.display()))
        .or_insert_with(|| (port, start(&program, folder, port, settings).expect("PgBouncer starts")));
    Some(database.clone().port(*port))
}

/// Starts a PgBouncer in the folder of the server, whose end removes the folder. It ends with this process.
fn start(program: &Path, folder: &Path, port: u16, settings: &str) -> io::Result<Child> {
    const RUN: &str = r#""$0" -q "$1" & read -r line; kill "$!""#;
    let configuration = folder.join(format!("pgbouncer-{port}.ini"));
    let directory = folder.display();
    let lines = format!(
        "[databases]\n* = host={directory} port=5432 user=postgres\n[pgbouncer]\nunix_socket_dir = {directory}\nlisten_port = {port}\n\
         auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 1000\n{settings}\n"
    );
    fs::write(&configuration, lines)?;
    let mut shell = Command::new("sh");
    let owner = fs::metadata(folder)?; // PgBouncer refuses to run as root, like PostgreSQL
    shell.uid(owner.uid()).gid(owner.gid());
    let log = fs::File::create(folder.join(format!("pgbouncer-{port}.log")))?;
    shell.args(["-c", RUN]).arg(program).arg(&configuration).current_dir("/").process_group(0);
    let child = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn()?;
    let began = Instant::now();
    while UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).is_err() {
        if began.elapsed() > START_LIMIT {
            return Err(io::Error::other("it does not listen"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}
