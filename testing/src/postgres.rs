//! A throw-away PostgreSQL, started from what is installed on this machine: one for a test binary, a database for a case.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, query_scalar};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use chassis::config::{DatabaseSettings, defaults};

/// How long it may take to answer. Half a second is usual.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A server of its own, from what is installed on this machine. It ends, and its files go, with this process, however that
/// ends.
pub struct Server {
    programs: PathBuf,
    owner: Option<(u32, u32)>,
    /// Its data, and the socket that it listens on; on nothing else.
    folder: PathBuf,
    durability: Durability,
    process: Child,
    databases: AtomicU32,
    _lifeline: Child,
}

/// Whether what is committed outlives a crash of the machine. (That of a process it outlives in any case.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `fsync=on`, as PostgreSQL has it by itself.
    Full,
    /// `fsync=off`, which is quicker.
    ProcessOnly,
}

/// The address of a new and empty database. `None` where no PostgreSQL is installed, which is said once on stderr; with
/// `REQUIRE_POSTGRES=1` in the environment that is a failure, not a skip.
///
/// # Panics
/// If the server does not start, or is required and not there.
pub async fn database() -> Option<PgConnectOptions> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let server = SERVER.get_or_init(|| Server::start(Durability::ProcessOnly)).as_ref()?;
    Some(server.create_database().await)
}

/// The settings of a store, with so much time that a busy machine fails no test.
pub fn generous_timeouts() -> DatabaseSettings {
    const MINUTE: Duration = Duration::from_secs(60);
    DatabaseSettings { database_acquire: MINUTE, database_statement: MINUTE, ..defaults() }
}

/// Fills the tables of a database by this SQL, which adds the rows from number `many.first` to `many.last` of `many.rows` in
/// all (settings that it reads), and leaves it as it is after some time of use: vacuumed, with statistics, and written out.
///
/// # Panics
/// If that fails.
pub async fn fill(database: &PgConnectOptions, sql: &'static str, rows: u32) {
    const AT_ONCE: u32 = 2;
    let part = async |part: u32| {
        let numbers = [("first", rows / AT_ONCE * part + 1), ("last", rows / AT_ONCE * (part + 1)), ("rows", rows)];
        let options =
            database.clone().options(numbers.map(|(name, number)| (format!("many.{name}"), number.to_string())));
        // An index of parts of texts takes its entries in at the end, sorted, and not a few at a time.
        let options = options.options([("gin_pending_list_limit", "1GB"), ("maintenance_work_mem", "512MB")]);
        let mut connection = options.connect().await.expect("a database");
        connection.execute(sql).await.expect("rows that the tables take");
        let _ = connection.close().await;
    };
    join_all((0..AT_ONCE).map(part)).await;
    let mut connection = database.connect().await.expect("a database");
    connection.execute("vacuum analyze").await.expect("a database of our own");
    connection.execute("checkpoint").await.expect("a server of our own"); // else the first to read has to write
    let _ = connection.close().await;
}

