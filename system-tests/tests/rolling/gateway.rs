//! HAProxy with `deploy/gateway.cfg`: what clients reach through it, and what the services learn of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use system_tests::{Balancer, Launch, ORDERS, PRODUCTS, Service, USERS, eventually, order};

/// Starts the gateway in front of two replicas of each service, which have the same rows in memory.
async fn start(balancer: &mut Balancer) -> Vec<Service> {
    let mut replicas = Vec::new();
    for service in [USERS, PRODUCTS, ORDERS] {
        let launch = Launch::of(service).env("TRUSTED_PROXIES", "127.0.0.1");
        let launch = launch.env("USER_SERVICE_URL", balancer.url(USERS));
        let launch = launch.env("PRODUCT_SERVICE_URL", balancer.url(PRODUCTS));
        for _ in 0..2 {
            replicas.push(Service::start(launch.clone()).await.unwrap_or_else(|reason| panic!("{reason}")));
        }
    }
    balancer.start(&replicas).await;
    replicas
}

/// Sends a GET from this address. Returns the status, and the body.
async fn get(from: [u8; 4], url: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().local_address(Some(from.into())).build().expect("no TLS");
    let request = headers.iter().fold(client.get(url), |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.expect("the gateway answers");
    (response.status().as_u16(), response.text().await.expect("text"))
}

#[tokio::test]
async fn leads_clients_to_the_api_and_to_nothing_else() {
    let Some(mut balancer) = Balancer::prepare() else { return };
    let _replicas = start(&mut balancer).await;
    let gateway = balancer.gateway();
    for path in ["/users", "/users/1", "/api/users/1?x", "/products", "/api/products/2", "/orders", "/api/orders"] {
        let (status, _) = get([127, 0, 0, 1], &format!("{gateway}{path}"), &[]).await;
        assert!(status == 200 || (path.ends_with("?x") && status == 400), "{path}: {status}");
    }
    let response = reqwest::Client::new().post(format!("{gateway}/orders")).json(&order(1, 1, 1)).send().await;
    let response = response.expect("the gateway answers");
    assert_eq!(response.status().as_u16(), 201);
    assert!(response.headers().contains_key("x-request-id") && response.headers().contains_key("location"));
    for hidden in [
        "/",
        "/metrics",
        "/readyz",
        "/livez",
        "/docs",
        "/openapi.json",
        "/reservations",
        "/reservations/01a2003e-e714-710e-a057-b9de0b11d83b",
        "/api/reservations",
        "/api/metrics",
        "/usersx",
        "//metrics",
        "/Users",
    ] {
        let (status, body) = get([127, 0, 0, 1], &format!("{gateway}{hidden}"), &[]).await;
        assert_eq!(status, 404, "{hidden}: {body}");
        assert!(body.contains("urn:problem-type:not-found"), "{hidden}: {body}");
    }
    // The path goes to a service as it is, which knows no such path.
    for odd in ["/products/..%2Freservations", "/products/%2e%2e%2fmetrics", "/users/1/../../metrics"] {
        let (status, body) = get([127, 0, 0, 1], &format!("{gateway}{odd}"), &[]).await;
        assert!(status == 404 || status == 400, "{odd}: {status} {body}");
    }
}

#[tokio::test]
async fn passes_on_the_address_and_the_request_id_of_a_client() {
    let Some(mut balancer) = Balancer::prepare() else { return };
    let replicas = start(&mut balancer).await;
    let url = format!("{}/products/1", balancer.gateway());
    let headers = [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-prefix", "/evil"),
        ("forwarded", "for=203.0.113.7"),
        ("x-request-id", "the-id-of-the-client"),
    ];
    assert_eq!(get([127, 0, 0, 2], &url, &headers).await.0, 200);
    let line = async || {
        let logs = replicas.iter().flat_map(Service::log);
        logs.into_iter().find(|line| line.contains("the-id-of-the-client")).unwrap_or_default()
    };
    assert!(eventually(true, async || !line().await.is_empty()).await, "the request is logged");
    let line = line().await;
    assert!(line.contains("127.0.0.2") && !line.contains("203.0.113.7"), "{line}");
    let logged =
        async || balancer.log().iter().any(|line| line.contains("request the-id-of-the-client server products/"));
    assert!(eventually(true, logged).await, "the gateway logs it: {:?}", balancer.log());
    let page = reqwest::Client::new().get(format!("{}/products?limit=1", balancer.gateway()));
    let page = page.header("x-forwarded-prefix", "/evil").send().await.expect("the gateway answers");
    let link = page.headers()["link"].to_str().expect("text");
    assert!(link.starts_with("</products?"), "a client sets no prefix: {link}");
}

#[tokio::test]
async fn limits_the_requests_of_one_client_only() {
    let Some(balancer) = Balancer::prepare() else { return };
    let mut balancer = balancer.requests_per_client(20);
    let _replicas = start(&mut balancer).await;
    let url = format!("{}/users/1", balancer.gateway());
    let mut refused = 0;
    for _ in 0..60 {
        let (status, body) = get([127, 0, 0, 3], &url, &[]).await;
        assert!(status == 200 || (status == 429 && body.contains("too-many-requests")), "{status} {body}");
        refused += u32::from(status == 429);
    }
    assert!(refused > 0, "the limit is reached");
    assert_eq!(get([127, 0, 0, 4], &url, &[]).await.0, 200, "another client is served");
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns the paths that gateway.cfg leads to each service.
fn paths_of_the_gateway() -> BTreeSet<(String, String)> {
    let gateway = read("deploy/gateway.cfg");
    let acls =
        gateway.lines().filter_map(|line| line.trim().strip_prefix("acl ")?.split_once(" path,concat(/) -m beg "));
    let paths = acls.flat_map(|(name, paths)| {
        paths.split(' ').map(move |path| (name.to_owned(), path.trim_end_matches('/').to_owned()))
    });
    paths.collect()
}

#[test]
fn has_the_paths_of_the_route_of_kubernetes() {
    let mut of_kubernetes = BTreeSet::new();
    let mut paths = Vec::new();
    for line in read("deploy/kubernetes/base/route.yaml").lines() {
        let line = line.trim().trim_start_matches("- ");
        if let Some((_, path)) = line.split_once("type: PathPrefix, value: ") {
            paths.push(path.trim_end_matches(['}', ' ']).to_owned());
        } else if let Some((_, service)) = line.split_once("name: ").filter(|_| !paths.is_empty()) {
            let name = service.split("-service").next().expect("a name").to_owned() + "s";
            of_kubernetes.extend(paths.drain(..).map(|path| (name.clone(), path)));
        }
    }
    let of_haproxy = paths_of_the_gateway();
    assert!(of_haproxy.len() > 6, "{of_haproxy:?}");
    assert_eq!(of_haproxy, of_kubernetes);
}

#[test]
fn leads_to_each_documented_call_for_clients() {
    let paths = paths_of_the_gateway();
    for (name, service) in [("users", USERS), ("products", PRODUCTS), ("orders", ORDERS)] {
        let document: Value = serde_json::from_str(&read(&format!("{service}/openapi.json"))).expect("JSON");
        for path in document["paths"].as_object().expect("an object").keys() {
            let first = path.split('/').nth(1).expect("a path starts with a slash");
            // For operators, for order-service, and the list that user-service itself has.
            let is_hidden =
                ["livez", "readyz", "reservations"].contains(&first) || (name, first) == ("products", "users");
            for path in [format!("/{first}"), format!("/api/{first}")] {
                assert_eq!(paths.contains(&(name.to_owned(), path.clone())), !is_hidden, "{service}: {path}");
            }
        }
    }
    assert!(paths.contains(&("users".to_owned(), "/.well-known".to_owned())), "the keys of the issuer");
}
