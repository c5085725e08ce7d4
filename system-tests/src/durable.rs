//! The three services over PostgreSQL, each with its own database, and with a proxy on each link between them.

use std::path::Path;

use sqlx::{Connection, PgConnection};
use testing::postgres::{Durability, Server};

use crate::launch::Launch;
use crate::system::{Links, ORDERS, PRODUCTS, System, USERS};

/// PostgreSQL, the services over it, and the links between them.
pub struct Durable {
    /// The database server, which writes every commit to the disk.
    pub postgres: Server,
    /// The services.
    pub system: System,
    /// The links between the services.
    pub links: Links,
    pub(crate) databases: Databases,
}

/// A database for each service.
pub struct Databases([(&'static str, String); 3]);

impl Durable {
    /// Starts everything, each service as `prepare` returns it. Random faults of the proxies come from `seed`. Prints
    /// SKIPPED and returns `None` where PostgreSQL is not installed.
    ///
    /// # Panics
    /// If something does not start, or if PostgreSQL is required and not installed.
    pub async fn start(seed: u64, prepare: impl Fn(Launch) -> Launch) -> Option<Self> {
        let postgres = Server::start(Durability::Full)?;
        let databases = Databases::create(&postgres).await;
        let started = System::start_linked(seed, |launch| databases.configure(prepare(launch))).await;
        let (system, links) = started.unwrap_or_else(|reason| panic!("{reason}"));
        Some(Self { postgres, system, links, databases })
    }

    /// Starts one more replica of each service over the same databases, without proxies between them.
    ///
    /// # Panics
    /// If a service does not start.
    pub async fn replicas(&self) -> System {
        System::start_as(|launch| self.databases.configure(launch)).await.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Returns the launch of one more replica of this service over its database.
    pub fn launch(&self, service: &'static str) -> Launch {
        self.databases.configure(Launch::of(service))
    }

    /// Connects to the database of this service.
    ///
    /// # Errors
    /// If PostgreSQL does not answer.
    pub async fn database(&self, service: &str) -> Result<PgConnection, sqlx::Error> {
        self.databases.connect(service).await
    }
}

impl Databases {
    /// Creates three empty databases on this server.
    ///
    /// # Panics
    /// If the server does not answer.
    pub async fn create(postgres: &Server) -> Self {
        let database = async |service| (service, postgres.create_database_url().await);
        Self([database(USERS).await, database(PRODUCTS).await, database(ORDERS).await])
    }

    /// Moves the databases to the server whose socket is in this folder.
    #[must_use]
    pub fn behind(self, from: &Path, to: &Path) -> Self {
        let (from, to) = (from.display().to_string(), to.display().to_string());
        Self(self.0.map(|(service, url)| (service, url.replace(&from, &to))))
    }

    /// Returns the URL of the database of this service.
    ///
    /// # Panics
    /// If there is no such service.
    pub fn url(&self, service: &str) -> &str {
        let database = self.0.iter().find(|(of, _)| *of == service);
        database.map(|(_, url)| &**url).expect("each service has one")
    }

    /// Sets the database of the service to be started.
    pub fn configure(&self, launch: Launch) -> Launch {
        let url = self.url(launch.service());
        launch.env("DATABASE_URL", url)
    }

    /// Connects to the database of this service.
    ///
    /// # Errors
    /// If PostgreSQL does not answer.
    pub async fn connect(&self, service: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(self.url(service)).await
    }
}
