//! A TCP proxy in front of a service that simulates a faulty network. Its fault can be changed at any time, also for open
//! connections.

use std::future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;

/// The most bytes that are forwarded in one write.
const CHUNK_BYTES: usize = 16 << 10;
/// The writes per second of a throttled link.
const THROTTLED_CHUNKS: u32 = 20;
/// Connections that may wait to be accepted: more than any test opens at the same time.
const BACKLOG: u32 = 1024;

/// The fault of a link, in both directions unless stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// No fault.
    None,
    /// Delays each chunk by `base` plus up to `jitter`.
    Delay {
        /// The least delay.
        base: Duration,
        /// The most that is added to it, at random.
        jitter: Duration,
    },
    /// Passes at most this many bytes per second, at least one.
    Throttle(u32),
    /// Accepts connections and passes nothing, not even their end. A connection that lost data is reset after the fault.
    BlackHole,
    /// Resets every connection.
    Reset,
    /// Stops listening and resets open connections, as if the process were killed.
    Refuse,
    /// Closes a connection after this many bytes of a response.
    CloseAfter(usize),
    /// Passes every request, but loses this share of the responses, 0 to 1: their connection is reset at the first byte.
    LoseAnswers(f64),
}

/// A proxy in front of one address. Dropping it ends it and all its connections.
pub struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    link: watch::Sender<Link>,
    _tasks: JoinSet<()>,
}

/// The current target and fault of a proxy.
#[derive(Clone, Copy)]
struct Link {
    target: SocketAddr,
    fault: Fault,
}

impl Proxy {
    /// Listens on a free local port and forwards to `target`. Random faults come from `seed`.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start(target: SocketAddr, seed: u64) -> Self {
        let reservation = bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = reservation.local_addr().expect("it is bound");
        let listener = bind(address).and_then(|socket| socket.listen(BACKLOG)).expect("the port is reserved");
        let (link, links) = watch::channel(Link { target, fault: Fault::None });
        let mut tasks = JoinSet::new();
        tasks.spawn(run(reservation, listener, links, StdRng::seed_from_u64(seed)));
        Self { address, target, link, _tasks: tasks }
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the fault, for open connections too.
    pub fn set(&self, fault: Fault) {
        self.link.send_modify(|link| link.fault = fault);
    }

    /// Forwards to another target, and resets open connections.
    pub fn redirect(&self, target: SocketAddr) {
        self.link.send_modify(|link| link.target = target);
    }

    /// Ends the fault and forwards to the first target again.
    pub fn heal(&self) {
        self.link.send_replace(Link { target: self.target, fault: Fault::None });
    }
}

/// Binds a socket that shares its address with other sockets of this process. One of them stays bound, to reserve the port
/// while the proxy does not listen.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn run(reservation: TcpSocket, mut listener: TcpListener, mut links: watch::Receiver<Link>, mut random: StdRng) {
    let mut connections = JoinSet::new(); // aborts them when it is dropped
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let links = links.clone();
                connections.spawn(serve(client, links, [random.fork(), random.fork()]));
            }
            Some(_) = connections.join_next() => {}
            () = wait_for(&mut links, |link| link.fault == Fault::Refuse) => {
                drop(listener);
                wait_for(&mut links, |link| link.fault != Fault::Refuse).await;
                let address = reservation.local_addr().expect("it is bound");
                listener = bind(address).and_then(|socket| socket.listen(BACKLOG)).expect("the port is reserved");
            }
        }
    }
}

async fn wait_for(links: &mut watch::Receiver<Link>, condition: impl FnMut(&Link) -> bool) {
    if links.wait_for(condition).await.is_err() {
        future::pending::<()>().await; // the proxy was dropped, which is about to abort this task
    }
}

/// How a connection ends early.
enum Abort {
    Close,
    Reset,
}

