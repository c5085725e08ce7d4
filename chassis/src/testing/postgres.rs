//! A throw-away PostgreSQL, started from what is installed on this machine: one for a test binary, a database for a case.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

/// How long it may take to answer. Half a second is usual.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server. It ends, and its files go, with this process, however that ends.
struct Server {
    /// Its data, and the socket that it listens on; on nothing else.
    folder: PathBuf,
    databases: AtomicU32,
    _lifeline: Child,
}

/// The address of a new and empty database. `None` where no PostgreSQL is installed, which is said once on stderr; with
/// `REQUIRE_POSTGRES=1` in the environment that is a failure, not a skip.
///
/// # Panics
/// If the server does not start, or is required and not there.
pub async fn database() -> Option<PgConnectOptions> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let programs = programs();
        if programs.is_none() {
            assert!(env::var_os("REQUIRE_POSTGRES").is_none_or(|value| value != "1"), "there is no PostgreSQL here");
            // Not by a macro, whose words are kept from whoever runs the tests.
            let _ = writeln!(io::stderr(), "SKIPPED: the tests over PostgreSQL, for there is no initdb here");
        }
        programs.map(|programs| Server::start(&programs).unwrap_or_else(|reason| panic!("PostgreSQL: {reason}")))
    });
    Some(server.as_ref()?.create_database().await)
}

/// The folder of `initdb` and `postgres`: one of the PATH, or the newest of those where Debian puts them.
fn programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut debian: Vec<PathBuf> = debian.map(|version| version.join("bin")).collect();
    let version = |path: &PathBuf| path.ancestors().nth(1)?.file_name()?.to_str()?.parse::<u32>().ok();
    debian.sort_by_key(version);
    let folders = debian.into_iter().rev().chain(env::split_paths(&path));
    folders.into_iter().find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}

impl Server {
    fn start(programs: &Path) -> Result<Self, String> {
        let folder = env::temp_dir().join(format!("postgres-{}-{:08x}", process::id(), rand::random::<u32>()));
        let failed = |error: io::Error| error.to_string();
        fs::create_dir(&folder).map_err(failed)?;
        let owner = owner(&folder)?;
        let as_owner = |program: &str| {
            let mut command = Command::new(programs.join(program));
            if let Some((user, group)) = owner {
                command.uid(user).gid(group);
            }
            command.current_dir(&folder).stdin(Stdio::null());
            command
        };
        let data = folder.join("data");
        let mut initdb = as_owner("initdb");
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"]);
        let made = initdb.arg(&data).output().map_err(failed)?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        let log = fs::File::create(folder.join("log")).map_err(failed)?;
        let mut postgres = as_owner("postgres");
        postgres.arg("-D").arg(&data).arg("-k").arg(&folder);
        postgres.args(["-c", "listen_addresses=", "-c", "max_connections=500", "-c", "fsync=off"]);
        let server = postgres.process_group(0).stdout(log.try_clone().map_err(failed)?).stderr(log).spawn();
        let lifeline = lifeline(&server.map_err(failed)?, &folder).map_err(failed)?;
        wait_for(&folder.join(".s.PGSQL.5432.lock"), &folder)?;
        Ok(Self { folder, databases: AtomicU32::new(0), _lifeline: lifeline })
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.folder).port(5432).username("postgres")
    }

    async fn create_database(&self) -> PgConnectOptions {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let began = Instant::now();
        let mut connection = loop {
            match self.options().database("postgres").connect().await {
                Ok(connection) => break connection,
                Err(error) => assert!(began.elapsed() < START_LIMIT, "PostgreSQL does not answer: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let sql = format!("create database {name}");
        connection.execute(AssertSqlSafe(sql)).await.expect("a name that is free");
        let _ = connection.close().await;
        self.options().database(&name)
    }
}

/// PostgreSQL refuses to run as root: then it runs as `postgres`, to whom the folder is given.
fn owner(folder: &Path) -> Result<Option<(u32, u32)>, String> {
    let failed = |error: io::Error| error.to_string();
    if fs::metadata(folder).map_err(failed)?.uid() != 0 {
        return Ok(None);
    }
    let id = |what: &str| -> Result<u32, String> {
        let output = Command::new("id").args([what, "postgres"]).output().map_err(failed)?;
        let id = String::from_utf8_lossy(&output.stdout).trim().parse();
        id.map_err(|_| "this is root, and there is no user postgres to run it as".to_owned())
    };
    let (user, group) = (id("-u")?, id("-g")?);
    chown(folder, Some(user), Some(group)).map_err(failed)?;
    Ok(Some((user, group)))
}

/// A shell that reads from us. When this process ends, in whatever way, its pipe closes; then the shell ends the server and
/// removes its files. (What is static is never dropped, so nothing here can do it.)
fn lifeline(server: &Child, folder: &Path) -> io::Result<Child> {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        r#"read -r line; kill -QUIT "$0"; while [ -e "$1"/data/postmaster.pid ]; do sleep 0.1; done; rm -rf "$1""#,
    ]);
    shell.arg(server.id().to_string()).arg(folder).current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn wait_for(file: &Path, folder: &Path) -> Result<(), String> {
    let began = Instant::now();
    while !file.exists() {
        if began.elapsed() > START_LIMIT {
            return Err(fs::read_to_string(folder.join("log")).unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
