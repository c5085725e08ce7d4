//! Compares response times with a million users, products and orders to those with a thousand. Release builds over PostgreSQL,
//! measured over HTTP in turns. Fails above [`MAX_RATIO`], or if loading takes too long.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::durable::Databases;
use system_tests::load::Client;
use system_tests::{ORDERS, PRODUCTS, Service, System, USERS, order};
use testing::postgres::{Durability, Server, fill};

const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;
const MAX_RATIO: f64 = 1.5;
const MAX_LOADING: Duration = Duration::from_secs(60);
/// The two systems take this many turns, …
const TURNS: u32 = 50;
/// … each with this many calls, one after the other.
const CALLS: u32 = 10;

/// Selects a service.
type Select = fn(&System) -> &Service;

/// In a path, `{n}` becomes the number of a row, `{username}` and `{order}` the username and the id of a row.
const READS: [(&str, Select, &str); 4] = [
    ("a user", |system| &system.users, "/users/{n}"),
    ("a user by username", |system| &system.users, "/users?username={username}"),
    ("a product", |system| &system.products, "/products/{n}"),
    ("an order", |system| &system.orders, "/orders/{order}"),
];

/// Each with the share of its rows after which a thousand rows still have a whole page.
const LISTS: [(&str, Select, &str, f64); 6] = [
    ("users", |system| &system.users, "/users?limit=50", 0.949),
    ("products", |system| &system.products, "/products?limit=50", 0.949),
    ("orders", |system| &system.orders, "/orders?limit=50", 0.949),
    ("orders of a user", |system| &system.orders, "/orders?limit=50&userId=1", 0.8),
    ("orders of a status", |system| &system.orders, "/orders?limit=50&status=delivered", 0.8),
    ("orders of both", |system| &system.orders, "/orders?limit=50&userId=1&status=delivered", 0.8),
];

/// The services, with this many rows each.
struct FilledSystem {
    rows: u32,
    system: System,
    client: Client,
    usernames: Vec<String>,
    orders: Vec<String>,
}

/// The median times of a call, with few and with many rows.
type Times = [Duration; 2];

