//! The page of order-service in a real browser: clicks have their effect, and the page shows it.

mod browser;
mod prefix;

use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::{ADMIN, SignIn, Signal, System, eventually, order, sign_in};
use tokio::time;

use crate::browser::Browser;

const LAPTOP: i64 = 1;
const PHONE: i64 = 2;
/// The number of orders on the page.
const SHOWN: usize = 12;
/// The time within which the page shows that a service is down.
const SEEN_DOWN: Duration = Duration::from_secs(3);

/// Opens the page and waits until it shows that the three services are up. Returns `None` without Chromium.
async fn open() -> Option<(System, Browser)> {
    let system = System::start().await;
    let mut browser = Browser::open(&system.orders.url()).await?;
    browser.until("document.querySelectorAll('article.up').length === 3").await;
    browser.until("document.querySelectorAll('#products tr').length === 2").await;
    assert_eq!(browser.errors().await, [] as [Value; 0]);
    Some((system, browser))
}

/// Returns the condition that the last result on the page contains this text.
fn result_has(text: &str) -> String {
    format!("document.querySelector('#outcome').innerText.includes({text:?})")
}

/// Returns the condition that the page lists this many orders.
fn listed(orders: usize) -> String {
    format!("document.querySelectorAll('#orders tr').length === {orders}")
}

/// Returns all orders.
async fn orders(system: &System) -> Vec<Value> {
    let orders = system.orders.get("/orders?limit=1000").await.expect(200).json();
    orders.as_array().expect("a list").clone()
}

#[tokio::test]
async fn places_cancels_and_shows_orders_by_clicks() {
    let Some((system, mut browser)) = open().await else { return };
    browser.click("button[value=once]").await;
    browser.until(&result_has("201 Created")).await;
    browser.until(&listed(1)).await;
    let placed = orders(&system).await;
    assert_eq!(browser.evaluate("document.querySelector('#orders code').title").await, placed[0]["id"]);
    browser.until("document.querySelector('#products tr').innerText.includes('49')").await;

    browser.click("button[value=twice]").await;
    browser.until(&result_has("twice the same order, sold once")).await;
    browser.until(&listed(2)).await;
    assert_eq!((orders(&system).await.len(), system.stock(LAPTOP).await), (2, 48));
    browser.until(&result_has("Idempotent-Replayed: true")).await;

    browser.click("#orders tr:last-child button").await; // the older one
    browser.until(&result_has("Cancelled")).await;
    browser.until("document.querySelector('#orders tr:last-child').innerText.includes('cancelled')").await;
    assert_eq!(orders(&system).await[0]["status"], "cancelled");
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "its unit is free again");
    browser.until("document.querySelector('#products tr').innerText.includes('49')").await;
    assert_eq!(browser.errors().await, [] as [Value; 0]);

    browser.click("button[value=sixty]").await;
    browser.until(&result_has("49 of 60 orders placed")).await;
    browser.until(&result_has("11 × 409 Insufficient stock")).await;
    assert_eq!((orders(&system).await.len(), system.stock(LAPTOP).await), (51, 0));
    let newest = orders(&system).await[50]["id"].clone();
    for _ in 0..2 {
        browser.until(&format!("document.querySelector('#orders code')?.title === {newest}")).await;
        browser.until(&listed(SHOWN)).await;
        browser.call("Page.reload", json!({})).await; // a new page loads the orders as well
    }
    browser.until(&listed(SHOWN)).await;
    browser.evaluate("document.querySelector('#orders tr button').focus()").await;
    let newest = system.orders.post("/orders", order(1, PHONE, 1)).await.expect(201).json()["id"].clone();
    browser.until(&format!("document.querySelector('#orders code')?.title === {newest}")).await;
    let kept = "document.querySelector('#orders tr').nextElementSibling.contains(document.activeElement)";
    assert_eq!(browser.evaluate(kept).await, true, "a new order does not move the focus");
    assert_eq!(exceptions(&mut browser).await, [] as [Value; 0]);
    browser.close().await;
}

