//! The proxy that tests break the network with does what its faults say: or what they prove would be worth nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use system_tests::{DEADLINE, Fault, Proxy, eventually, seed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time;

/// Says `yes` to every question of four bytes, on every connection, and tells us each.
async fn oracle() -> (SocketAddr, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut question = [0; 4];
                while client.read_exact(&mut question).await.is_ok() {
                    let _ = tell.send(String::from_utf8_lossy(&question).into_owned());
                    let _ = client.write_all(b"yes").await;
                }
                let _ = client.write_all(b"bye").await; // after a half-close
            });
        }
    });
    (address, told)
}

async fn before_an_oracle() -> (Proxy, UnboundedReceiver<String>) {
    let (address, told) = oracle().await;
    (Proxy::before(address, seed()).await, told)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("somebody listens")
}

/// What comes within the deadline, up to so many bytes; or how the connection broke.
async fn read(from: &mut TcpStream, most: u64) -> Result<String, ErrorKind> {
    let mut text = String::new();
    let read = time::timeout(DEADLINE, from.take(most).read_to_string(&mut text)).await;
    read.expect("something comes, if only the end").map_err(|error| error.kind())?;
    Ok(text)
}

async fn ask(through: &mut TcpStream, question: &str) -> Result<String, ErrorKind> {
    through.write_all(question.as_bytes()).await.map_err(|error| error.kind())?;
    read(through, 3).await
}

#[tokio::test]
async fn without_a_fault_all_passes_and_each_way_ends_by_itself() {
    let (proxy, _told) = before_an_oracle().await;
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
    assert_eq!(ask(&mut client, "two?").await.unwrap(), "yes");
    client.shutdown().await.unwrap();
    assert_eq!(read(&mut client, 100).await.unwrap(), "bye", "the answer comes though nothing more is asked");
}

#[tokio::test]
async fn a_reset_is_one_for_what_is_open_and_for_what_comes() {
    let (proxy, mut told) = before_an_oracle().await;
    let mut open = connect(&proxy).await;
    assert_eq!(ask(&mut open, "one?").await.unwrap(), "yes");
    proxy.set(Fault::Reset);
    assert_eq!(read(&mut open, 1).await.unwrap_err(), ErrorKind::ConnectionReset);
    assert!(ask(&mut connect(&proxy).await, "two?").await.is_err());
    proxy.heal();
    assert_eq!(ask(&mut connect(&proxy).await, "six?").await.unwrap(), "yes");
    assert_eq!([told.recv().await.unwrap(), told.recv().await.unwrap()], ["one?", "six?"]);
}

#[tokio::test]
async fn nobody_listens_where_a_service_is_dead_and_it_comes_back_at_the_same_port() {
    let (proxy, _told) = before_an_oracle().await;
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
async fn a_black_hole_swallows_and_what_lost_something_does_not_go_on() {
    let (proxy, mut told) = before_an_oracle().await;
    let (mut asking, mut idle) = (connect(&proxy).await, connect(&proxy).await);
    assert_eq!(ask(&mut idle, "one?").await.unwrap(), "yes");
    proxy.set(Fault::BlackHole);
    asking.write_all(b"two?").await.unwrap();
    assert!(time::timeout(Duration::from_millis(200), asking.readable()).await.is_err(), "nothing comes");
    proxy.heal();
    assert_eq!(read(&mut asking, 3).await.unwrap_err(), ErrorKind::ConnectionReset);
    assert_eq!(ask(&mut idle, "six?").await.unwrap(), "yes");
    assert_eq!([told.recv().await.unwrap(), told.recv().await.unwrap()], ["one?", "six?"]);
}

#[tokio::test]
async fn an_answer_is_lost_only_after_its_request_was_carried_out() {
    let (proxy, mut told) = before_an_oracle().await;
    proxy.set(Fault::LoseAnswers(1.0));
    assert_eq!(ask(&mut connect(&proxy).await, "one?").await.unwrap_err(), ErrorKind::ConnectionReset);
    assert_eq!(told.recv().await.unwrap(), "one?");
}

#[tokio::test]
async fn a_share_of_the_answers_is_lost_and_the_seed_says_which() {
    let lost = async || {
        let (proxy, _told) = before_an_oracle().await;
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
async fn a_connection_closes_after_so_many_bytes_of_each_answer() {
    let (proxy, _told) = before_an_oracle().await;
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
    proxy.set(Fault::CloseAfter(2));
    assert_eq!(ask(&mut client, "two?").await.unwrap(), "ye", "what was answered before does not count");
    assert_eq!(read(&mut client, 1).await.unwrap(), "", "it is closed");
}

#[tokio::test]
async fn a_delay_and_a_throttle_take_their_time_and_end_with_it() {
    let (proxy, _told) = before_an_oracle().await;
    let mut client = connect(&proxy).await;
    for (fault, at_least) in [
        (Fault::Delay { base: Duration::from_millis(200), jitter: Duration::from_millis(50) }, 400),
        (Fault::Throttle(10), 500), // four bytes there and three back, each but the first of a way 100 ms after the last
    ] {
        proxy.set(fault);
        let asked = Instant::now();
        assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
        assert!(asked.elapsed().as_millis() >= at_least, "{fault:?}: {:?}", asked.elapsed());
    }
    proxy.set(Fault::Delay { base: DEADLINE, jitter: DEADLINE });
    client.write_all(b"two?").await.unwrap();
    proxy.heal();
    assert_eq!(read(&mut client, 3).await.unwrap(), "yes", "what was on its way comes at once");
}

#[tokio::test]
async fn redirected_it_leads_to_somebody_else_and_dropped_nowhere() {
    let ((proxy, mut told), (address, mut told_elsewhere)) = (before_an_oracle().await, oracle().await);
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "one?").await.unwrap(), "yes");
    proxy.redirect(address);
    assert!(read(&mut client, 1).await.is_err(), "it was connected to the first");
    let mut client = connect(&proxy).await;
    assert_eq!(ask(&mut client, "two?").await.unwrap(), "yes");
    assert_eq!([told.recv().await.unwrap(), told_elsewhere.recv().await.unwrap()], ["one?", "two?"]);

    let address = proxy.address();
    drop(proxy);
    assert_eq!(read(&mut client, 1).await.unwrap(), "", "it is closed");
    assert!(eventually(true, async || TcpStream::connect(address).await.is_err()).await);
}
