//! A throw-away PostgreSQL server from the programs installed on this machine: one server per test binary, one database per
//! test.

mod faulty_connection;
mod pgbouncer;

use std::env;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use chassis::config::{DatabaseSettings, defaults};
use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, query_scalar};

pub use self::faulty_connection::{FaultyConnection, behind_a_faulty_connection};
pub use self::pgbouncer::behind_pgbouncer;

/// Maximum time for the server to start. Half a second is usual. It recovers from a crash first, and a busy disk makes that slow.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A PostgreSQL server of this test process. However the process ends, the server stops and its files are removed.
pub struct Server {
    programs: PathBuf,
    owner: Option<(u32, u32)>,
    /// Holds the data and the socket. The server listens on no port.
    folder: PathBuf,
    durability: Durability,
    /// Further settings, as arguments of `postgres`.
    settings: Vec<String>,
    process: Child,
    databases: AtomicU32,
    _lifeline: Child,
}

/// Whether committed data survive a crash of the machine. A crash of the process they survive in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `fsync=on`, PostgreSQL's default.
    Full,
    /// `fsync=off`, which is faster.
    ProcessOnly,
}

/// Returns the address of a new, empty database, or `None` where no PostgreSQL is installed.
///
/// # Panics
/// If the server does not start, or if `REQUIRE_POSTGRES=1` is set and no PostgreSQL is installed.
pub async fn database() -> Option<PgConnectOptions> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let server = SERVER.get_or_init(|| Server::start(Durability::ProcessOnly)).as_ref()?;
    Some(server.create_database().await)
}

/// Returns store settings with timeouts that no test reaches on a busy machine.
pub fn generous_timeouts() -> DatabaseSettings {
    const MINUTE: Duration = Duration::from_secs(60);
    DatabaseSettings { database_acquire: MINUTE, database_statement: MINUTE, ..defaults() }
}

/// Fills a database with `rows` rows per table, then vacuums and analyses it and writes a checkpoint.
///
/// `sql` inserts the rows numbered `many.first` to `many.last` of `many.rows`, which it reads as settings.
///
/// # Panics
/// If the SQL fails.
pub async fn fill(database: &PgConnectOptions, sql: &'static str, rows: u32) {
    const CONNECTIONS: u32 = 2;
    let part = async |part: u32| {
        let numbers =
            [("first", rows / CONNECTIONS * part + 1), ("last", rows / CONNECTIONS * (part + 1)), ("rows", rows)];
        let options =
            database.clone().options(numbers.map(|(name, number)| (format!("many.{name}"), number.to_string())));
        // With a long pending list the trigram index sorts its entries once, at the end.
        let options = options.options([("gin_pending_list_limit", "1GB"), ("maintenance_work_mem", "512MB")]);
        let mut connection = options.connect().await.expect("a database");
        connection.execute(sql).await.expect("rows that the tables take");
        let _ = connection.close().await;
    };
    join_all((0..CONNECTIONS).map(part)).await;
    let mut connection = database.connect().await.expect("a database");
    connection.execute("vacuum analyze").await.expect("a throw-away database");
    connection.execute("checkpoint").await.expect("a throw-away server"); // otherwise the first reader has to write pages
    let _ = connection.close().await;
}

/// Ends all other sessions of the database, and returns the number of deadlocks in it. A session may report its statistics only
/// when it ends.
///
/// # Panics
/// If another session does not end.
pub async fn deadlocks(database: &PgConnectOptions) -> i64 {
    const END_OTHERS: &str = "select coalesce(bool_and(pg_terminate_backend(pid, 10000)), true) from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";
    let mut connection = database.connect().await.expect("a database");
    let ended: bool = query_scalar(END_OTHERS).fetch_one(&mut connection).await.expect("an answer");
    assert!(ended, "other sessions stay open");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    query_scalar(deadlocks).fetch_one(&mut connection).await.expect("an answer")
}

