//! HAProxy, as `deploy/haproxy.cfg` has it, before two replicas of each service.

use std::env;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

use crate::http::{self, Sending};
use crate::launch::Log;
use crate::system::{ORDERS, PRODUCTS, USERS};
use crate::{Service, eventually};

/// A load balancer, whose addresses are known before those behind it are there. It ends with this value, or with this
/// process, however that ends.
pub struct Balancer {
    program: PathBuf,
    users: Port,
    products: Port,
    orders: Port,
    metrics: Port,
    log: Log,
    http: reqwest::Client,
    process: Option<Child>,
}

/// A port that nobody else can have meanwhile: a socket that is bound to it and does not listen. HAProxy, which sets
/// `SO_REUSEPORT` as this does, can be bound to it as well.
struct Port(TcpSocket);

impl Port {
    fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self(socket))
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }
}

impl Balancer {
    /// One that does not run yet. `None` where no HAProxy is installed, which is said on stderr; with
    /// `REQUIRE_HAPROXY=1` in the environment that is a failure, not a skip.
    ///
    /// # Panics
    /// If it is required and not there.
    pub fn prepare() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders = env::split_paths(&path).chain(["/usr/sbin".into()]); // which is in the PATH of root alone
        let Some(program) = folders.find_map(|folder| Some(folder.join("haproxy")).filter(|program| program.exists()))
        else {
            assert!(env::var_os("REQUIRE_HAPROXY").is_none_or(|value| value != "1"), "there is no HAProxy here");
            // Not by a macro, whose words are kept from whoever runs the tests.
            let _ = writeln!(io::stderr(), "SKIPPED: the tests behind a load balancer, for there is no haproxy here");
            return None;
        };
        let port = || Port::reserve().expect("a free port");
        let (users, products, orders, metrics) = (port(), port(), port(), port());
        let http = http::client().expect("a client without TLS needs nothing");
        Some(Self { program, users, products, orders, metrics, log: Log::Kept(Arc::default()), http, process: None })
    }

    /// The address at which one of the services is reached through it, as a URL.
    pub fn url(&self, service: &str) -> String {
        let port = match service {
            USERS => &self.users,
            PRODUCTS => &self.products,
            _ => &self.orders,
        };
        format!("http://{}", port.address())
    }

    /// A request to one of the services through it.
    pub fn request(&self, service: &str, method: &str, path: &str) -> Sending {
        Sending::new(&self.http, method, format!("{}{path}", self.url(service)))
    }

    /// Starts it, and waits until it sees these replicas: of each service the first two.
    ///
    /// # Panics
    /// If it does not come so far.
    pub async fn start(&mut self, replicas: &[Service]) {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/haproxy.cfg");
        let mut command = Command::new("sh");
        // The shell reads from us until our end of the pipe closes, in whatever way this process ends.
        command.args(["-c", r#""$0" -db -f "$1" & read -r line; kill -s KILL $!"#]).arg(&self.program).arg(config);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        command.env_clear().env("METRICS", self.metrics.address().to_string());
        for (name, service, port) in
            [("USERS", USERS, &self.users), ("PRODUCTS", PRODUCTS, &self.products), ("ORDERS", ORDERS, &self.orders)]
        {
            command.env(name, port.address().to_string());
            let replicas = replicas.iter().filter(|replica| replica.name() == service);
            for (number, replica) in ["ONE", "TWO"].iter().zip(replicas) {
                command.env(format!("{name}_{number}"), replica.address().to_string());
            }
        }
        let mut process = command.spawn().expect("there is a sh");
        let lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        tokio::spawn(self.log.clone().follow(lines));
        self.process = Some(process);
        for service in [USERS, PRODUCTS, ORDERS] {
            self.sees(service, [true, true]).await;
        }
    }

    /// Waits until it sees that of the two replicas of a service those are up, and the others down.
    ///
    /// # Panics
    /// If it does not.
    pub async fn sees(&self, service: &str, up: [bool; 2]) {
        let proxy = service.replace("-service", "s");
        let line = |server: &str| format!(r#"haproxy_server_status{{proxy="{proxy}",server="{server}",state="UP"}} 1"#);
        let look = async || {
            let metrics = Sending::new(&self.http, "GET", format!("http://{}/metrics", self.metrics.address()));
            let text = metrics.try_send().await.map(|received| received.text).unwrap_or_default();
            ["one", "two"].map(|server| text.contains(&line(server)))
        };
        assert_eq!(eventually(up, look).await, up, "the replicas of {service} that are up{}", self.log);
    }
}
