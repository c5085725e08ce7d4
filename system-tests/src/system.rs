//! The three services together, each with the addresses of its peers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::launch::Launch;
use crate::proxy::Proxy;
use crate::service::{Service, Signal};
use crate::sign_in::SignIn;

/// The service that owns the users.
pub const USERS: &str = "user-service";
/// The service that owns the products and their stock.
pub const PRODUCTS: &str = "product-service";
/// The service that owns the orders.
pub const ORDERS: &str = "order-service";

const USERS_URL: &str = "USER_SERVICE_URL";
const PRODUCTS_URL: &str = "PRODUCT_SERVICE_URL";

/// The time in which a service must shut down: its own limit of ten seconds, and some slack.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The three services, running.
pub struct System {
    /// user-service.
    pub users: Service,
    /// product-service, which calls user-service.
    pub products: Service,
    /// order-service, which calls both.
    pub orders: Service,
}

/// The proxies on the three links between the services.
pub struct Links {
    /// From order-service to user-service.
    pub orders_to_users: Proxy,
    /// From order-service to product-service.
    pub orders_to_products: Proxy,
    /// From product-service to user-service.
    pub products_to_users: Proxy,
}

impl System {
    /// Starts the three on free ports, in memory, with their seed data.
    ///
    /// # Panics
    /// If a service does not start.
    pub async fn start() -> Self {
        Self::start_as(|launch| launch).await.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Starts the three, each as `prepare` returns it.
    ///
    /// # Errors
    /// If a service does not start. Those already started are stopped.
    pub async fn start_as(prepare: impl Fn(Launch) -> Launch) -> Result<Self, String> {
        Self::start_with(None, prepare).await
    }

    /// Starts the three, each as `prepare` returns it, with sign-in if there are keys.
    ///
    /// # Errors
    /// If a service does not start. Those already started are stopped.
    pub async fn start_with(sign_in: Option<&SignIn>, prepare: impl Fn(Launch) -> Launch) -> Result<Self, String> {
        let launch_of = |service: &'static str, users: &str| {
            let launch = prepare(Launch::of(service));
            sign_in.map_or_else(|| launch.clone(), |sign_in| sign_in.set_up(launch.clone(), users))
        };
        let users = Service::start(launch_of(USERS, "")).await?;
        let url = users.url();
        let products = Service::start(launch_of(PRODUCTS, &url).env(USERS_URL, &url)).await?;
        let launch = launch_of(ORDERS, &url).env(USERS_URL, &url);
        let orders = Service::start(launch.env(PRODUCTS_URL, products.url())).await?;
        Ok(Self { users, products, orders })
    }

    /// Starts the three with a proxy on each link between them. Random faults of the proxies come from `seed`.
    ///
    /// # Errors
    /// If a service does not start. Those already started are stopped.
    pub async fn start_linked(seed: u64, prepare: impl Fn(Launch) -> Launch) -> Result<(Self, Links), String> {
        let users = Service::start(prepare(Launch::of(USERS))).await?;
        let products_to_users = Proxy::start(users.address(), seed).await;
        let launch = prepare(Launch::of(PRODUCTS)).env(USERS_URL, products_to_users.url());
        let products = Service::start(launch).await?;
        let orders_to_users = Proxy::start(users.address(), seed.wrapping_add(1)).await;
        let orders_to_products = Proxy::start(products.address(), seed.wrapping_add(2)).await;
        let launch = prepare(Launch::of(ORDERS)).env(USERS_URL, orders_to_users.url());
        let orders = Service::start(launch.env(PRODUCTS_URL, orders_to_products.url())).await?;
        Ok((Self { users, products, orders }, Links { orders_to_users, orders_to_products, products_to_users }))
    }

    /// Waits until one of them ends, and returns which one.
    pub async fn wait_for_end(&mut self) -> String {
        tokio::select! {
            status = self.users.ended() => format!("{USERS} has ended, {status}"),
            status = self.products.ended() => format!("{PRODUCTS} has ended, {status}"),
            status = self.orders.ended() => format!("{ORDERS} has ended, {status}"),
        }
    }

    /// Stops the services that run, callers first, so that running requests can finish.
    pub async fn stop(self) {
        for mut service in [self.orders, self.products, self.users] {
            if service.is_running() {
                service.signal(Signal::Interrupt).await;
                service.ends_within(STOP_LIMIT).await;
            }
        }
    }

    /// Returns the processor time of the three so far, in seconds, from their metrics.
    ///
    /// # Panics
    /// If a service does not report it.
    pub async fn processor_seconds(&self) -> f64 {
        let mut sum = 0.0;
        for service in [&self.users, &self.products, &self.orders] {
            sum += service.metric("process_cpu_seconds_total").await.expect("the metric exists on Linux");
        }
        sum
    }

    /// Adds a product and returns its id.
    ///
    /// # Panics
    /// If the request fails.
    pub async fn add_product(&self, name: &str, price: f64, stock: i64) -> i64 {
        let product = json!({"name": name, "price": price, "stock": stock});
        let added = self.products.post("/products", product).await.expect(201).json();
        added["id"].as_i64().expect("an id is an integer")
    }

    /// Returns the units of a product that are free to sell.
    ///
    /// # Panics
    /// If there is no such product.
    pub async fn stock(&self, product: i64) -> i64 {
        let shown = self.products.get(&format!("/products/{product}")).await.expect(200).json();
        shown["stock"].as_i64().expect("stock is an integer")
    }
}

/// Returns the body of an order with one line.
pub fn order(user: i64, product: i64, quantity: u32) -> Value {
    json!({"userId": user, "products": [{"productId": product, "quantity": quantity}]})
}