/// Finds the folder of `initdb` and `postgres`: `POSTGRES_PROGRAMS`, else the newest version that Debian installed, else one in
/// the PATH.
fn programs() -> Option<PathBuf> {
    let chosen = env::var_os("POSTGRES_PROGRAMS").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut debian: Vec<PathBuf> = debian.map(|version| version.join("bin")).collect();
    let version = |path: &PathBuf| path.ancestors().nth(1)?.file_name()?.to_str()?.parse::<u32>().ok();
    debian.sort_by_key(version);
    let folders = chosen.into_iter().chain(debian.into_iter().rev()).chain(env::split_paths(&path));
    folders.into_iter().find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}

impl Server {
    /// Starts a server, or returns `None` where no PostgreSQL is installed or `REQUIRE_POSTGRES=0` is set. Reports on stderr,
    /// once, which of the two it is.
    ///
    /// # Panics
    /// If the server does not start, or if `REQUIRE_POSTGRES=1` is set and no PostgreSQL is installed.
    pub fn start(durability: Durability) -> Option<Self> {
        let require = env::var("REQUIRE_POSTGRES").unwrap_or_default();
        let programs = programs().filter(|_| require != "0");
        static REPORTED: Once = Once::new();
        REPORTED.call_once(|| {
            // The test runner captures the output of `eprintln!`, but not this.
            let _ = match &programs {
                Some(programs) => writeln!(io::stderr(), "WITH PostgreSQL, of {}", programs.display()),
                None => writeln!(io::stderr(), "SKIPPED: the tests over PostgreSQL, because no initdb is installed"),
            };
        });
        assert!(programs.is_some() || require != "1", "REQUIRE_POSTGRES=1, but no initdb is installed");
        let programs = programs?;
        Some(Self::set_up(programs, durability).unwrap_or_else(|reason| panic!("PostgreSQL: {reason}")))
    }

