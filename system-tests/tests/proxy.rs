//! Tests of the fault proxy: tests that use it prove nothing if its faults do not do what they say.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use system_tests::{DEADLINE, Fault, Proxy, eventually, seed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time;

/// Answers `yes` to every question of four bytes, on every connection, and reports each question.
async fn oracle() -> (SocketAddr, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (report, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let report = report.clone();
            tokio::spawn(async move {
                let mut question = [0; 4];
                while client.read_exact(&mut question).await.is_ok() {
                    let _ = report.send(String::from_utf8_lossy(&question).into_owned());
                    let _ = client.write_all(b"yes").await;
                }
                let _ = client.write_all(b"bye").await; // after a half-close
            });
        }
    });
    (address, questions)
}

async fn proxy_to_oracle() -> (Proxy, UnboundedReceiver<String>) {
    let (address, questions) = oracle().await;
    (Proxy::start(address, seed()).await, questions)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("the proxy listens")
}

/// Reads up to `most` bytes within the deadline. Returns the kind of error if the connection breaks.
async fn read(from: &mut TcpStream, most: u64) -> Result<String, ErrorKind> {
    let mut text = String::new();
    let read = time::timeout(DEADLINE, from.take(most).read_to_string(&mut text)).await;
    read.expect("data or the end arrives").map_err(|error| error.kind())?;
    Ok(text)
}

async fn ask(through: &mut TcpStream, question: &str) -> Result<String, ErrorKind> {
    through.write_all(question.as_bytes()).await.map_err(|error| error.kind())?;
    read(through, 3).await
}

#[tokio::test]
async fn passes_everything_without_a_fault_and_ends_each_direction_separately() {
    let (proxy, _questions) = proxy_to_oracle().await;
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
    assert_eq!(ask(&mut client, "two?").await.unwrap(), "yes");
    client.shutdown().await.unwrap();
    assert_eq!(read(&mut client, 100).await.unwrap(), "bye", "the response arrives after the end of the requests");
}

#[tokio::test]
async fn resets_open_and_new_connections() {
    let (proxy, mut questions) = proxy_to_oracle().await;
    let mut open = connect(&proxy).await;
    assert_eq!(ask(&mut open, "one?").await.unwrap(), "yes");
    proxy.set(Fault::Reset);
    assert_eq!(read(&mut open, 1).await.unwrap_err(), ErrorKind::ConnectionReset);
    assert!(ask(&mut connect(&proxy).await, "two?").await.is_err());
    proxy.heal();
    assert_eq!(ask(&mut connect(&proxy).await, "six?").await.unwrap(), "yes");
    assert_eq!([questions.recv().await.unwrap(), questions.recv().await.unwrap()], ["one?", "six?"]);
}

#[tokio::test]
async fn stops_listening_and_comes_back_on_the_same_port() {
    let (proxy, _questions) = proxy_to_oracle().await;
    let mut open = connect(&proxy).await;
    assert_eq!(ask(&mut open, "one?").await.unwrap(), "yes");
    proxy.set(Fault::Refuse);
    assert_eq!(read(&mut open, 1).await.unwrap_err(), ErrorKind::ConnectionReset);
    let refused = async || TcpStream::connect(proxy.address()).await.err().map(|error| error.kind());
    assert_eq!(eventually(Some(ErrorKind::ConnectionRefused), refused).await, Some(ErrorKind::ConnectionRefused));
    proxy.heal();
    assert_eq!(eventually(None, refused).await, None);
    assert_eq!(ask(&mut connect(&proxy).await, "two?").await.unwrap(), "yes");
}

#[tokio::test]
async fn passes_nothing_in_a_black_hole_and_resets_connections_that_lost_data() {
    let (proxy, mut questions) = proxy_to_oracle().await;
    let (mut losing, mut idle) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(ask(&mut idle, "one?").await.unwrap(), "yes");
    proxy.set(Fault::BlackHole);
    losing.write_all(b"two?").await.unwrap();
    assert!(time::timeout(Duration::from_millis(200), losing.readable()).await.is_err(), "nothing arrives");
    proxy.heal();
    assert_eq!(read(&mut losing, 3).await.unwrap_err(), ErrorKind::ConnectionReset);
    assert_eq!(ask(&mut idle, "six?").await.unwrap(), "yes");
    assert_eq!([questions.recv().await.unwrap(), questions.recv().await.unwrap()], ["one?", "six?"]);
}

#[tokio::test]
async fn loses_a_response_only_after_its_request_was_executed() {
    let (proxy, mut questions) = proxy_to_oracle().await;
    proxy.set(Fault::LoseAnswers(1.0));
    assert_eq!(ask(&mut connect(&proxy).await, "one?").await.unwrap_err(), ErrorKind::ConnectionReset);
    assert_eq!(questions.recv().await.unwrap(), "one?");
}

#[tokio::test]
async fn loses_a_share_of_the_responses_chosen_by_the_seed() {
    let lost = async || {
        let (proxy, _questions) = proxy_to_oracle().await;
        proxy.set(Fault::LoseAnswers(0.5));
        let mut lost = Vec::new();
        for _ in 0..100 {
            lost.push(ask(&mut connect(&proxy).await, "one?").await.is_err());
        }
        lost
    };
    let first = lost().await;
    let many = first.iter().filter(|lost| **lost).count();
    assert!((25..=75).contains(&many), "{many} of 100 with seed {}", seed());
    assert_eq!(first, lost().await);
}

#[tokio::test]
async fn closes_a_connection_after_n_bytes_of_a_response() {
    let (proxy, _questions) = proxy_to_oracle().await;
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
    proxy.set(Fault::CloseAfter(2));
    assert_eq!(ask(&mut client, "two?").await.unwrap(), "ye", "earlier responses do not count");
    assert_eq!(read(&mut client, 1).await.unwrap(), "", "it is closed");
}

#[tokio::test]
async fn delays_and_throttles_until_the_fault_ends() {
    let (proxy, _questions) = proxy_to_oracle().await;
    let mut client = connect(&proxy).await;
    for (fault, at_least) in [
        (Fault::Delay { base: Duration::from_millis(200), jitter: Duration::from_millis(50) }, 400),
        (Fault::Throttle(10), 500), // four bytes there and three back: in each direction, every byte except the first comes 100 ms after the last
    ] {
        proxy.set(fault);
        let asked = Instant::now();
        assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
        assert!(asked.elapsed().as_millis() >= at_least, "{fault:?}: {:?}", asked.elapsed());
    }
    proxy.set(Fault::Delay { base: DEADLINE, jitter: DEADLINE });
    client.write_all(b"two?").await.unwrap();
    proxy.heal();
    assert_eq!(read(&mut client, 3).await.unwrap(), "yes", "delayed data arrives immediately");
}

#[tokio::test]
async fn redirects_to_another_target_and_closes_connections_when_dropped() {
    let ((proxy, mut questions), (address, mut questions_elsewhere)) = (proxy_to_oracle().await, oracle().await);
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
    proxy.redirect(address);
    assert!(read(&mut client, 1).await.is_err(), "its connection to the first target is reset");
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "two?").await.unwrap(), "yes");
    assert_eq!([questions.recv().await.unwrap(), questions_elsewhere.recv().await.unwrap()], ["one?", "two?"]);

    let address = proxy.address();
    drop(proxy);
    assert_eq!(read(&mut client, 1).await.unwrap(), "", "it is closed");
    assert!(eventually(true, async || TcpStream::connect(address).await.is_err()).await);
}
