//! A lower bound: hyper with the same response, without routes, JSON, a store or any layer of ours. The instructions of a
//! request are compared with those of this program, built by the same compiler and run on the same machine.

use std::convert::Infallible;
use std::env;
use std::io;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const USER: &[u8] = br#"{"id":1,"name":"John Doe","createdAt":"2026-11-21T22:34:10.712406Z"}"#;

#[tokio::main]
async fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|port| port.parse::<u16>().ok()).unwrap_or_default();
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("bare_hyper listens on http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<&'static [u8]>>, Infallible> {
    let mut response = Response::new(Full::new(USER));
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header value"));
    Ok(response)
}
