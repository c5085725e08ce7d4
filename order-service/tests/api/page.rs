//! `GET /`: the page for people.

use chassis::config::defaults;
use order_service::{AppState, app};
use testing::{Client, TestIssuer};

use crate::support::World;

#[tokio::test]
async fn serves_a_page_at_the_root_that_is_not_part_of_the_api() {
    let world = World::new().await;
    let page = world.client.get("/").await.expect(200);
    let html = std::str::from_utf8(&page.body).unwrap();
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    let (_, rest) = policy.split_once("'nonce-").expect("the policy allows only elements with the nonce");
    let (nonce, _) = rest.split_once('\'').expect("the end of the nonce");
    let elements = html.matches("<script").count() + html.matches("<style").count();
    assert_eq!(html.matches(&format!("nonce=\"{nonce}\"")).count(), elements, "{policy}");
    let next = world.client.get("/").await;
    assert!(!next.header("content-security-policy").contains(nonce), "each response has another nonce");
    for content in [
        include_str!("../../page/page.css"),
        include_str!("../../page/requests.js"),
        include_str!("../../page/page.js"),
    ] {
        assert!(html.contains(content), "style and script are inlined");
    }
    for peer in world.placement.peers() {
        let meta = format!("<meta name=\"{}\" content=\"{}\">", peer.name(), peer.base());
        assert!(html.contains(&meta), "{meta} in {page}");
    }

    let state = AppState::new(world.placement.clone());
    let public = state.with_public_urls([Some("http://localhost:3001/shop".parse().unwrap()), None]);
    let page = Client::new(app(public, &defaults())).get("/").await.expect(200).to_string();
    assert!(page.contains(r#"<meta name="user-service" content="http://localhost:3001/shop">"#), "{page}");
    assert!(page.contains(world.placement.peers()[1].base().as_str()), "the other is the peer: {page}");

    assert!(html.contains(r#"<meta name="sign-in" content="">"#), "sign-in is off: {html}");
    let page = world.with_sign_in(&TestIssuer::default()).get("/").await.expect(200).to_string();
    assert!(page.contains(r#"<meta name="sign-in" content="https://issuer.test/">"#), "{page}");

    world.client.get("/?users=http://127.0.0.1:3001").await.expect(200);
    world.client.request("POST", "/").send().await.expect_problem(405, "method-not-allowed");
    let metrics = world.client.get("/metrics").await.expect(200).to_string();
    assert!(metrics.contains(r#"http_requests_total{method="GET",route="/",status="#), "{metrics}");
    let document = world.client.get("/openapi.json").await.expect(200).json();
    assert!(document["paths"]["/"].is_null());
}