#[tokio::main]
async fn main() -> ExitCode {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return ExitCode::FAILURE };
    let (few, _) = FilledSystem::build(&postgres, FEW).await;
    let (many, loading) = FilledSystem::build(&postgres, MANY).await;
    println!("scale: {MANY} users, products, reservations and orders loaded in {:.1} s", loading.as_secs_f64());
    let mut good = loading < MAX_LOADING;
    let mut show = |what: String, [few, many]: Times| {
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        good &= ratio <= MAX_RATIO;
        println!(
            "scale: {what:<38}{:>6} µs with few rows{:>6} with many, ratio {ratio:.2}",
            few.as_micros(),
            many.as_micros()
        );
    };
    let systems = [&few, &many];
    for (what, service, path) in READS {
        let get =
            async |filled: &FilledSystem, n| filled.call("GET", service, &filled.with_row(path, n), None, 200).await;
        show(what.to_owned(), compare(systems, get).await);
    }
    for (what, service, path, late) in LISTS {
        for (place, share) in [("at the beginning", 0.0), ("in the middle", 0.5), ("near the end", late)] {
            let get = async |filled: &FilledSystem, _| {
                let after = f64::from(filled.rows) * share;
                let after =
                    if share == 0.0 { String::new() } else { format!("&after={}", filled.key(service, after as u64)) };
                filled.call("GET", service, &format!("{path}{after}"), None, 200).await;
            };
            show(format!("{what}, {place}"), compare(systems, get).await);
        }
    }
    show("a take of stock".to_owned(), compare(systems, async |filled, n| filled.take("1", n).await).await);
    let both = async |filled: &FilledSystem, n| {
        filled.take("2", n).await;
        filled.call("DELETE", |system| &system.products, &reservation("2", n), None, 204).await;
    };
    show("a take of stock and its release".to_owned(), compare(systems, both).await);
    let place = async |filled: &FilledSystem, n: u32| {
        let body = order(1, i64::from(filled.nth(n)), 1);
        filled.call("POST", |system| &system.orders, "/orders", Some(body), 201).await;
    };
    show("an order placed".to_owned(), compare(systems, place).await);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn compare(systems: [&FilledSystem; 2], call: impl AsyncFn(&FilledSystem, u32)) -> Times {
    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
        for (filled, times) in systems.iter().zip(&mut times) {
            for n in turn * CALLS..(turn + 1) * CALLS {
                let began = Instant::now();
                call(filled, n).await;
                times.push(began.elapsed());
            }
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

impl FilledSystem {
    /// Starts and fills the services. Returns the time to load the rows as well.
    async fn build(postgres: &Server, rows: u32) -> (Self, Duration) {
        let databases = Databases::create(postgres).await;
        let system = System::start_as(|launch| databases.configure(launch)).await;
        let system = system.unwrap_or_else(|reason| panic!("{reason}"));
        let began = Instant::now();
        let fill = async |service, sql| fill(&databases.url(service).parse().expect("a URL"), sql, rows).await;
        tokio::join!(
            fill(USERS, include_str!("../../user-service/tests/many.sql")),
            fill(PRODUCTS, include_str!("../../product-service/tests/many.sql")),
            fill(ORDERS, include_str!("../../order-service/tests/many.sql")),
        );
        let took = began.elapsed();
        let mut filled = Self { rows, system, client: Client::default(), usernames: Vec::new(), orders: Vec::new() };
        for after in (0..100).map(|part| u64::from(rows / 101 * part + 1)) {
            let users = filled.system.users.get(&format!("/users?limit=9&after={after}")).await.expect(200).json();
            filled.usernames.extend(texts(&users, "username"));
            let after = filled.key(|system| &system.orders, after);
            let orders = filled.system.orders.get(&format!("/orders?limit=9&after={after}")).await.expect(200).json();
            filled.orders.extend(texts(&orders, "id"));
        }
        (filled, took)
    }

    async fn call(&self, method: &str, of: Select, path: &str, json: Option<Value>, status: u16) {
        let request = self.client.request(method, format!("{}{path}", of(&self.system).url()));
        let request = if let Some(json) = json { request.json(&json) } else { request };
        request.send().await.expect(status);
    }

    async fn take(&self, series: &str, n: u32) {
        let lines = json!({"lines": [{"productId": self.nth(n), "quantity": 1}]});
        self.call("PUT", |system| &system.products, &reservation(series, n), Some(lines), 201).await;
    }

    /// Returns the number of a row, a different one for each n.
    fn nth(&self, n: u32) -> u32 {
        1 + (u64::from(n) * 7919 % u64::from(self.rows)) as u32
    }

    fn with_row(&self, path: &str, n: u32) -> String {
        let one_of = |all: &[String]| all[n as usize * 7919 % all.len()].clone();
        path.replace("{n}", &self.nth(n).to_string())
            .replace("{username}", &one_of(&self.usernames))
            .replace("{order}", &one_of(&self.orders))
    }

    /// Returns the `after` of a page behind this row: its number, or the order id that many.sql derives from it.
    fn key(&self, of: Select, number: u64) -> String {
        if of(&self.system).address() != self.system.orders.address() {
            return number.to_string();
        }
        let time = format!("{:012x}", 1_577_836_800_000 + number * 180_000);
        format!("{}-{}-7fff-bfff-ffffffffffff", &time[..8], &time[8..])
    }
}

fn texts(list: &Value, member: &str) -> Vec<String> {
    let rows = list.as_array().into_iter().flatten();
    rows.filter_map(|row| Some(row[member].as_str()?.to_owned())).collect()
}

fn reservation(series: &str, n: u32) -> String {
    format!("/reservations/{series}0000000-0000-7000-8000-{n:012x}")
}
