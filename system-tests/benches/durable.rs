//! The gain of batching: concurrent orders share calls, statements and commits. Compares orders per second over PostgreSQL, which
//! writes each commit to the disk, with a build without batching. The two take turns.
//!
//! `make durable` builds the variant without batching from a patch, and passes its folder in `VARIANT_BINARIES`.

use std::process::{self, Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection, query_scalar};
use system_tests::durable::Databases;
use system_tests::load::{Client, closed_loop};
use system_tests::{Launch, ORDERS, PRODUCTS, System, order};
use testing::postgres::{Durability, Server};

const CLIENTS: u32 = 64;
const ITEMS: i64 = 1000;
/// The two take this many turns of this length. Only figures of the same turn are compared, because the machine is noisy.
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
    let client = Client::default();
    let (mut rates, mut ratios) = ([const { Vec::new() }; 2], Vec::new());
    let before = [systems[0].commits().await, systems[1].commits().await];
    for turn in 0..TURNS {
        let mut turn_rates = [0.0; 2];
        for at in [turn % 2, (turn + 1) % 2] {
            turn_rates[at] = systems[at].orders_per_second(&client).await;
            rates[at].push(turn_rates[at]);
        }
        ratios.push(turn_rates[0] / turn_rates[1]);
    }
    for (((filled, rates), before), how) in systems.iter().zip(&rates).zip(before).zip(["batched", "one by one"]) {
        let orders = rates.iter().sum::<f64>() * TURN.as_secs_f64();
        let commits = (filled.commits().await - before) as f64 / orders;
        let rate = median(rates.clone());
        println!("durable: {CLIENTS} clients, {how:<10} {rate:>6.0} orders per second, {commits:.2} commits per order");
    }
    println!("durable: batching places {:.2} times as many", median(ratios));
    for clients in [16, CLIENTS] {
        match pgbench(&postgres, clients).await {
            Some(rate) => {
                println!("durable: {clients} clients of pgbench, a row each commit {rate:>6.0} commits per second")
            }
            None => println!("durable: pgbench is not installed"),
        }
    }
    ExitCode::SUCCESS
}

/// The services over their own databases.
struct FilledSystem {
    system: System,
    databases: Databases,
}

impl FilledSystem {
    async fn build(postgres: &Server, prepare: impl Fn(Launch) -> Launch) -> Self {
        let databases = Databases::create(postgres).await;
        let system = System::start_as(|launch| databases.configure(prepare(launch))).await;
        let system = system.unwrap_or_else(|reason| panic!("{reason}"));
        system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
        let lamp = json!({"name": "Lamp", "price": 19.99, "stock": 1_000_000_000});
        for _ in 0..ITEMS / 100 {
            let added = join_all((0..100).map(|_| system.products.post("/products", lamp.clone()))).await;
            added.into_iter().for_each(|added| drop(added.expect(201)));
        }
        Self { system, databases }
    }

    async fn orders_per_second(&self, client: &Client) -> f64 {
        let place = || {
            let body = order(1, rand::random_range(1..=ITEMS), 1);
            client.request("POST", format!("{}/orders", self.system.orders.url())).json(&body).try_send()
        };
        let figures = closed_loop(CLIENTS, TURN, place).await;
        assert!(figures.all(201), "{figures}");
        figures.rate(201)
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

/// Returns the rows per second that pgbench writes with this many clients, each row in its own commit.
async fn pgbench(postgres: &Server, clients: u32) -> Option<f64> {
    let url = postgres.create_database_url().await;
    let mut connection = PgConnection::connect(&url).await.expect("a new database");
    let create = "create table rows (id bigint generated always as identity primary key, at timestamptz default now())";
    connection.execute(create).await.expect("a table");
    let script = env::temp_dir().join(format!("pgbench-{}.sql", process::id()));
    fs::write(&script, "insert into rows default values;").expect("a folder for temporary files");
    let clients = clients.to_string();
    let mut command = Command::new("pgbench");
    command.args(["-n", "-M", "prepared", "-T", "5", "-j", "2", "-c", &clients, "-f"]).arg(&script).arg(url);
    let output = command.stderr(Stdio::null()).output();
    let _ = fs::remove_file(script);
    let printed = String::from_utf8_lossy(&output.ok()?.stdout).into_owned();
    printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
