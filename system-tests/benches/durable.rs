//! Orders per second over PostgreSQL, which writes each commit to the disk, beside the rows per second that pgbench commits on the
//! same server: the rate, PostgreSQL's processor time, the bytes of WAL, and the 99th percentile at half of the rate.
//!
//! A second build takes turns with the first. `make durable` builds one without batching from a patch, and passes its folder in
//! `VARIANT_BINARIES`. Only figures of the same turn are compared, because the machine is noisy.

use std::path::PathBuf;
use std::process::{self, Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs};

use sqlx::{Connection, Executor, PgConnection, query_scalar};
use system_tests::durable::Databases;
use system_tests::load::{Client, constant_rate};
use system_tests::wrk;
use system_tests::{Launch, ORDERS, PRODUCTS, System};
use testing::postgres::{Durability, Server};

const CLIENTS: u32 = 64;
/// The builds and pgbench take this many turns of this length.
const TURNS: usize = 7;
const TURN: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    let Some(variant) = env::var_os("VARIANT_BINARIES") else {
        println!("durable: VARIANT_BINARIES is not set; run `make durable`");
        return ExitCode::FAILURE;
    };
    let Some(postgres) = Server::start(Durability::Full) else { return ExitCode::FAILURE };
    let systems = [
        FilledSystem::build(&postgres, |launch| launch).await,
        FilledSystem::build(&postgres, |launch| launch.binaries(&variant)).await,
    ];
    let pgbench = Pgbench::prepare(&postgres).await;
    let mut meter = Meter::new(&postgres, &systems[0].databases).await;
    let before = [systems[0].commits().await, systems[1].commits().await];
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        let mut costs = [Cost::default(); 3];
        for at in [turn % 3, (turn + 1) % 3, (turn + 2) % 3] {
            meter.start().await;
            let (done, rate) = match systems.get(at) {
                Some(system) => system.orders().await,
                None => match pgbench.rate(&[]) {
                    Some(rate) => (rate * TURN.as_secs_f64(), rate),
                    None => return ExitCode::FAILURE,
                },
            };
            costs[at] = meter.stop(done, rate).await;
        }
        turns.push(costs);
    }
    let median_of = |figure: &dyn Fn(&[Cost; 3]) -> f64| median(turns.iter().map(figure).collect());
    for (at, what) in ["orders", "orders of the variant", "commits of pgbench"].into_iter().enumerate() {
        let [rate, cpu, wal] = [(|cost: &Cost| cost.rate) as fn(&Cost) -> f64, Cost::cpu_micros, Cost::wal_bytes]
            .map(|figure| median_of(&|costs| figure(&costs[at])));
        println!(
            "durable: {CLIENTS} clients {rate:>6.0} {what} per second; each takes {cpu:.0} µs of PostgreSQL and {wal:.0} bytes of WAL"
        );
    }
    for ((filled, before), (at, what)) in systems.iter().zip(before).zip([(0, "order"), (1, "order of the variant")]) {
        let orders: f64 = turns.iter().map(|costs| costs[at].done).sum();
        println!("durable: {:.2} commits per {what}", (filled.commits().await - before) as f64 / orders);
    }
    let ratio = |above: usize, below: usize, figure: fn(&Cost) -> f64| {
        median_of(&|costs| figure(&costs[above]) / figure(&costs[below]))
    };
    println!("durable: {:.2} times as many orders as the variant", ratio(0, 1, |cost| cost.rate));
    println!("durable: {:.2} orders per commit of pgbench", ratio(0, 2, |cost| cost.rate));
    println!("durable: {:.1} times the processor time of a commit of pgbench", ratio(0, 2, Cost::cpu_micros));

    let half = |at: usize| (median_of(&|costs| costs[at].rate) / 2.0) as u32;
    let orders = systems[0].p99(half(0)).await;
    let Some(commits) = pgbench.p99(half(2)) else { return ExitCode::FAILURE };
    let (orders, commits) = (orders.as_secs_f64() * 1e3, commits.as_secs_f64() * 1e3);
    println!(
        "durable: at half of these rates 99 % of the orders take at most {orders:.1} ms, of the commits {commits:.1} ms: ratio {:.1}",
        orders / commits
    );
    ExitCode::SUCCESS
}

/// The orders or commits of a turn, and what they have cost the database server.
#[derive(Clone, Copy, Default)]
struct Cost {
    done: f64,
    /// Per second. wrk runs up to 0.1 s longer than a turn, so this is less than `done` in the time of a turn.
    rate: f64,
    cpu: Duration,
    wal: i64,
}

impl Cost {
    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.done
    }

    fn wal_bytes(&self) -> f64 {
        self.wal as f64 / self.done
    }
}

/// Measures what a database server has used.
struct Meter<'s> {
    postgres: &'s Server,
    connection: PgConnection,
    started: (Duration, i64),
}