#[tokio::test]
async fn shows_a_dead_user_service_within_three_seconds_and_explains_a_failed_order() {
    let Some((mut system, mut browser)) = open().await else { return };
    live(&system, "Desk lamp", 45).await;
    let (before, stock) = (orders(&system).await, system.stock(LAPTOP).await);
    system.users.kill().await;
    let killed = Instant::now();
    browser.until("document.querySelector('article.down .name')?.innerText === 'user-service'").await;
    assert!(killed.elapsed() < SEEN_DOWN, "{:?}", killed.elapsed());
    let seen = "document.querySelector('article.down .health').innerText.includes('down')";
    assert_eq!(browser.evaluate(seen).await, true, "in words as well");

    live(&system, "Tea cup", 6).await;
    browser.evaluate("document.querySelector('button[value=once]').focus()").await;
    browser.press("Enter").await; // with the keyboard
    for part in ["503 Peer unavailable", "user-service", "Nothing was sold", "in 1 s (Retry-After)"] {
        browser.until(&result_has(part)).await;
    }
    browser.until("document.querySelectorAll('article.up').length === 2").await;
    assert_eq!((orders(&system).await, system.stock(LAPTOP).await), (before, stock));
    for (scheme, file) in [("dark", "page-dark.png"), ("light", "page.png")] {
        browser.prefers(scheme).await;
        assert_eq!(browser.evaluate(LOW_CONTRAST).await, json!([]), "{scheme}");
        browser.screenshot(&pictures().join(file)).await;
    }

    system.users.restart().await;
    browser.until("document.querySelectorAll('article.up').length === 3").await;
    system.products.signal(Signal::Freeze).await; // the process exists and does not answer
    browser.until("document.querySelector('article.down .name')?.innerText === 'product-service'").await;
    system.products.signal(Signal::Thaw).await;
    browser.until("document.querySelectorAll('article.up').length === 3").await;
    assert_eq!(exceptions(&mut browser).await, [] as [Value; 0]);
    browser.close().await;
}

#[tokio::test]
async fn signs_in_and_shows_only_what_the_caller_may_see() {
    let keys = SignIn::new().expect("a temporary folder");
    let system = System::start_with(Some(&keys), |launch| launch).await.unwrap_or_else(|why| panic!("{why}"));
    let account = json!({"username": "ada", "email": "ada@example.com", "password": "a horse for three services"});
    system.users.post("/users", account).await.expect(201);
    let Some(mut browser) = Browser::open(&format!("{}/?users=http://127.0.0.1:1", system.orders.url())).await else {
        return;
    };
    browser.until("document.querySelectorAll('article.up').length === 3").await; // the address in the query is ignored
    let message_has =
        |text: &str| format!("document.querySelector('form.password ~ .message').innerText.includes({text:?})");

    browser.click("button[value=once]").await;
    browser.until(&result_has("401")).await;
    let fill = |login: &str, password: &str| {
        format!(
            "{{ const form = document.querySelector('form.password'); form.login.value = {login:?}; \
             form.password.value = {password:?}; form.requestSubmit(); }}"
        )
    };
    browser.evaluate(&fill("ada", "wrong")).await;
    browser.until("document.querySelector('.message').innerText.length > 10").await;
    browser.evaluate(&fill("ada@example.com", "a horse for three services")).await;
    browser.until(&message_has("Signed in as ada@example.com")).await;
    browser.click("button[value=once]").await;
    browser.until(&result_has("201 Created")).await;
    browser.until(&listed(1)).await;
    assert_eq!(browser.evaluate("document.querySelector('select[name=user]').options.length").await, 1);
    assert_eq!(
        browser.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])").await,
        r#"[{},{},""]"#
    );
    for scheme in ["dark", "light"] {
        browser.prefers(scheme).await;
        assert_eq!(browser.evaluate(LOW_CONTRAST).await, json!([]), "{scheme}");
    }

    browser.click("button.out").await;
    browser.until(&message_has("Signed out")).await;
    browser.until(&listed(0)).await;
    browser.evaluate(&fill(ADMIN, keys.password())).await;
    browser.until(&listed(1)).await;
    browser.until("document.querySelector('select[name=user]').options.length > 3").await;

    // A token that the services do not accept any more; and a token of another provider, which is pasted.
    browser.evaluate("token = 'x'").await;
    browser.until(&message_has("do not accept your token")).await;
    browser.until(&listed(0)).await;
    browser.evaluate("notice({ status: 404 })").await;
    browser.until(&message_has("paste the access token")).await;
    let token = sign_in(&system.users, "ada", "a horse for three services").await.replace("Bearer ", "");
    browser.evaluate(&format!("document.querySelector('form.token').token.value = {token:?}")).await;
    browser.click("form.token button").await;
    browser.until(&listed(1)).await;
    browser
        .evaluate(
            "window.fetch = async () => new Response('{\"detail\":\"The access token has expired\"}', \
             { status: 401, headers: { 'content-type': 'application/problem+json' } })",
        )
        .await;
    browser.until(&message_has("has run out")).await;
    browser.until("!document.querySelector('form.token').hidden").await; // sign-in is shown again
    assert_eq!(exceptions(&mut browser).await, [] as [Value; 0]);
    browser.close().await;
}