/// How many deadlocks there were in this database, when all others have left it: a connection tells its counts when it
/// ends, if not before, and whoever closes it does not wait for that.
///
/// # Panics
/// If the others stay.
pub async fn deadlocks(database: &PgConnectOptions) -> i64 {
    const OTHERS: &str = "select count(*) from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";
    let (began, mut connection) = (Instant::now(), database.connect().await.expect("a database"));
    while query_scalar::<_, i64>(OTHERS).fetch_one(&mut connection).await.expect("an answer") > 0 {
        assert!(began.elapsed() < START_LIMIT, "somebody stays in the database");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    query_scalar(deadlocks).fetch_one(&mut connection).await.expect("an answer")
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
    /// Starts one. `None` where no PostgreSQL is installed; with `REQUIRE_POSTGRES=1` in the environment that is a failure,
    /// not a skip, and with `REQUIRE_POSTGRES=0` it is so in any case. Which it is is said once on stderr.
    ///
    /// # Panics
    /// If it does not start, or is required and not there.
    pub fn start(durability: Durability) -> Option<Self> {
        let wanted = env::var("REQUIRE_POSTGRES").unwrap_or_default();
        let programs = programs().filter(|_| wanted != "0"); // as if there were none
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            // Not by a macro, whose words are kept from whoever runs the tests.
            let _ = match &programs {
                Some(programs) => writeln!(io::stderr(), "WITH PostgreSQL, of {}", programs.display()),
                None => writeln!(io::stderr(), "SKIPPED: the tests over PostgreSQL, for there is no initdb here"),
            };
        });
        assert!(programs.is_some() || wanted != "1", "there is no PostgreSQL here");
        let programs = programs?;
        Some(Self::set_up(programs, durability).unwrap_or_else(|reason| panic!("PostgreSQL: {reason}")))
    }

    fn set_up(programs: PathBuf, durability: Durability) -> Result<Self, String> {
        let folder = env::temp_dir().join(format!("postgres-{}-{:08x}", process::id(), rand::random::<u32>()));
        // Nobody else's: there is no password.
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| error.to_string())?;
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
        let made = initdb.output().map_err(|error| error.to_string())?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned());
        }
        let process = launch(&programs, owner, &folder, durability)?;
        Ok(Self { programs, owner, folder, durability, process, databases: AtomicU32::new(0), _lifeline: lifeline })
    }

    /// The power fails: all its processes are gone, with SIGKILL.
    ///
    /// # Panics
    /// If they cannot be killed.
    pub fn kill(&mut self) {
        let postmaster = self.process.id();
        let signal = |signal: &str, pid: u32| Command::new("kill").args([signal, &pid.to_string()]).status();
        let stopped = signal("-STOP", postmaster); // so that no more are started
        assert!(stopped.is_ok_and(|status| status.success()), "PostgreSQL is there to be killed");
        let children = children_of(postmaster);
        for pid in children.iter().chain([&postmaster]) {
            let _ = signal("-KILL", *pid); // one that has ended meanwhile is as good
        }
        self.process.wait().expect("it is a child of ours");
        let _ = fs::remove_file(self.folder.join("data/postmaster.pid")); // its number may be somebody else's soon
    }

    /// Starts it again, with the data that it had.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        let launched = launch(&self.programs, self.owner, &self.folder, self.durability);
        self.process = launched.unwrap_or_else(|reason| panic!("PostgreSQL: {reason}"));
    }

    /// The address of a new and empty database, as a service's `DATABASE_URL`.
    pub async fn create_database_url(&self) -> String {
        let options = self.create_database().await;
        let name = options.get_database().unwrap_or_default();
        format!("postgres://postgres@localhost/{name}?host={}", self.folder.display())
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.folder).port(5432).username("postgres")
    }

    /// The address of a new and empty database.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn create_database(&self) -> PgConnectOptions {
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

/// What is wrong with the wire to a database.
#[derive(Debug, Default)]
pub struct FaultyConnection {
    breaks: AtomicBool,
    silent: AtomicBool,
}

impl FaultyConnection {
    /// The wire breaks when the next answer says that a row was written: it was, and nobody hears of it.
    pub fn lose_an_answer(&self) {
        self.breaks.store(true, Ordering::SeqCst);
    }

    /// Whether that has come to pass.
    pub fn has_lost_it(&self) -> bool {
        !self.breaks.load(Ordering::SeqCst)
    }

    /// From now on all that is sent is lost, either way, and nobody is told; or it arrives again.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    async fn carry(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        const WRITTEN: [&[u8]; 3] = [b"INSERT 0 ", b"UPDATE ", b"DELETE "]; // and then how many rows
        let mut bytes = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut bytes).await {
            if self.silent.load(Ordering::SeqCst) {
                continue;
            }
            let says = |words: &&[u8]| {
                let mut windows = bytes[..length].windows(words.len() + 1).map(|window| window.split_at(words.len()));
                windows.any(|(said, rows)| said == *words && matches!(rows, [b'1'..=b'9']))
            };
            let is_lost = WRITTEN.iter().any(says) && self.breaks.swap(false, Ordering::SeqCst);
            if is_lost || to.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    }
}

