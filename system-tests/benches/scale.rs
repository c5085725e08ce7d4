//! What calls cost among a million users, products and orders, against what they cost among a thousand: release builds
//! over PostgreSQL, asked over HTTP, in turns. Fails above [`MOST_RATIO`], or when loading takes too long.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::durable::Databases;
use system_tests::load::Caller;
use system_tests::{ORDERS, PRODUCTS, Service, System, USERS, order};
use testing::postgres::{Durability, Server, fill};

const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;
const MOST_RATIO: f64 = 1.5;
const MOST_LOADING: Duration = Duration::from_secs(60);
/// The two take turns so often, …
const TURNS: u32 = 50;
/// … each time for so many calls, one after the other.
const CALLS: u32 = 10;

/// Which of the services.
type Of = fn(&System) -> &Service;

/// In a path `{n}` is the number of a row somewhere, `{username}` and `{order}` what a row somewhere has.
const READS: [(&str, Of, &str); 4] = [
    ("a user", |system| &system.users, "/users/{n}"),
    ("a user by username", |system| &system.users, "/users?username={username}"),
    ("a product", |system| &system.products, "/products/{n}"),
    ("an order", |system| &system.orders, "/orders/{order}"),
];

/// Each with a share of its rows behind which there is a whole page also among a thousand.
const LISTS: [(&str, Of, &str, f64); 6] = [
    ("users", |system| &system.users, "/users?limit=50", 0.949),
    ("products", |system| &system.products, "/products?limit=50", 0.949),
    ("orders", |system| &system.orders, "/orders?limit=50", 0.949),
    ("orders of a user", |system| &system.orders, "/orders?limit=50&userId=1", 0.8),
    ("orders of a status", |system| &system.orders, "/orders?limit=50&status=delivered", 0.8),
    ("orders of both", |system| &system.orders, "/orders?limit=50&userId=1&status=delivered", 0.8),
];

/// The services over so many rows each.
struct Town {
    rows: u32,
    system: System,
    caller: Caller,
    usernames: Vec<String>,
    orders: Vec<String>,
}

/// The time of the median call, among few and among many.
type Times = [Duration; 2];

#[tokio::main]
async fn main() -> ExitCode {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return ExitCode::FAILURE };
    let (few, _) = Town::build(&postgres, FEW).await;
    let (many, loading) = Town::build(&postgres, MANY).await;
    println!("scale: {MANY} users, products, reservations and orders loaded in {:.1} s", loading.as_secs_f64());
    let mut good = loading < MOST_LOADING;
    let mut show = |what: String, [few, many]: Times| {
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        good &= ratio <= MOST_RATIO;
        println!(
            "scale: {what:<38}{:>6} µs among few{:>6} among many, ratio {ratio:.2}",
            few.as_micros(),
            many.as_micros()
        );
    };
    let towns = [&few, &many];
    for (what, service, path) in READS {
        let get = async |town: &Town, n| town.ask("GET", service, &town.somewhere(path, n), None, 200).await;
        show(what.to_owned(), compare(towns, get).await);
    }
    for (what, service, path, late) in LISTS {
        for (place, share) in [("at the beginning", 0.0), ("in the middle", 0.5), ("near the end", late)] {
            let get = async |town: &Town, _| {
                let after = f64::from(town.rows) * share;
                let after =
                    if share == 0.0 { String::new() } else { format!("&after={}", town.key(service, after as u64)) };
                town.ask("GET", service, &format!("{path}{after}"), None, 200).await;
            };
            show(format!("{what}, {place}"), compare(towns, get).await);
        }
    }
    show("a take of stock".to_owned(), compare(towns, async |town, n| town.take("1", n).await).await);
    let both = async |town: &Town, n| {
        town.take("2", n).await;
        town.ask("DELETE", |system| &system.products, &reservation("2", n), None, 204).await;
    };
    show("a take of stock and its release".to_owned(), compare(towns, both).await);
    let place = async |town: &Town, n: u32| {
        let wanted = order(1, i64::from(town.nth(n)), 1);
        town.ask("POST", |system| &system.orders, "/orders", Some(wanted), 201).await;
    };
    show("an order placed".to_owned(), compare(towns, place).await);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn compare(towns: [&Town; 2], call: impl AsyncFn(&Town, u32)) -> Times {
    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
        for (town, times) in towns.iter().zip(&mut times) {
            for n in turn * CALLS..(turn + 1) * CALLS {
                let began = Instant::now();
                call(town, n).await;
                times.push(began.elapsed());
            }
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

impl Town {
    /// With how long the rows took.
    async fn build(postgres: &Server, rows: u32) -> (Self, Duration) {
        let databases = Databases::create(postgres).await;
        let system = System::start_as(|launch| databases.under(launch)).await;
        let system = system.unwrap_or_else(|reason| panic!("{reason}"));
        let began = Instant::now();
        let fill = async |service, sql| fill(&databases.url(service).parse().expect("an address"), sql, rows).await;
        tokio::join!(
            fill(USERS, include_str!("../../user-service/tests/many.sql")),
            fill(PRODUCTS, include_str!("../../product-service/tests/many.sql")),
            fill(ORDERS, include_str!("../../order-service/tests/many.sql")),
        );
        let took = began.elapsed();
        let mut town = Self { rows, system, caller: Caller::default(), usernames: Vec::new(), orders: Vec::new() };
        for after in (0..100).map(|part| u64::from(rows / 101 * part + 1)) {
            let users = town.system.users.get(&format!("/users?limit=9&after={after}")).await.expect(200).json();
            town.usernames.extend(texts(&users, "username"));
            let after = town.key(|system| &system.orders, after);
            let orders = town.system.orders.get(&format!("/orders?limit=9&after={after}")).await.expect(200).json();
            town.orders.extend(texts(&orders, "id"));
        }
        (town, took)
    }

    async fn ask(&self, method: &str, of: Of, path: &str, json: Option<Value>, status: u16) {
        let request = self.caller.request(method, format!("{}{path}", of(&self.system).url()));
        let request = if let Some(json) = json { request.json(&json) } else { request };
        request.send().await.expect(status);
    }

    async fn take(&self, series: &str, n: u32) {
        let lines = json!({"lines": [{"productId": self.nth(n), "quantity": 1}]});
        self.ask("PUT", |system| &system.products, &reservation(series, n), Some(lines), 201).await;
    }

    /// The number of a row somewhere, another for each n.
    fn nth(&self, n: u32) -> u32 {
        1 + (u64::from(n) * 7919 % u64::from(self.rows)) as u32
    }

    fn somewhere(&self, path: &str, n: u32) -> String {
        let one_of = |all: &[String]| all[n as usize * 7919 % all.len()].clone();
        path.replace("{n}", &self.nth(n).to_string())
            .replace("{username}", &one_of(&self.usernames))
            .replace("{order}", &one_of(&self.orders))
    }

    /// What a page behind this row begins after: its number, or what many.sql makes of it for an order.
    fn key(&self, of: Of, number: u64) -> String {
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