    fn set_up(programs: PathBuf, durability: Durability) -> Result<Self, String> {
        let folder = new_folder().map_err(|error| error.to_string())?;
        let lifeline = lifeline(&folder).map_err(|error| error.to_string())?;
        let owner = owner(&folder)?;
        let mut initdb = command(&programs.join("initdb"), owner, &folder);
        initdb.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "-D",
            "data",
        ]);
        let output = initdb.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let process = launch(&programs, owner, &folder, durability, &[])?;
        let (settings, databases) = (Vec::new(), AtomicU32::new(0));
        Ok(Self { programs, owner, folder, durability, settings, process, databases, _lifeline: lifeline })
    }

    /// Kills all processes of the server with SIGKILL, as a power failure would.
    ///
    /// # Panics
    /// If they cannot be killed.
    pub fn kill(&mut self) {
        let postmaster = self.process.id();
        let signal = |signal: &str, pid: u32| Command::new("kill").args([signal, &pid.to_string()]).status();
        let stopped = signal("-STOP", postmaster); // it must not start more processes
        assert!(stopped.is_ok_and(|status| status.success()), "PostgreSQL can be stopped");
        let children = children_of(postmaster);
        for pid in children.iter().chain([&postmaster]) {
            let _ = signal("-KILL", *pid); // it may have ended already
        }
        self.process.wait().expect("a child of this process");
        let _ = fs::remove_file(self.folder.join("data/postmaster.pid")); // another process may get this id soon
    }

    /// Returns the processor time of all processes of the server so far.
    ///
    /// # Panics
    /// If the system has no `/proc`.
    pub fn cpu_time(&self) -> Duration {
        const TICKS_PER_SECOND: u64 = 100; // on every Linux
        let postmaster = self.process.id();
        // utime and stime, and in the postmaster those of its children that have ended.
        let ticks = |pid: u32, fields: usize| stat(pid).iter().skip(11).take(fields).sum::<u64>();
        let running: u64 = children_of(postmaster).into_iter().map(|pid| ticks(pid, 2)).sum();
        Duration::from_millis((running + ticks(postmaster, 4)) * 1000 / TICKS_PER_SECOND)
    }

    /// Starts the server again on its data.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        let launched = launch(&self.programs, self.owner, &self.folder, self.durability, &self.settings);
        self.process = launched.unwrap_or_else(|reason| panic!("PostgreSQL: {reason}"));
    }

    /// Restarts the server with these settings in addition to its usual ones. They replace those of an earlier call.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart_with(&mut self, settings: &[&str]) {
        self.kill();
        self.settings = settings.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]).collect();
        self.restart();
    }

    /// Starts a synchronous standby: from now on this server confirms a commit only when the standby has written it.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_standby(&mut self) -> Self {
        let folder = new_folder().expect("a writable folder");
        let lifeline = lifeline(&folder).expect("sh is installed");
        let owner = owner(&folder).unwrap_or_else(|reason| panic!("PostgreSQL: {reason}"));
        let mut copy = command(&self.programs.join("pg_basebackup"), owner, &folder);
        let primary = format!("host={} user=postgres application_name=standby", self.folder.display());
        let output =
            copy.args(["-D", "data", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", &primary]).output();
        let output = output.expect("pg_basebackup is installed beside postgres");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let process = launch(&self.programs, owner, &folder, self.durability, &[]);
        let process = process.unwrap_or_else(|reason| panic!("PostgreSQL: {reason}"));
        let (programs, durability) = (self.programs.clone(), self.durability);
        let (settings, databases) = (Vec::new(), AtomicU32::new(0));
        let standby = Self { programs, owner, folder, durability, settings, process, databases, _lifeline: lifeline };
        self.restart_with(&["synchronous_standby_names=standby"]);
        standby
    }

    /// Makes a standby accept writes, and waits until it does.
    ///
    /// # Panics
    /// If it does not become the primary.
    pub fn promote(&self) {
        let mut promote = command(&self.programs.join("pg_ctl"), self.owner, &self.folder);
        let output =
            promote.args(["promote", "-w", "-D", "data"]).output().expect("pg_ctl is installed beside postgres");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs these lines of a shell as the account of the server. They find its programs, and connect to it by default; `PGDATA` is
    /// its data folder.
    ///
    /// # Panics
    /// If a command fails.
    pub fn run(&self, lines: &str, variables: &[(&str, &str)]) {
        let mut shell = command(Path::new("bash"), self.owner, &self.folder);
        let paths = env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{paths}", self.programs.display())).env("PGDATA", self.folder.join("data"));
        shell.env("PGHOST", &self.folder).env("PGUSER", "postgres").envs(variables.iter().copied());
        let output = shell.args(["-euo", "pipefail", "-c", lines]).output().expect("bash is installed");
        assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns the folder of its socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file into the data folder, which only the server may read.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.folder.join("data").join(file);
        let written = fs::write(&path, text).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o600)));
        let (uid, gid) = self.owner.unzip();
        written.and_then(|()| chown(&path, uid, gid)).expect("a data folder");
    }

    /// Creates an empty database and returns its address as a `DATABASE_URL`.
    pub async fn create_database_url(&self) -> String {
        let options = self.create_database().await;
        let name = options.get_database().unwrap_or_default();
        format!("postgres://postgres@localhost/{name}?host={}", self.folder.display())
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.folder).port(5432).username("postgres")
    }

    /// Creates an empty database and returns its address.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn create_database(&self) -> PgConnectOptions {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection = self.options().database("postgres").connect().await.expect("PostgreSQL answers");
        let sql = format!("create database {name}");
        connection.execute(AssertSqlSafe(sql)).await.expect("a name that is free");
        let _ = connection.close().await;
        self.options().database(&name)
    }
}

