//! The three services together, each told where the others are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::launch::Launch;
use crate::proxy::Proxy;
use crate::service::{Service, Signal};

/// The service that owns the users.
pub const USERS: &str = "user-service";
/// The service that owns the products and their stock.
pub const PRODUCTS: &str = "product-service";
/// The service that owns the orders.
pub const ORDERS: &str = "order-service";

const USERS_URL: &str = "USER_SERVICE_URL";
const PRODUCTS_URL: &str = "PRODUCT_SERVICE_URL";

/// How long a service may take to finish what it is doing: its own limit of ten seconds, and some.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The three services, running.
pub struct System {
    /// user-service.
    pub users: Service,
    /// product-service, which calls users.
    pub products: Service,
    /// order-service, which calls both.
    pub orders: Service,
}

/// The three ways between the services, each through a proxy.
pub struct Links {
    /// From order-service to user-service.
    pub orders_to_users: Proxy,
    /// From order-service to product-service.
    pub orders_to_products: Proxy,
    /// From product-service to user-service.
    pub products_to_users: Proxy,
}

impl System {
    /// Starts the three at free ports, in memory, with what they are seeded with.
    ///
    /// # Panics
    /// If one does not start.
    pub async fn start() -> Self {
        Self::start_as(|launch| launch).await.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Starts the three, each as `prepare` will have it.
    ///
    /// # Errors
    /// If one does not start; those before it are stopped.
    pub async fn start_as(prepare: impl Fn(Launch) -> Launch) -> Result<Self, String> {
        let users = Service::start(prepare(Launch::of(USERS))).await?;
        let launch = prepare(Launch::of(PRODUCTS)).env(USERS_URL, users.url());
        let products = Service::start(launch).await?;
        let launch = prepare(Launch::of(ORDERS)).env(USERS_URL, users.url());
        let orders = Service::start(launch.env(PRODUCTS_URL, products.url())).await?;
        Ok(Self { users, products, orders })
    }

    /// The same, with a proxy on each way between them. What their faults leave to chance comes from `seed`.
    ///
    /// # Errors
    /// If one does not start; those before it are stopped.
    pub async fn start_linked(seed: u64, prepare: impl Fn(Launch) -> Launch) -> Result<(Self, Links), String> {
        let users = Service::start(prepare(Launch::of(USERS))).await?;
        let products_to_users = Proxy::before(users.address(), seed).await;
        let launch = prepare(Launch::of(PRODUCTS)).env(USERS_URL, products_to_users.url());
        let products = Service::start(launch).await?;
        let orders_to_users = Proxy::before(users.address(), seed.wrapping_add(1)).await;
        let orders_to_products = Proxy::before(products.address(), seed.wrapping_add(2)).await;
        let launch = prepare(Launch::of(ORDERS)).env(USERS_URL, orders_to_users.url());
        let orders = Service::start(launch.env(PRODUCTS_URL, orders_to_products.url())).await?;
        Ok((Self { users, products, orders }, Links { orders_to_users, orders_to_products, products_to_users }))
    }

    /// Waits until one of them ends by itself, and says which.
    pub async fn one_ended(&mut self) -> String {
        tokio::select! {
            status = self.users.ended() => format!("{USERS} has ended, {status}"),
            status = self.products.ended() => format!("{PRODUCTS} has ended, {status}"),
            status = self.orders.ended() => format!("{ORDERS} has ended, {status}"),
        }
    }

    /// Stops those that still run, callers first, so that what runs can be finished.
    pub async fn stop(self) {
        for mut service in [self.orders, self.products, self.users] {
            if service.is_running() {
                service.signal(Signal::Interrupt).await;
                service.ends_within(STOP_LIMIT).await;
            }
        }
    }

    /// The processor time that the three have used so far, in seconds, by their own count.
    ///
    /// # Panics
    /// If they do not tell.
    pub async fn processor_seconds(&self) -> f64 {
        let mut sum = 0.0;
        for service in [&self.users, &self.products, &self.orders] {
            let metrics = service.get("/metrics").await.expect(200).text;
            let told = metrics.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
            sum += told.and_then(|told| told.parse::<f64>().ok()).expect("Linux tells it");
        }
        sum
    }

    /// Adds a product and answers its id.
    ///
    /// # Panics
    /// If that is refused.
    pub async fn add_product(&self, name: &str, price: f64, stock: i64) -> i64 {
        let product = json!({"name": name, "price": price, "stock": stock});
        let added = self.products.post("/products", product).await.expect(201).json();
        added["id"].as_i64().expect("an id is an integer")
    }

    /// How many units of a product are free to sell.
    ///
    /// # Panics
    /// If there is no such product.
    pub async fn stock(&self, product: i64) -> i64 {
        let shown = self.products.get(&format!("/products/{product}")).await.expect(200).json();
        shown["stock"].as_i64().expect("stock is an integer")
    }
}

/// The body of an order of one line.
pub fn order(user: i64, product: i64, quantity: u32) -> Value {
    json!({"userId": user, "products": [{"productId": product, "quantity": quantity}]})
}