/// The address of the same database behind a wire that can be bad.
///
/// # Panics
/// If there is no such database.
pub async fn behind_a_faulty_connection(database: &PgConnectOptions) -> (PgConnectOptions, Arc<FaultyConnection>) {
    let server = database.get_socket().expect("a server of this module").join(".s.PGSQL.5432");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let wire = Arc::new(FaultyConnection::default());
    let carrier = Arc::clone(&wire);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::UnixStream::connect(&server).await.expect("a server that is there");
            let carrier = Arc::clone(&carrier);
            tokio::spawn(async move {
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::select! {
                    () = carrier.carry(from_client, to_server) => {}
                    () = carrier.carry(from_server, to_client) => {}
                }
            });
        }
    });
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username(database.get_username());
    (options.database(database.get_database().expect("a database")), wire)
}

/// Starts the server and waits until it listens.
fn launch(programs: &Path, owner: Option<(u32, u32)>, folder: &Path, durability: Durability) -> Result<Child, String> {
    let log = || fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let fsync = if durability == Durability::Full { "fsync=on" } else { "fsync=off" };
    let began = Instant::now();
    loop {
        let mut postgres = command(&programs.join("postgres"), owner, folder);
        postgres.args(["-D", "data", "-c", "listen_addresses=", "-c", "max_connections=500", "-c", fsync, "-k"]);
        let (out, err) = (log().map_err(|error| error.to_string())?, log().map_err(|error| error.to_string())?);
        let mut process = postgres.arg(folder).stdout(out).stderr(err).spawn().map_err(|error| error.to_string())?;
        // It may end at once: the last one's processes can take a moment to be gone.
        while process.try_wait().is_ok_and(|ended| ended.is_none()) {
            if UnixStream::connect(folder.join(".s.PGSQL.5432")).is_ok() {
                return Ok(process);
            }
            thread::sleep(Duration::from_millis(10));
        }
        if began.elapsed() > START_LIMIT {
            return Err(fs::read_to_string(folder.join("log")).unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn command(program: &Path, owner: Option<(u32, u32)>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command.current_dir(folder).stdin(Stdio::null()).process_group(0);
    command
}

/// From Linux's `/proc/<pid>/stat`, where the parent is the second field behind the name in brackets.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind = stat.rsplit(')').next().unwrap_or_default();
        behind.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()) == Some(parent)
    };
    processes.filter(is_child).collect()
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
        id.map_err(|_| "this is root, and there is no account postgres to run it as".to_owned())
    };
    let (uid, gid) = (id("-u")?, id("-g")?);
    chown(folder, Some(uid), Some(gid)).map_err(failed)?;
    Ok(Some((uid, gid)))
}

/// A shell that reads from us. When this process ends, in whatever way, its pipe closes; then the shell ends the server and
/// removes its files. (What is static is never dropped, so nothing here can do it.)
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
    async fn what_was_committed_is_there_after_a_kill() {
        let Some(mut server) = Server::start(Durability::Full) else { return };
        let database = server.create_database_url().await;
        let mut connection = PgConnection::connect(&database).await.unwrap();
        connection.execute("create table things as select 7 as id").await.unwrap();
        server.kill();
        assert!(connection.execute("select id from things").await.is_err());
        assert!(PgConnection::connect(&database).await.is_err());
        server.restart();
        let mut connection = connect(&database).await;
        let (id,): (i32,) = sqlx::query_as("select id from things").fetch_one(&mut connection).await.unwrap();
        assert_eq!(id, 7);
    }

    /// It listens a moment before it is ready.
    async fn connect(database: &str) -> PgConnection {
        loop {
            match PgConnection::connect(database).await {
                Ok(connection) => return connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}