#[tokio::test]
async fn works_behind_a_proxy_that_strips_a_path() {
    let system = System::start().await;
    let proxy = prefix::serve_under("/shop", system.orders.address()).await;
    for path in ["/shop/", "/shop"] {
        let Some(mut browser) = Browser::open(&format!("http://{proxy}{path}")).await else { return };
        browser.until("document.querySelectorAll('article.up').length === 3").await;
        browser.click("button[value=once]").await;
        browser.until(&result_has("201 Created")).await;
        browser.until("document.querySelector('#orders tr button') !== null").await;
        browser.click("#orders tr button").await;
        browser.until(&result_has("Cancelled")).await;
        let link = "[...document.querySelectorAll('.docs')].at(-1).href";
        assert_eq!(browser.evaluate(link).await, format!("http://{proxy}/shop/docs"));
        assert_eq!(exceptions(&mut browser).await, [] as [Value; 0]);
        browser.close().await;
    }
}

#[tokio::test]
async fn is_accessible_in_light_and_dark() {
    let Some((_system, mut browser)) = open().await else { return };
    browser.click("button[value=once]").await;
    browser.until(&listed(1)).await;
    browser.click("#orders button").await;
    browser.until(&result_has("Cancelled")).await;
    browser.click("button[value=once]").await;
    browser.until(&listed(2)).await;
    for scheme in ["dark", "light"] {
        browser.prefers(scheme).await;
        assert_eq!(browser.evaluate(LOW_CONTRAST).await, json!([]), "{scheme}");
    }

    let tree = browser.call("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().expect("a tree");
    for (role, least) in [("button", 4), ("combobox", 2), ("spinbutton", 1), ("link", 3), ("table", 2), ("image", 9)] {
        let those: Vec<_> = nodes.iter().filter(|node| node["role"]["value"] == role).collect();
        assert!(those.len() >= least, "{} of {role}", those.len());
        assert!(those.iter().all(|node| node["name"]["value"] != ""), "a {role} without a name: {those:#?}");
    }

    browser.evaluate("document.body.tabIndex = -1; document.body.focus()").await;
    let stops = "window.stops = [...document.querySelectorAll('a, button, select, input')]; stops.length";
    for stop in 0..browser.evaluate(stops).await.as_u64().expect("a number") {
        browser.press("Tab").await;
        let reached = browser.evaluate("stops.indexOf(document.activeElement)").await;
        assert_eq!(reached, stop, "Tab reaches every control in reading order");
        let ring = "getComputedStyle(document.activeElement).outlineStyle";
        assert_eq!(browser.evaluate(ring).await, "solid", "the focus is visible");
    }
    browser.close().await;
}

/// Returns the exceptions. (A 4xx or a dead service is an error on the console, but not an exception.)
async fn exceptions(browser: &mut Browser) -> Vec<Value> {
    let errors = browser.errors().await.into_iter();
    errors.filter(|error| error["entry"]["source"] != "network").collect()
}

/// Returns the folder for screenshots: `target/`, or `docs/` with `UPDATE_PICTURES=1`. Compress the latter with
/// `pngquant --ext .png --force 128 docs/page*.png`.
fn pictures() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if updates_pictures() { root.join("docs") } else { Path::new(env!("CARGO_TARGET_TMPDIR")).join("..") }
}

fn updates_pictures() -> bool {
    env::var_os("UPDATE_PICTURES").is_some_and(|value| value == "1")
}

/// Places orders for this many seconds, so that updated screenshots show activity.
async fn live(system: &System, buy: &str, seconds: u64) {
    if !updates_pictures() {
        return;
    }
    let product = system.add_product(buy, 39.5, 2000).await;
    for second in 0..seconds {
        let tick = time::sleep(Duration::from_secs(1));
        let count = 9 + 5 * (second % 7) + if second % 20 == 8 { 40 } else { 0 };
        let orders = (0..count).map(|nth| order(1 + nth as i64 % 2, product, 1 + nth as u32 % 3));
        let placed = orders.map(|order| system.orders.post("/orders", order));
        let placed = futures_util::future::join_all(placed).await;
        for (nth, placed) in placed.iter().filter(|placed| placed.status == 201).enumerate() {
            if let Some(status) = [None, Some("confirmed"), None, Some("cancelled")][nth % 4] {
                system.orders.patch(placed.header("location"), json!({"status": status})).await.expect(200);
            }
        }
        tick.await;
    }
}

/// Returns the texts with less contrast to their background than WCAG AA requires (4.5 to 1), each with its ratio.
const LOW_CONTRAST: &str = "(() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const [red, green, blue] = parts(colour).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return parts(colour)[3] === 0 ? ground(element.parentElement) : colour;
    };
    const isText = (element) => element.checkVisibility()
        && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    return [...document.querySelectorAll('body *')].filter(isText).flatMap((element) => {
        const both = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => b - a);
        const ratio = (both[0] + 0.05) / (both[1] + 0.05);
        return ratio < 4.5 ? [`${ratio.toFixed(2)}: ${element.innerText}`] : [];
    });
})()";
