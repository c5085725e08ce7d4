//! `GET /readyz` and `GET /livez`.

use order_service::store;
use serde_json::{Value, json};
use testing::{Client, dead_peer};

use crate::fakes::StubBehaviour;
use crate::support::{HOUR, Timeouts, World, client, eventually, placement};

#[tokio::test]
async fn readiness_reports_the_peers_and_does_not_depend_on_them() {
    let world = World::new().await;
    // Repeated, because on a slow machine a peer that is up may not answer within the half second of the probe.
    let reports = async |client: &Client, peers: Value| {
        let ready = json!({"status": "ready", "peers": peers});
        eventually(&ready.to_string(), async || client.get("/readyz").await.expect(200).json() == ready).await;
    };
    let both_up = json!({"user-service": "up", "product-service": "up"});
    reports(&world.client, both_up.clone()).await;
    world.users.read.set(StubBehaviour::Hanging);
    world.products.reserve.set(StubBehaviour::ServerError);
    reports(&world.client, both_up).await; // the probe calls no endpoint of the API

    let peers = world.placement.peers();
    let (users, products, dead) = (peers[0].base().clone(), peers[1].base().clone(), dead_peer().await);
    for (users, products, expected) in [
        (dead.clone(), products, json!({"user-service": "down", "product-service": "up"})),
        (users, dead.clone(), json!({"user-service": "up", "product-service": "down"})),
        (dead.clone(), dead, json!({"user-service": "down", "product-service": "down"})),
    ] {
        let client = client(placement(store::memory(), users, products, Timeouts { call: HOUR, order: HOUR }));
        reports(&client, expected).await;
        assert_eq!(client.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
    }
}
