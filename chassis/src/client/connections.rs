//! The connections to one peer, each used for a limited time.
//!
//! A balancer chooses a replica when a connection is opened. If connections were kept without a limit, a replica that is added
//! later would get no calls. reqwest limits only the idle time of a connection, so the whole client is replaced. New calls then
//! open connections to the addresses that DNS returns. The old connections close when their last call ends.

use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::task;
use url::Url;

use crate::config::PeerSettings;

/// Idle connections are closed after this time. By default the peer closes them after 15 s. Closing earlier on this side avoids
/// sending a request on a connection that the peer is closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum age is shortened at random, by up to this share. Callers that started together must not reconnect together.
const JITTER: f64 = 0.25;
/// The URL of the peer for reqwest; [`PeerAddresses`] resolves its host. For each call, reqwest parses the URL twice and hashes
/// the host three times. With the real host, that took 11 % of the instructions of an order.
pub(super) const SHORT_URL: &str = "http://p";

pub(super) struct Connections {
    base: Url,
    connect_timeout: Duration,
    max_age: Duration,
    current: Mutex<Current>,
}

struct Current {
    http: reqwest::Client,
    replace_at: Instant,
}

impl Connections {
    /// Creates the client of the peer at `base`.
    pub(super) fn new(base: Url, settings: &PeerSettings) -> reqwest::Result<Self> {
        let (connect_timeout, max_age) = (settings.connect_timeout, settings.connection_max_age);
        let current = Current { http: build(&base, connect_timeout)?, replace_at: replace_at(max_age) };
        Ok(Self { base, connect_timeout, max_age, current: Mutex::new(current) })
    }

    /// Returns the client for one call.
    pub(super) fn client(&self) -> reqwest::Client {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < current.replace_at {
            return current.http.clone();
        }
        current.replace_at = replace_at(self.max_age);
        let old = match build(&self.base, self.connect_timeout) {
            Ok(new) => mem::replace(&mut current.http, new),
            Err(error) => {
                tracing::warn!(%error, "cannot replace the connections to a peer");
                return current.http.clone();
            }
        };
        let http = current.http.clone();
        drop(current);
        drop(old); // closes its idle connections, outside the lock
        http
    }
}

fn replace_at(max_age: Duration) -> Instant {
    Instant::now() + max_age.mul_f64(1.0 - JITTER * rand::random::<f64>())
}

fn build(base: &Url, connect_timeout: Duration) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .dns_resolver(PeerAddresses(base.clone()))
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .no_proxy() // HTTP_PROXY is for calls to the outside
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never()) // reqwest's own retries know no deadline and no budget
        .referer(false)
        .build()
}

/// Resolves every name to the addresses of the peer with this URL.
struct PeerAddresses(Url);

impl Resolve for PeerAddresses {
    fn resolve(&self, _: Name) -> Resolving {
        let peer = self.0.clone();
        Box::pin(async move {
            let addresses = task::spawn_blocking(move || peer.socket_addrs(|| None)).await??;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
