//! A network that misbehaves on command: a TCP proxy before a service, whose fault can be changed at any time, also for
//! what is open already.

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

/// How much is carried at a time.
const PIECE_BYTES: usize = 16 << 10;
/// A throttled link carries so many pieces a second.
const THROTTLED_PIECES: u32 = 20;
/// Connections that may wait to be accepted: more than any test opens at once.
const BACKLOG: u32 = 1024;

/// What is wrong with a link, in both directions unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Each piece of data comes late: by `base`, and up to `jitter` more.
    Delay {
        /// At least this late.
        base: Duration,
        /// Up to this much later, at random.
        jitter: Duration,
    },
    /// No more than this many bytes a second pass, at least one.
    Throttle(u32),
    /// Connections are accepted and nothing passes, not even that one is closed. One that has lost something so is reset
    /// when the fault is over.
    BlackHole,
    /// Every connection is reset, at once.
    Reset,
    /// Nobody listens, and what was connected is reset: so looks a process that was killed.
    Refuse,
    /// A connection is closed after this many bytes of an answer.
    CloseAfter(usize),
    /// Requests arrive and are carried out, but this share of their answers, 0 to 1, is lost: when the first byte of such
    /// an answer comes, its connection is reset instead.
    LoseAnswers(f64),
}

/// A proxy before one address. It ends, with all its connections, when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    link: watch::Sender<Link>,
    _tasks: JoinSet<()>,
}

/// How things stand with a proxy.
#[derive(Clone, Copy)]
struct Link {
    target: SocketAddr,
    fault: Fault,
}

impl Proxy {
    /// Listens at a free port of this host and forwards to `target`. What a fault leaves to chance comes from `seed`.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn before(target: SocketAddr, seed: u64) -> Self {
        let place = bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = place.local_addr().expect("it is bound");
        let listener = bind(address).and_then(|socket| socket.listen(BACKLOG)).expect("the port is ours");
        let (link, links) = watch::channel(Link { target, fault: Fault::None });
        let mut tasks = JoinSet::new();
        tasks.spawn(run(place, listener, links, StdRng::seed_from_u64(seed)));
        Self { address, target, link, _tasks: tasks }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this is wrong, with open connections too.
    pub fn set(&self, fault: Fault) {
        self.link.send_modify(|link| link.fault = fault);
    }

    /// From now on it forwards to somebody else; what is open is reset.
    pub fn redirect(&self, target: SocketAddr) {
        self.link.send_modify(|link| link.target = target);
    }

    /// All is well again, and it forwards to the target of the beginning.
    pub fn heal(&self) {
        self.link.send_replace(Link { target: self.target, fault: Fault::None });
    }
}

/// A socket at this address, beside others of ours: `place` keeps the port for us while nobody listens.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn run(place: TcpSocket, mut listener: TcpListener, mut links: watch::Receiver<Link>, mut dice: StdRng) {
    let mut connections = JoinSet::new(); // which end when this does
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let links = links.clone();
                connections.spawn(serve(client, links, [dice.fork(), dice.fork()]));
            }
            Some(_) = connections.join_next() => {}
            () = becomes(&mut links, |link| link.fault == Fault::Refuse) => {
                drop(listener);
                becomes(&mut links, |link| link.fault != Fault::Refuse).await;
                let address = place.local_addr().expect("it is bound");
                listener = bind(address).and_then(|socket| socket.listen(BACKLOG)).expect("the port is ours");
            }
        }
    }
}

async fn becomes(links: &mut watch::Receiver<Link>, wanted: impl FnMut(&Link) -> bool) {
    if links.wait_for(wanted).await.is_err() {
        future::pending::<()>().await; // the proxy is dropped, and so is this in a moment
    }
}

/// Why a connection ends before its time.
enum Cut {
    Close,
    Reset,
}

