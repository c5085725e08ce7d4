//! The three services over PostgreSQL, a database each, with a proxy on each way between them.
//!
//! With `MISTAKE=name` in the environment they make that mistake (`chassis::fault_injection`): whatever test is sharp enough for
//! it has to fail then.

use std::env;

use sqlx::{Connection, PgConnection};
use testing::postgres::{Durability, Server};
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
    databases: Databases,
}

/// A database for each service.
pub struct Databases([(&'static str, String); 3]);

impl Durable {
    /// Starts all of it, each service as `prepare` will have it. `None` where there is no PostgreSQL, which is said on
    /// stderr. What the proxies' faults leave to chance comes from `seed`.
    ///
    /// # Panics
    /// If something does not start, or PostgreSQL is required and not there.
    pub async fn start(seed: u64, prepare: impl Fn(Launch) -> Launch) -> Option<Self> {
        let postgres = Server::start(Durability::Full)?;
        let databases = Databases::create(&postgres).await;
        let started = System::start_linked(seed, |launch| databases.under(prepare(launch))).await;
        let (system, links) = started.unwrap_or_else(|reason| panic!("{reason}"));
        Some(Self { postgres, system, links, databases })
    }

    /// One more of each service over the same databases, with no proxies between them.
    ///
    /// # Panics
    /// If one does not start.
    pub async fn replicas(&self) -> System {
        System::start_as(|launch| self.databases.under(launch)).await.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// How one more of this service is started over its database.
    pub fn launch(&self, service: &'static str) -> Launch {
        self.databases.under(Launch::of(service))
    }

    /// A connection to the database of this service. It waits for one that is just being started.
    ///
    /// # Errors
    /// If PostgreSQL does not answer within the [`DEADLINE`].
    pub async fn database(&self, service: &str) -> Result<PgConnection, sqlx::Error> {
        self.databases.connect(service).await
    }
}

impl Databases {
    /// New and empty ones of this server.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn create(postgres: &Server) -> Self {
        let database = async |service| (service, postgres.create_database_url().await);
        Self([database(USERS).await, database(PRODUCTS).await, database(ORDERS).await])
    }

    /// The address of the one of this service.
    ///
    /// # Panics
    /// If there is no such service.
    pub fn url(&self, service: &str) -> &str {
        let database = self.0.iter().find(|(of, _)| *of == service);
        database.map(|(_, url)| &**url).expect("each service has one")
    }

    /// The service over its database.
    pub fn under(&self, launch: Launch) -> Launch {
        let url = self.url(launch.service());
        let launch = match env::var("MISTAKE") {
            Ok(mistake) => launch.with_fault_injection().env("MISTAKE", mistake),
            Err(_) => launch,
        };
        launch.env("DATABASE_URL", url)
    }

    /// A connection to the one of this service. It waits for a server that is just being started.
    ///
    /// # Errors
    /// If PostgreSQL does not answer within the [`DEADLINE`].
    pub async fn connect(&self, service: &str) -> Result<PgConnection, sqlx::Error> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match PgConnection::connect(self.url(service)).await {
                Err(_) if Instant::now() < deadline => time::sleep(PAUSE).await,
                connected => return connected,
            }
        }
    }
}