/// Forwards one connection to its end.
async fn serve(mut client: TcpStream, mut links: watch::Receiver<Link>, [request, response]: [StdRng; 2]) {
    let target = links.borrow().target;
    let waiting = Arc::new(AtomicBool::new(false));
    let to_server =
        Relay { links: links.clone(), random: request, waiting: Arc::clone(&waiting), direction: Direction::ToServer };
    let to_client = Direction::ToClient { sent: 0 };
    let to_client = Relay { links: links.clone(), random: response, waiting, direction: to_client };
    let resets = |link: &Link| link.target != target || matches!(link.fault, Fault::Reset | Fault::Refuse);
    let outcome = tokio::select! {
        () = wait_for(&mut links, resets) => Err(Abort::Reset),
        outcome = forward(&mut client, target, to_server, to_client) => outcome,
    };
    if let Err(Abort::Reset) = outcome {
        let _ = client.set_zero_linger(); // closing it then sends a reset
    }
}

async fn forward(client: &mut TcpStream, target: SocketAddr, there: Relay, back: Relay) -> Result<(), Abort> {
    let mut server = TcpStream::connect(target).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(there.forward_all(from_client, to_server), back.forward_all(from_server, to_client))?;
    Ok(())
}

/// One direction of a connection.
struct Relay {
    links: watch::Receiver<Link>,
    random: StdRng,
    /// Whether a request was forwarded whose response has not begun.
    waiting: Arc<AtomicBool>,
    direction: Direction,
}

enum Direction {
    ToServer,
    ToClient {
        /// Bytes of the current response so far.
        sent: usize,
    },
}

impl Relay {
    /// Forwards to the end of the data. The other direction stays open.
    async fn forward_all(
        mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<(), Abort> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut buffer).await?;
            let begins_response = self.begins_response(read);
            self.forward(&buffer[..read], begins_response, &mut to).await?;
            if read == 0 {
                return Ok(to.shutdown().await?);
            }
        }
    }

    /// Returns whether the bytes that were just read begin a response.
    fn begins_response(&mut self, read: usize) -> bool {
        match &mut self.direction {
            Direction::ToServer => {
                self.waiting.fetch_or(read > 0, Ordering::Relaxed);
                false
            }
            Direction::ToClient { sent } => {
                let begins = self.waiting.swap(false, Ordering::Relaxed);
                if begins {
                    *sent = 0;
                }
                begins
            }
        }
    }

    /// Forwards one chunk with the current fault. An empty chunk is the end of the data.
    async fn forward(
        &mut self,
        mut chunk: &[u8],
        begins_response: bool,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Abort> {
        loop {
            let fault = self.links.borrow_and_update().fault;
            match (fault, &self.direction) {
                (Fault::Delay { base, jitter }, _) => {
                    let delay = base + jitter.mul_f64(self.random.random());
                    if self.changes_within(delay).await {
                        continue;
                    }
                }
                (Fault::Throttle(rate), _) if !chunk.is_empty() => {
                    let (now, later) = chunk.split_at(chunk.len().min((rate / THROTTLED_CHUNKS).max(1) as usize));
                    self.write(now, to).await?;
                    self.changes_within(Duration::from_secs(now.len() as u64) / rate.max(1)).await;
                    chunk = later;
                    continue;
                }
                (Fault::BlackHole, _) => {
                    wait_for(&mut self.links, |link| link.fault != Fault::BlackHole).await;
                    return Err(Abort::Reset);
                }
                (Fault::CloseAfter(limit), Direction::ToClient { sent }) if sent + chunk.len() >= limit => {
                    let last = limit.saturating_sub(*sent);
                    self.write(&chunk[..last], to).await?;
                    return Err(Abort::Close);
                }
                (Fault::LoseAnswers(share), _) if begins_response && self.random.random::<f64>() < share => {
                    return Err(Abort::Reset);
                }
                _ => {}
            }
            return self.write(chunk, to).await;
        }
    }

    async fn write(&mut self, bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Abort> {
        if let Direction::ToClient { sent } = &mut self.direction {
            *sent += bytes.len();
        }
        Ok(to.write_all(bytes).await?)
    }

    /// Waits for this time, or until the link changes. Returns whether it changed.
    async fn changes_within(&mut self, time: Duration) -> bool {
        time::timeout(time, self.links.changed()).await.is_ok_and(|changed| changed.is_ok())
    }
}

/// An error on one side resets the other.
impl From<io::Error> for Abort {
    fn from(_: io::Error) -> Self {
        Self::Reset
    }
}
