//! `--health`: the health check of a container whose image has no shell and no other program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::config::Settings;

/// Less than the interval of health checks. A check that gets no answer must end before the next one.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the running service with these settings for its `/readyz`, and prints one sentence if it is ready.
///
/// # Errors
/// If the service is not ready, does not answer within 3 s, or has no fixed port.
pub async fn check_health(service: &str, settings: &Settings, port: u16) -> Result<(), String> {
    let host = match settings.host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    let address = SocketAddr::from((host, port));
    let failed = |reason: &str| format!("{service} on {address} is not ready: {reason}");
    if port == 0 {
        return Err(failed("its port is unknown; set PORT"));
    }
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    let asked = async {
        let answer = client.build()?.get(format!("http://{address}/readyz")).send().await?;
        Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.bytes().await?))
    };
    match asked.await {
        Ok((200, _)) => {
            println!("{service} on {address} is ready");
            Ok(())
        }
        Ok((status, body)) => {
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let reasons = body["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Err(failed(&reasons.fold(status.to_string(), |text, reason| format!("{text}, {reason}"))))
        }
        Err(error) if error.is_timeout() => Err(failed("no answer within 3 s")),
        Err(_) => Err(failed("nothing answers there")),
    }
}
