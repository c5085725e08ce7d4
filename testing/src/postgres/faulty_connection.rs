//! A connection to PostgreSQL that fails on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// A proxy between a store and its database that can lose data.
#[derive(Debug, Default)]
pub struct FaultyConnection {
    breaks: AtomicBool,
    silent: AtomicBool,
    ignores_new: AtomicBool,
}

impl FaultyConnection {
    /// Breaks the connection at the next response that reports a written row: the row is written, but the client does not learn
    /// it.
    pub fn lose_an_answer(&self) {
        self.breaks.store(true, Ordering::SeqCst);
    }

    /// Returns whether that response was lost.
    pub fn has_lost_it(&self) -> bool {
        !self.breaks.load(Ordering::SeqCst)
    }

    /// Drops everything that either side sends, without closing the connection; `false` ends this.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// Lets further connections open and gives them no answer. Those that are open work on.
    pub fn ignore_new(&self) {
        self.ignores_new.store(true, Ordering::SeqCst);
    }

    async fn carry(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        const WRITTEN: [&[u8]; 3] = [b"INSERT 0 ", b"UPDATE ", b"DELETE "]; // followed by the number of rows
        let mut bytes = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut bytes).await {
            if self.silent.load(Ordering::SeqCst) {
                continue;
            }
            let reports_rows = |words: &&[u8]| {
                let mut windows = bytes[..length].windows(words.len() + 1).map(|window| window.split_at(words.len()));
                windows.any(|(text, rows)| text == *words && matches!(rows, [b'1'..=b'9']))
            };
            let is_lost = WRITTEN.iter().any(reports_rows) && self.breaks.swap(false, Ordering::SeqCst);
            if is_lost || to.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    }
}

/// Starts a proxy in front of the database, and returns the address of the proxy.
///
/// # Panics
/// If the database is not one of this module.
pub async fn behind_a_faulty_connection(database: &PgConnectOptions) -> (PgConnectOptions, Arc<FaultyConnection>) {
    let server = database.get_socket().expect("a server of this module").join(".s.PGSQL.5432");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let connection = Arc::new(FaultyConnection::default());
    let proxy = Arc::clone(&connection);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::UnixStream::connect(&server).await.expect("a server that is there");
            let proxy = Arc::clone(&proxy);
            tokio::spawn(async move {
                if proxy.ignores_new.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::select! {
                    () = proxy.carry(from_client, to_server) => {}
                    () = proxy.carry(from_server, to_client) => {}
                }
            });
        }
    });
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username(database.get_username());
    (options.database(database.get_database().expect("a database")), connection)
}