impl<'s> Meter<'s> {
    async fn new(postgres: &'s Server, databases: &Databases) -> Self {
        let connection = databases.connect(ORDERS).await.expect("the database answers");
        Self { postgres, connection, started: Default::default() }
    }

    async fn read(&mut self) -> (Duration, i64) {
        let sql = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
        let written = query_scalar(sql).fetch_one(&mut self.connection).await.expect("the database answers");
        (self.postgres.cpu_time(), written)
    }

    async fn start(&mut self) {
        self.started = self.read().await;
    }

    async fn stop(&mut self, done: f64, rate: f64) -> Cost {
        let (cpu, wal) = self.read().await;
        Cost { done, rate, cpu: cpu.saturating_sub(self.started.0), wal: wal - self.started.1 }
    }
}

/// The services over their own databases.
struct FilledSystem {
    system: System,
    databases: Databases,
}

impl FilledSystem {
    async fn build(postgres: &Server, prepare: impl Fn(Launch) -> Launch) -> Self {
        let databases = Databases::create(postgres).await;
        let system = wrk::system(|launch| databases.configure(prepare(launch))).await;
        Self { system: system.unwrap_or_else(|reason| panic!("{reason}")), databases }
    }

    /// Places orders of two lines for a turn. Returns how many, and how many per second.
    ///
    /// wrk sends them: like pgbench, it needs little processor time. A client in this process would take a core from the services.
    async fn orders(&self) -> (f64, f64) {
        let figures =
            wrk::load(&self.system, &wrk::ORDER, CLIENTS, TURN).await.unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!(figures.failed, 0, "of {} orders", figures.requests);
        (figures.requests as f64, figures.rate)
    }

    /// Places orders at this rate, and returns the 99th percentile of their times. A time counts from when the order was due.
    ///
    /// wrk cannot send at a constant rate, so a client in this process does. It takes processor time from the services, so the
    /// result is an upper bound.
    async fn p99(&self, rate: u32) -> Duration {
        let (client, url) = (Client::default(), format!("{}/orders", self.system.orders.url()));
        let place = || client.request("POST", url.clone()).json(&wrk::random_order()).try_send();
        let figures = constant_rate(rate, 3 * TURN, place).await;
        assert!(figures.all(201), "{figures}");
        figures.p99(201)
    }

    /// Returns the commits so far. (PostgreSQL counts those of a connection only after it was idle for a while.)
    async fn commits(&self) -> i64 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut commits = 0;
        for service in [PRODUCTS, ORDERS] {
            let mut database = self.databases.connect(service).await.expect("the database answers");
            let sql = "select xact_commit from pg_stat_database where datname = current_database()";
            commits += query_scalar::<_, i64>(sql).fetch_one(&mut database).await.expect("PostgreSQL counts commits");
        }
        commits
    }
}

/// pgbench with a script that writes a row in its own commit.
struct Pgbench {
    url: String,
    /// For the script and the log.
    folder: PathBuf,
}

impl Pgbench {
    async fn prepare(postgres: &Server) -> Self {
        let url = postgres.create_database_url().await;
        let mut connection = PgConnection::connect(&url).await.expect("a new database");
        let create =
            "create table rows (id bigint generated always as identity primary key, at timestamptz default now())";
        connection.execute(create).await.expect("a table");
        let folder = env::temp_dir().join(format!("pgbench-{}", process::id()));
        fs::create_dir_all(&folder).expect("a folder for temporary files");
        fs::write(folder.join("script"), "insert into rows default values;").expect("a folder for temporary files");
        Self { url, folder }
    }

    /// Runs pgbench for a turn, and returns the commits per second. `None`, with a line on the terminal, if it is not installed.
    fn rate(&self, options: &[&str]) -> Option<f64> {
        let clients = CLIENTS.to_string();
        let seconds = TURN.as_secs().to_string();
        let mut command = Command::new("pgbench");
        command.args(["-n", "-M", "prepared", "-T", &seconds, "-j", "2", "-c", &clients, "-f", "script"]).args(options);
        let output = command.arg(&self.url).current_dir(&self.folder).stderr(Stdio::null()).output();
        let printed = String::from_utf8_lossy(&output.map(|output| output.stdout).unwrap_or_default()).into_owned();
        let rate = printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
        if rate.is_none() {
            println!("durable: pgbench is not installed");
        }
        rate
    }

    /// Returns the 99th percentile of the times of commits at this rate. A time counts from when the commit was due.
    fn p99(&self, rate: u32) -> Option<Duration> {
        self.rate(&["-R", &rate.to_string(), "-l"])?;
        let mut micros: Vec<u64> = Vec::new();
        for entry in fs::read_dir(&self.folder).ok()?.flatten() {
            let log = fs::read_to_string(entry.path()).ok()?;
            micros.extend(log.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
        }
        micros.sort_unstable();
        Some(Duration::from_micros(*micros.get(micros.len() * 99 / 100)?))
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
