//! The page of order-service in a real browser: what is clicked there happens, and what happens is shown.

mod browser;

use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::{Signal, System, eventually, order};
use tokio::time;

use crate::browser::Browser;

const LAPTOP: i64 = 1;
const PHONE: i64 = 2;
/// So many orders the page shows.
const SHOWN: usize = 12;
/// As soon as that a service that is gone is seen to be gone.
const SEEN_DOWN: Duration = Duration::from_secs(3);

/// The three services, and the page in a browser, when it has seen that they are up. `None` without Chromium.
async fn open() -> Option<(System, Browser)> {
    let system = System::start().await;
    let mut browser = Browser::open(&system.orders.url()).await?;
    browser.until("document.querySelectorAll('article.up').length === 3").await;
    browser.until("document.querySelectorAll('#products tr').length === 2").await;
    assert_eq!(browser.errors().await, [] as [Value; 0]);
    Some((system, browser))
}

/// A condition: the answer to what was done last says this.
fn told(text: &str) -> String {
    format!("document.querySelector('#outcome').innerText.includes({text:?})")
}

/// A condition: so many orders are listed.
fn listed(orders: usize) -> String {
    format!("document.querySelectorAll('#orders tr').length === {orders}")
}

/// The orders that there are.
async fn orders(system: &System) -> Vec<Value> {
    let orders = system.orders.get("/orders?limit=1000").await.expect(200).json();
    orders.as_array().expect("a list").clone()
}

#[tokio::test]
async fn what_is_clicked_happens_and_is_shown() {
    let Some((system, mut browser)) = open().await else { return };
    browser.click("button[value=once]").await;
    browser.until(&told("201 Created")).await;
    browser.until(&listed(1)).await;
    let placed = orders(&system).await;
    assert_eq!(browser.evaluate("document.querySelector('#orders code').title").await, placed[0]["id"]);
    browser.until("document.querySelector('#products tr').innerText.includes('49')").await;

    browser.click("button[value=twice]").await;
    browser.until(&told("twice the same order, sold once")).await;
    browser.until(&listed(2)).await;
    assert_eq!((orders(&system).await.len(), system.stock(LAPTOP).await), (2, 48));
    browser.until(&told("Idempotent-Replayed: true")).await;

    browser.click("#orders tr:last-child button").await; // the older one
    browser.until(&told("Cancelled")).await;
    browser.until("document.querySelector('#orders tr:last-child').innerText.includes('cancelled')").await;
    assert_eq!(orders(&system).await[0]["status"], "cancelled");
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "its unit is back");
    browser.until("document.querySelector('#products tr').innerText.includes('49')").await;
    assert_eq!(browser.errors().await, [] as [Value; 0]);

    browser.click("button[value=sixty]").await;
    browser.until(&told("49 of 60 orders placed")).await;
    browser.until(&told("11 × 409 Insufficient stock")).await;
    assert_eq!((orders(&system).await.len(), system.stock(LAPTOP).await), (51, 0));
    let newest = orders(&system).await[50]["id"].clone();
    for _ in 0..2 {
        browser.until(&format!("document.querySelector('#orders code')?.title === {newest}")).await;
        browser.until(&listed(SHOWN)).await;
        browser.call("Page.reload", json!({})).await; // it finds them by itself, too
    }
    browser.until(&listed(SHOWN)).await;
    browser.evaluate("document.querySelector('#orders tr button').focus()").await;
    let newest = system.orders.post("/orders", order(1, PHONE, 1)).await.expect(201).json()["id"].clone();
    browser.until(&format!("document.querySelector('#orders code')?.title === {newest}")).await;
    let kept = "document.querySelector('#orders tr').nextElementSibling.contains(document.activeElement)";
    assert_eq!(browser.evaluate(kept).await, true, "an order that comes takes nobody's focus");
    assert_eq!(exceptions(&mut browser).await, [] as [Value; 0]);
    browser.close().await;
}

#[tokio::test]
async fn a_stopped_user_service_is_seen_within_three_seconds_and_an_order_says_what_that_means() {
    let Some((mut system, mut browser)) = open().await else { return };
    live(&system, "Desk lamp", 45).await;
    let (before, stock) = (orders(&system).await, system.stock(LAPTOP).await);
    system.users.kill().await;
    let killed = Instant::now();
    browser.until("document.querySelector('article.down .name')?.innerText === 'user-service'").await;
    assert!(killed.elapsed() < SEEN_DOWN, "{:?}", killed.elapsed());
    let seen = "document.querySelector('article.down .health').innerText.includes('down')";
    assert_eq!(browser.evaluate(seen).await, true, "in words, too");

    live(&system, "Tea cup", 6).await;
    browser.evaluate("document.querySelector('button[value=once]').focus()").await;
    browser.press("Enter").await; // as who has no mouse does it
    for part in ["503 Peer unavailable", "user-service", "Nothing was sold", "in 1 s (Retry-After)"] {
        browser.until(&told(part)).await;
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
    system.products.signal(Signal::Freeze).await; // there, but silent
    browser.until("document.querySelector('article.down .name')?.innerText === 'product-service'").await;
    system.products.signal(Signal::Thaw).await;
    browser.until("document.querySelectorAll('article.up').length === 3").await;
    assert_eq!(exceptions(&mut browser).await, [] as [Value; 0]);
    browser.close().await;
}

#[tokio::test]
async fn it_can_be_read_and_used_by_everybody_in_light_and_dark() {
    let Some((_system, mut browser)) = open().await else { return };
    browser.click("button[value=once]").await;
    browser.until(&listed(1)).await;
    browser.click("#orders button").await;
    browser.until(&told("Cancelled")).await;
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
        assert_eq!(reached, stop, "every control is reached by Tab, in the order in which they are read");
        let ring = "getComputedStyle(document.activeElement).outlineStyle";
        assert_eq!(browser.evaluate(ring).await, "solid", "and one sees where one is");
    }
    browser.close().await;
}

/// What was thrown. (A refusal or a dead service is an error to the console, not to the page.)
async fn exceptions(browser: &mut Browser) -> Vec<Value> {
    let errors = browser.errors().await.into_iter();
    errors.filter(|error| error["entry"]["source"] != "network").collect()
}

/// Where the pictures go: to `target/`; with `UPDATE_PICTURES=1` to where README has them, to be made smaller there by
/// `pngquant --ext .png --force 128 docs/page*.png`.
fn pictures() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if updates_pictures() { root.join("docs") } else { Path::new(env!("CARGO_TARGET_TMPDIR")).join("..") }
}

fn updates_pictures() -> bool {
    env::var_os("UPDATE_PICTURES").is_some_and(|value| value == "1")
}

/// When pictures are updated, something to be seen in them: so many seconds with customers who buy this.
async fn live(system: &System, buy: &str, seconds: u64) {
    if !updates_pictures() {
        return;
    }
    let product = system.add_product(buy, 39.5, 2000).await;
    for second in 0..seconds {
        let tick = time::sleep(Duration::from_secs(1));
        let crowd = 9 + 5 * (second % 7) + if second % 20 == 8 { 40 } else { 0 };
        let orders = (0..crowd).map(|nth| order(1 + nth as i64 % 2, product, 1 + nth as u32 % 3));
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

/// The texts with less contrast to what is behind them than WCAG's AA has (4.5 to 1), each with its ratio.
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
