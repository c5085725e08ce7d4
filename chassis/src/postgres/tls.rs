//! Tests of TLS, against a server that accepts nothing else over TCP.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor, query_scalar};
use testing::eventually;
use testing::postgres::{Durability, Server};

use super::Pool;
use crate::config::{DatabaseSettings, defaults};

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// Returns a certificate for these host names, and its key.
    fn issue(&self, common_name: &str, hosts: &[String]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A server, its address, and a folder of certificates: `root`, `other-root`, `client`, `client-key`.
struct TlsServer {
    server: Server,
    /// The address of the database over the Unix socket.
    database: PgConnectOptions,
    address: Ipv4Addr,
    folder: PathBuf,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl TlsServer {
    /// Starts a server whose certificate is for its address, or for another host.
    async fn start(is_for_its_address: bool) -> Option<Self> {
        let mut server = Server::start(Durability::ProcessOnly)?;
        let database = server.create_database().await;
        let mut admin = database.connect().await.unwrap();
        admin.execute("create role certified login; alter database test_0 owner to certified").await.unwrap();
        // A port is never in use on an address of one's own.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + rand::random_range(1..0xFF_FFFE));
        let authority = Authority::new();
        let host = if is_for_its_address { address.to_string() } else { "db.example".to_owned() };
        let (certificate, key) = authority.issue("server", &[host]);
        server.write("server.crt", &certificate);
        server.write("server.key", &key);
        server.write("root.crt", &authority.pem);
        let access = "local all all trust\nhostssl all certified all cert\nhostssl all all all trust\n";
        server.write("pg_hba.conf", access);
        restart(&mut server, &database, &[&format!("listen_addresses={address}"), "ssl=on", "ssl_ca_file=root.crt"])
            .await;
        let folder = env::temp_dir().join(format!("certificates-{:016x}", rand::random::<u64>()));
        fs::create_dir(&folder).unwrap();
        let (client, client_key) = authority.issue("certified", &[]);
        let other = Authority::new().pem;
        for (file, pem) in
            [("root", authority.pem), ("other-root", other), ("client", client), ("client-key", client_key)]
        {
            fs::write(folder.join(file), pem).unwrap();
        }
        Some(Self { server, database, address, folder })
    }

    /// Opens a pool with these parameters, in which `{}` is the folder of the certificates.
    async fn open(&self, role: &str, parameters: &str) -> Result<Pool, String> {
        let parameters = parameters.replace("{}", &self.folder.display().to_string());
        let url = format!("postgres://{role}@{}/test_0?{parameters}", self.address);
        let settings = DatabaseSettings { database_url: url.parse().ok(), ..defaults() };
        let url = settings.url()?.expect("a database");
        let pool = Pool::new("tiny", &url, &settings, &Migrator::with_migrations(Vec::new()));
        pool.open().await.map(|()| pool)
    }
}

async fn restart(server: &mut Server, database: &PgConnectOptions, settings: &[&str]) {
    server.restart_with(settings);
    eventually("the server accepts connections", async || database.connect().await.is_ok()).await;
}

async fn is_encrypted(pool: &Pool) -> bool {
    const SQL: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    query_scalar(SQL).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn encrypts_its_connections_and_verifies_the_server_on_request() {
    let Some(server) = TlsServer::start(true).await else { return };
    for parameters in
        ["", "sslmode=require", "sslmode=verify-ca&sslrootcert={}/root", "sslmode=verify-full&sslrootcert={}/root"]
    {
        let pool = server.open("postgres", parameters).await.expect(parameters);
        assert!(is_encrypted(&pool).await, "{parameters}");
        pool.ping().await.unwrap();
    }
    for parameters in [
        "sslmode=disable",
        "sslmode=require&sslrootcert={}/other-root",
        "sslmode=verify-ca&sslrootcert={}/other-root",
        "sslmode=verify-full&sslrootcert={}/other-root",
        "sslmode=verify-full", // the system does not know the authority
    ] {
        server.open("postgres", parameters).await.expect_err(parameters);
    }
}

#[tokio::test]
async fn compares_the_host_of_the_certificate_only_with_verify_full() {
    let Some(server) = TlsServer::start(false).await else { return };
    server.open("postgres", "sslmode=verify-ca&sslrootcert={}/root").await.unwrap();
    let error = server.open("postgres", "sslmode=verify-full&sslrootcert={}/root").await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn identifies_itself_with_a_client_certificate() {
    let Some(server) = TlsServer::start(true).await else { return };
    let certificate = "sslcert={}/client&sslkey={}/client-key";
    let pool = server.open("certified", certificate).await.unwrap();
    assert!(is_encrypted(&pool).await);
    let verified = format!("sslmode=verify-full&sslrootcert={{}}/root&{certificate}");
    server.open("certified", &verified).await.unwrap();
    server.open("certified", "sslmode=require").await.expect_err("the role needs a certificate");
    server.open("certified", "sslcert={}/root&sslkey={}/client-key").await.expect_err("another's certificate");
}

#[tokio::test]
async fn connects_without_tls_to_a_server_that_has_none() {
    let Some(mut server) = TlsServer::start(true).await else { return };
    server.server.write("pg_hba.conf", "local all all trust\nhost all all all trust\n");
    let listen = format!("listen_addresses={}", server.address);
    restart(&mut server.server, &server.database, &[&listen]).await;
    let pool = server.open("postgres", "").await.unwrap();
    assert!(!is_encrypted(&pool).await);
    let error = server.open("postgres", "sslmode=require").await.unwrap_err();
    assert!(error.contains("TLS"), "{error}");
}