/// Creates a folder that only this user may enter, because the server has no password.
fn new_folder() -> io::Result<PathBuf> {
    let folder = env::temp_dir().join(format!("postgres-{}-{:08x}", process::id(), rand::random::<u32>()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

/// Starts the server and waits until it accepts connections.
fn launch(
    programs: &Path,
    owner: Option<(u32, u32)>,
    folder: &Path,
    durability: Durability,
    settings: &[String],
) -> Result<Child, String> {
    let log = || fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let fsync = if durability == Durability::Full { "fsync=on" } else { "fsync=off" };
    let began = Instant::now();
    loop {
        let mut postgres = command(&programs.join("postgres"), owner, folder);
        postgres.args(["-D", "data", "-c", "listen_addresses=", "-c", "max_connections=500", "-c", fsync, "-k"]);
        let (out, err) = (log().map_err(|error| error.to_string())?, log().map_err(|error| error.to_string())?);
        let mut process =
            postgres.arg(folder).args(settings).stdout(out).stderr(err).spawn().map_err(|error| error.to_string())?;
        // It ends immediately while processes of the previous server still run; then this loop tries again.
        while process.try_wait().is_ok_and(|ended| ended.is_none()) && began.elapsed() < START_LIMIT {
            if is_ready(folder, process.id()) {
                return Ok(process);
            }
            thread::sleep(Duration::from_millis(10));
        }
        if began.elapsed() >= START_LIMIT {
            return Err(fs::read_to_string(folder.join("log")).unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Returns whether the server accepts connections. During crash recovery it listens but rejects them.
///
/// Like `pg_ctl`, this reads `postmaster.pid`: line 1 is the process id, line 8 the state. A standby is ready when it accepts reads.
fn is_ready(folder: &Path, postmaster: u32) -> bool {
    let file = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap_or_default();
    let line = |number: usize| file.lines().nth(number - 1).map(str::trim);
    line(1) == Some(&*postmaster.to_string()) && line(8) == Some("ready")
}

fn command(program: &Path, owner: Option<(u32, u32)>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command.current_dir(folder).stdin(Stdio::null()).process_group(0);
    command
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(|pid| stat(*pid).get(1) == Some(&parent.into())).collect()
}

/// Reads the fields of Linux's `/proc/<pid>/stat` after the name in brackets: the state as 0, the parent, … Empty if there is no
/// such process.
fn stat(pid: u32) -> Vec<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').unwrap_or_default().1;
    fields.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect()
}

/// PostgreSQL refuses to run as root. If this process is root, the server runs as `postgres`, which gets the folder.
fn owner(folder: &Path) -> Result<Option<(u32, u32)>, String> {
    let failed = |error: io::Error| error.to_string();
    if fs::metadata(folder).map_err(failed)?.uid() != 0 {
        return Ok(None);
    }
    let id = |option: &str| -> Result<u32, String> {
        let output = Command::new("id").args([option, "postgres"]).output().map_err(failed)?;
        let id = String::from_utf8_lossy(&output.stdout).trim().parse();
        id.map_err(|_| "running as root, but there is no account postgres".to_owned())
    };
    let (uid, gid) = (id("-u")?, id("-g")?);
    chown(folder, Some(uid), Some(gid)).map_err(failed)?;
    Ok(Some((uid, gid)))
}

/// Starts a shell that reads from this process. When this process ends, however it ends, the pipe closes; then the shell stops the
/// server and removes its files. (Rust never drops statics, so a destructor cannot do it.)
fn lifeline(folder: &Path) -> io::Result<Child> {
    const END: &str = r#"
        read -r line
        kill -QUIT "$(head -n 1 "$0"/data/postmaster.pid)"
        for _ in $(seq 100); do [ -e "$0"/data/postmaster.pid ] || break; sleep 0.1; done
        rm -rf "$0""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", END]).arg(folder).current_dir("/").process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

#[cfg(test)]
mod tests {
    use sqlx::PgConnection;

    use super::*;

    #[tokio::test]
    async fn keeps_committed_data_after_a_kill() {
        let Some(mut server) = Server::start(Durability::Full) else { return };
        let database = server.create_database_url().await;
        let mut connection = PgConnection::connect(&database).await.unwrap();
        connection.execute("create table things as select 7 as id").await.unwrap();
        server.kill();
        assert!(connection.execute("select id from things").await.is_err());
        assert!(PgConnection::connect(&database).await.is_err());
        server.restart();
        let mut connection = PgConnection::connect(&database).await.unwrap();
        let (id,): (i32,) = sqlx::query_as("select id from things").fetch_one(&mut connection).await.unwrap();
        assert_eq!(id, 7);
    }
}
