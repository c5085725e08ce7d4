//! The address of the client, for the log and for limits.
//!
//! Each proxy appends the address of its own client to `X-Forwarded-For`. A client can send the header as well. So an entry is
//! believed only if a proxy of `TRUSTED_PROXIES` has appended it. `Forwarded` (RFC 7239) is not read: a proxy that writes one
//! of the two headers passes on the other as the client sent it.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client, for handlers. The pipeline adds it to each request with a connection while sign-in is on.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

/// Returns the nearest address that is no trusted proxy: first the peer of the connection, then the entries of
/// `X-Forwarded-For` from the last to the first. The search ends at an entry that is no address.
pub(crate) fn client_address(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.ip().to_canonical();
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let entries = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(',')).map(str::trim);
    for entry in entries.filter(|entry| !entry.is_empty()) {
        if !trusted.iter().any(|network| network.contains(&client)) {
            break;
        }
        let Some(address) = parse(entry) else { break };
        client = address;
    }
    client
}

/// Parses an address with or without a port, and IPv6 with or without brackets.
fn parse(entry: &str) -> Option<IpAddr> {
    let bare = || entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry).parse().ok();
    let address: Option<IpAddr> = entry.parse::<SocketAddr>().ok().map(|address| address.ip()).or_else(bare);
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let trusted = ["10.0.0.0/8", "::1/128", "2001:db8::/32"].map(|network| network.parse().unwrap());
        let line = |line: &&str| (X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        client_address(peer.parse().unwrap(), &lines.iter().map(line).collect(), &trusted).to_string()
    }

    #[test]
    fn believes_only_what_a_trusted_proxy_has_appended() {
        for (peer, lines, expected) in [
            ("203.0.113.9:1", &[][..], "203.0.113.9"),
            ("203.0.113.9:1", &["198.51.100.7"], "203.0.113.9"),
            ("10.0.0.1:1", &[], "10.0.0.1"),
            ("10.0.0.1:1", &["198.51.100.7"], "198.51.100.7"),
            ("[::ffff:10.0.0.1]:1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("[::1]:1", &["1.2.3.4, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1:1", &["1.2.3.4", "198.51.100.7", "10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1:1", &["10.0.0.3,, 10.0.0.2 ,"], "10.0.0.3"),
        ] {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn reads_ports_and_brackets_and_stops_at_garbage() {
        for (entry, expected) in [
            ("198.51.100.7:4711", "198.51.100.7"),
            ("2001:dead::1", "2001:dead::1"),
            ("[2001:dead::1]", "2001:dead::1"),
            ("[2001:dead::1]:4711", "2001:dead::1"),
            ("1.2.3.4, unknown", "10.0.0.1"),
            ("1.2.3.4, 10.0.0.2, 300.1.1.1", "10.0.0.1"),
            ("1.2.3.4, caf\u{e9}", "10.0.0.1"),
            ("\"198.51.100.7\"", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1:1", &[entry]), expected, "{entry}");
        }
    }
}
