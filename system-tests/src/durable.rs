//! The three services over PostgreSQL, a database each, with a proxy on each way between them.
//!
//! With `MISTAKE=name` in the environment they make that mistake (`chassis::sabotage`): whatever test is sharp enough for
//! it has to fail then.

use std::env;

use chassis::testing::postgres::{Durability, Server};
use sqlx::{Connection, PgConnection};
use tokio::time::{self, Instant};

use crate::launch::Launch;
use crate::system::{Links, ORDERS, PRODUCTS, System, USERS};
use crate::{DEADLINE, PAUSE};

/// PostgreSQL, the services over it, and what is between them.
pub struct Durable {
    /// The database server, which writes all that it commits to the disk.
    pub postgres: Server,
    /// The services.
    pub system: System,
    /// The ways between them.
    pub links: Links,
    databases: [(&'static str, String); 3],
}

impl Durable {
    /// Starts all of it, each service as `prepare` will have it. `None` where there is no PostgreSQL, which is said on
    /// stderr. What the proxies' faults leave to chance comes from `seed`.
    ///
    /// # Panics
    /// If something does not start, or PostgreSQL is required and not there.
    pub async fn start(seed: u64, prepare: impl Fn(Launch) -> Launch) -> Option<Self> {
        let postgres = Server::start(Durability::Full)?;
        let database = async |service| (service, postgres.create_database_url().await);
        let databases = [database(USERS).await, database(PRODUCTS).await, database(ORDERS).await];
        let started = System::start_linked(seed, |launch| over(prepare(launch), &databases)).await;
        let (system, links) = started.unwrap_or_else(|reason| panic!("{reason}"));
        Some(Self { postgres, system, links, databases })
    }

    /// One more of each service over the same databases, with no proxies between them.
    ///
    /// # Panics
    /// If one does not start.
    pub async fn replicas(&self) -> System {
        System::start_as(|launch| over(launch, &self.databases)).await.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// How one more of this service is started over its database.
    pub fn launch(&self, service: &'static str) -> Launch {
        over(Launch::of(service), &self.databases)
    }

    /// A connection to the database of this service. It waits for one that is just being started.
    ///
    /// # Errors
    /// If PostgreSQL does not answer within the [`DEADLINE`].
    pub async fn database(&self, service: &str) -> Result<PgConnection, sqlx::Error> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match PgConnection::connect(url(&self.databases, service)).await {
                Err(_) if Instant::now() < deadline => time::sleep(PAUSE).await,
                connected => return connected,
            }
        }
    }
}

fn over(launch: Launch, databases: &[(&'static str, String)]) -> Launch {
    let url = url(databases, launch.service());
    let launch = match env::var("MISTAKE") {
        Ok(mistake) => launch.sabotaged().env("MISTAKE", mistake),
        Err(_) => launch,
    };
    launch.env("DATABASE_URL", url)
}

fn url<'a>(databases: &'a [(&'static str, String)], service: &str) -> &'a str {
    let database = databases.iter().find(|(of, _)| *of == service);
    database.map(|(_, url)| &**url).expect("each service has one")
}
