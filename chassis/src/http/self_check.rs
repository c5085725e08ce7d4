//! `--health`: the health check of a container whose image has no shell and no other program.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

use crate::config::Settings;

/// Less than the interval of health checks. A check that gets no answer must end before the next one.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The part of a problem of `/readyz` that says why the service is not ready.
#[derive(Default, Deserialize)]
struct Unready {
    #[serde(default)]
    reasons: Vec<String>,
}

/// Asks the running service with these settings for its `/readyz`, and prints one sentence if it is ready.
///
/// # Errors
/// If the service is not ready, does not answer within 3 s, or has no fixed port.
pub async fn check_health(service: &str, settings: &Settings, port: u16) -> Result<(), String> {
    let address = SocketAddr::from((reachable(settings.host), port));
    if port == 0 {
        return Err(format!("--health cannot know which port {service} has chosen: set PORT"));
    }
    let failed = |reason: String| format!("{service} on {address} is not ready: {reason}");
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let asked = async {
        let answer = client.timeout(TIMEOUT).build()?.get(format!("http://{address}/readyz")).send().await?;
        let status = answer.status();
        Ok::<_, reqwest::Error>((status, answer.bytes().await?))
    };
    let (status, body) = asked.await.map_err(|error| failed(reason(&error)))?;
    if status != reqwest::StatusCode::OK {
        let Unready { reasons } = serde_json::from_slice(&body).unwrap_or_default();
        let reasons = if reasons.is_empty() { String::new() } else { format!(", {}", reasons.join(", ")) };
        return Err(failed(format!("{}{reasons}", status.as_u16())));
    }
    let _ = writeln!(io::stdout(), "{service} on {address} is ready"); // fails if the reader of stdout is gone
    Ok(())
}

/// Returns an address of the interface that a process on the same machine can connect to.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        format!("no answer within {} s", TIMEOUT.as_secs())
    } else if error.is_connect() {
        "nothing listens there".to_owned()
    } else {
        "the answer is not HTTP".to_owned()
    }
}
