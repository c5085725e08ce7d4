//! A proxy that strips a path from each request, as a gateway in front of several services does.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// Serves `target` under `prefix`, and nothing else, on a free port. Returns the address.
pub(crate) async fn serve_under(prefix: &'static str, target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward(client, prefix, target));
        }
    });
    address
}

/// Forwards one request. A request without the prefix has its connection closed.
async fn forward(client: TcpStream, prefix: &str, target: SocketAddr) -> io::Result<()> {
    let mut client = BufStream::new(client);
    let mut line = String::new();
    client.read_line(&mut line).await?;
    let Some((method, rest)) = line.split_once(&format!(" {prefix}")) else { return Ok(()) };
    let slash = if rest.starts_with('/') { "" } else { "/" };
    let mut head = format!("{method} {slash}{rest}Connection: close\r\n");
    loop {
        line.clear();
        client.read_line(&mut line).await?;
        if !line.to_ascii_lowercase().starts_with("connection:") {
            head.push_str(&line);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut service = TcpStream::connect(target).await?;
    service.write_all(head.as_bytes()).await?;
    copy_bidirectional(&mut client, &mut service).await.map(drop)
}
