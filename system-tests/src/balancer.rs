//! HAProxy with the configuration of `deploy/haproxy.cfg` and `deploy/gateway.cfg`, in front of two replicas of each service.

use std::env;
use std::fs;
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
    gateway: Port,
    requests_per_client: u32,
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
        let (users, products, orders, metrics, gateway) = (port(), port(), port(), port(), port());
        let http = http::client().expect("a client without TLS can be built");
        let log = Log::Kept(Arc::default());
        let requests_per_client = 1_000_000;
        Some(Self { program, users, products, orders, metrics, gateway, requests_per_client, log, http, process: None })
    }

    /// Sets the limit of the gateway, requests of one client within 10 s. By default tests do not reach it.
    #[must_use]
    pub fn requests_per_client(mut self, limit: u32) -> Self {
        self.requests_per_client = limit;
        self
    }

    /// Returns the URL of the gateway, which leads clients to all services. Here it has no TLS, unlike in `deploy/`.
    pub fn gateway(&self) -> String {
        format!("http://{}", self.gateway.address())
    }

    /// Returns the lines that it has logged.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let gateway = fs::read_to_string(folder.join("gateway.cfg")).expect("a file");
        let tls = r#" ssl crt "${GATEWAY_CERTIFICATE}" alpn h2,http/1.1"#;
        assert!(gateway.contains(tls), "the gateway has TLS");
        // The client of these tests has no TLS; `.ci/deploy` tests that of the gateway.
        let plain = env::temp_dir().join(format!("gateway-{}.cfg", self.gateway.address().port()));
        fs::write(&plain, gateway.replace(tls, "")).expect("a writable folder");
        let mut command = Command::new("sh");
        // The shell kills HAProxy when its stdin closes, which also happens if this process is killed.
        command.args(["-c", r#""$0" -db -f "$1" -f "$2" & read -r line; kill -s KILL $!"#]).arg(&self.program);
        command.arg(folder.join("haproxy.cfg")).arg(&plain);
        command.env_clear().env("GATEWAY", self.gateway.address().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        command.env("GATEWAY_REQUESTS_PER_CLIENT", self.requests_per_client.to_string());
        command.env("METRICS", self.metrics.address().to_string());
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
        let _ = fs::remove_file(plain);
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
