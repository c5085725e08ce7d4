//! HAProxy with the configuration of `deploy/haproxy.cfg`, in front of two replicas of each service.

use std::env;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

use crate::http::{self, Request};
use crate::launch::Log;
use crate::system::{ORDERS, PRODUCTS, USERS};
use crate::{Service, eventually};

/// A load balancer whose addresses are known before the replicas start. It ends with this value, or with this process,
/// however that ends.
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

/// A reserved port: a socket that is bound and does not listen. HAProxy can bind the same port, because both set
/// `SO_REUSEPORT`.
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
    /// Reserves the ports. Prints SKIPPED and returns `None` where HAProxy is not installed, except with
    /// `REQUIRE_HAPROXY=1` in the environment.
    ///
    /// # Panics
    /// If HAProxy is required and not installed.
    pub fn prepare() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders = env::split_paths(&path).chain(["/usr/sbin".into()]); // only root has it in its PATH
        let Some(program) = folders.find_map(|folder| Some(folder.join("haproxy")).filter(|program| program.exists()))
        else {
            assert!(env::var_os("REQUIRE_HAPROXY").is_none_or(|value| value != "1"), "haproxy is not installed");
            // Not `eprintln!`: the test runner would hide it.
            let _ = writeln!(io::stderr(), "SKIPPED: the tests behind a load balancer: haproxy is not installed");
            return None;
        };
        let port = || Port::reserve().expect("a free port");
        let (users, products, orders, metrics) = (port(), port(), port(), port());
        let http = http::client().expect("a client without TLS can be built");
        Some(Self { program, users, products, orders, metrics, log: Log::Kept(Arc::default()), http, process: None })
    }

    /// Returns the URL of a service behind it.
    pub fn url(&self, service: &str) -> String {
        let port = match service {
            USERS => &self.users,
            PRODUCTS => &self.products,
            _ => &self.orders,
        };
        format!("http://{}", port.address())
    }

    /// Returns a request to a service behind it.
    pub fn request(&self, service: &str, method: &str, path: &str) -> Request {
        Request::new(&self.http, method, format!("{}{path}", self.url(service)))
    }

    /// Starts it in front of the first two replicas of each service, and waits until it sees them up.
    ///
    /// # Panics
    /// If it does not see them.
    pub async fn start(&mut self, replicas: &[Service]) {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/haproxy.cfg");
        let mut command = Command::new("sh");
        // The shell kills HAProxy when its stdin closes, which also happens if this process is killed.
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
        let mut process = command.spawn().expect("sh is installed");
        let lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        tokio::spawn(self.log.clone().follow(lines));
        self.process = Some(process);
        for service in [USERS, PRODUCTS, ORDERS] {
            self.wait_for_replicas(service, [true, true]).await;
        }
    }

    /// Waits until it sees each of the two replicas of a service up or down, as given.
    ///
    /// # Panics
    /// If it does not within the deadline.
    pub async fn wait_for_replicas(&self, service: &str, up: [bool; 2]) {
        let proxy = service.replace("-service", "s");
        let line = |server: &str| format!(r#"haproxy_server_status{{proxy="{proxy}",server="{server}",state="UP"}} 1"#);
        let look = async || {
            let metrics = Request::new(&self.http, "GET", format!("http://{}/metrics", self.metrics.address()));
            let text = metrics.try_send().await.map(|response| response.text).unwrap_or_default();
            ["one", "two"].map(|server| text.contains(&line(server)))
        };
        assert_eq!(eventually(up, look).await, up, "the replicas of {service} that are up{}", self.log);
    }
}