/// One connection, to its end.
async fn serve(mut client: TcpStream, mut links: watch::Receiver<Link>, [there, back]: [StdRng; 2]) {
    let target = links.borrow().target;
    let asked = Arc::new(AtomicBool::new(false));
    let there = Way { links: links.clone(), dice: there, asked: Arc::clone(&asked), direction: Direction::There };
    let back = Way { links: links.clone(), dice: back, asked, direction: Direction::Back { answered: 0 } };
    let struck = |link: &Link| link.target != target || matches!(link.fault, Fault::Reset | Fault::Refuse);
    let outcome = tokio::select! {
        () = becomes(&mut links, struck) => Err(Cut::Reset),
        outcome = forward(&mut client, target, there, back) => outcome,
    };
    if let Err(Cut::Reset) = outcome {
        let _ = client.set_zero_linger(); // so to close it is to reset it
    }
}

async fn forward(client: &mut TcpStream, target: SocketAddr, there: Way, back: Way) -> Result<(), Cut> {
    let mut server = TcpStream::connect(target).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(there.carry_all(from_client, to_server), back.carry_all(from_server, to_client))?;
    Ok(())
}

/// One of the two ways of a connection.
struct Way {
    links: watch::Receiver<Link>,
    dice: StdRng,
    /// Whether something was asked to which no answer has begun.
    asked: Arc<AtomicBool>,
    direction: Direction,
}

enum Direction {
    There,
    Back {
        /// Bytes of the current answer so far.
        answered: usize,
    },
}

impl Way {
    /// To the end of what comes; the other way stays open.
    async fn carry_all(mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Result<(), Cut> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = from.read(&mut piece).await?;
            let begins = self.begins(read);
            self.carry(&piece[..read], begins, &mut to).await?;
            if read == 0 {
                return Ok(to.shutdown().await?);
            }
        }
    }

    /// Whether so many bytes are the first of an answer.
    fn begins(&mut self, read: usize) -> bool {
        match &mut self.direction {
            Direction::There => {
                self.asked.fetch_or(read > 0, Ordering::Relaxed);
                false
            }
            Direction::Back { answered } => {
                let begins = self.asked.swap(false, Ordering::Relaxed);
                if begins {
                    *answered = 0;
                }
                begins
            }
        }
    }

    /// One piece, as the link is now; the end of the data is an empty one.
    async fn carry(&mut self, mut piece: &[u8], begins: bool, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Cut> {
        loop {
            let fault = self.links.borrow_and_update().fault;
            match (fault, &self.direction) {
                (Fault::Delay { base, jitter }, _) => {
                    let late = base + jitter.mul_f64(self.dice.random());
                    if self.changes_within(late).await {
                        continue;
                    }
                }
                (Fault::Throttle(rate), _) if !piece.is_empty() => {
                    let (now, later) = piece.split_at(piece.len().min((rate / THROTTLED_PIECES).max(1) as usize));
                    self.write(now, to).await?;
                    self.changes_within(Duration::from_secs(now.len() as u64) / rate.max(1)).await;
                    piece = later;
                    continue;
                }
                (Fault::BlackHole, _) => {
                    becomes(&mut self.links, |link| link.fault != Fault::BlackHole).await;
                    return Err(Cut::Reset);
                }
                (Fault::CloseAfter(most), Direction::Back { answered }) if answered + piece.len() >= most => {
                    let last = most.saturating_sub(*answered);
                    self.write(&piece[..last], to).await?;
                    return Err(Cut::Close);
                }
                (Fault::LoseAnswers(share), _) if begins && self.dice.random::<f64>() < share => {
                    return Err(Cut::Reset);
                }
                _ => {}
            }
            return self.write(piece, to).await;
        }
    }

    async fn write(&mut self, bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Cut> {
        if let Direction::Back { answered } = &mut self.direction {
            *answered += bytes.len();
        }
        Ok(to.write_all(bytes).await?)
    }

    /// Waits so long, or until something else is wrong; whether that is so.
    async fn changes_within(&mut self, time: Duration) -> bool {
        time::timeout(time, self.links.changed()).await.is_ok_and(|changed| changed.is_ok())
    }
}

/// A side that breaks off breaks the other.
impl From<io::Error> for Cut {
    fn from(_: io::Error) -> Self {
        Self::Reset
    }
}
