//! The process: signals, settings, telemetry, store, peers, app, reconciler, serve.

use chassis::auth::{Authenticator, ServiceTokens, SigningKey};
use chassis::{Signals, telemetry};
use mimalloc::MiMalloc;
use order_service::config::Config;
use order_service::peers::{PRODUCT_SERVICE, Products, USER_SERVICE, Users};
use order_service::placement::Placement;
use order_service::{AppState, SERVICE, app, reconciler, store};

/// A request makes about 30 allocations; the system allocator takes nearly twice as long for them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() {
    chassis::exit(start().await)
}

async fn start() -> Result<(), String> {
    let signals = Signals::catch()?;
    let config: Config = chassis::config::parse();
    if config.settings.health {
        return chassis::check_health(SERVICE, &config.settings, config.port).await;
    }
    let telemetry = telemetry::start(SERVICE, &config.settings)?;
    let (store, storage) = store::open(&config.database)?;
    if config.database.migrate_only {
        return chassis::migrate(&storage, signals).await;
    }
    let authenticator = Authenticator::new(SERVICE, &config.settings.auth, None, Vec::new())?;
    let tokens = |audience| -> Result<Option<ServiceTokens>, String> {
        let (Some(_), file) = (&authenticator, &config.service_key_file) else { return Ok(None) };
        let file = file
            .as_ref()
            .ok_or("SERVICE_KEY_FILE is needed with AUTH_ISSUER: the other services accept only signed calls")?;
        Ok(Some(ServiceTokens::new(SigningKey::from_file(file)?, SERVICE, audience)))
    };
    let (users, products) = (&config.user_service_url, &config.product_service_url);
    let users = Users::new(users.clone(), &config.peers, tokens(USER_SERVICE)?).map_err(|error| error.to_string())?;
    let products =
        Products::new(products.clone(), &config.peers, tokens(PRODUCT_SERVICE)?).map_err(|error| error.to_string())?;
    let max_concurrent = config.settings.max_in_flight as usize;
    let placement = Placement::new(store, users, products, config.order_timeout, max_concurrent);
    let state = AppState::new(placement.clone())
        .with_sign_in(authenticator)
        .with_public_urls([config.public_user_service_url, config.public_product_service_url]);
    let app = app(state, &config.settings);
    app.spawn_while_serving(&storage, reconciler::run(placement.clone(), config.reconcile));
    let (users, products) = (&config.user_service_url, &config.product_service_url);
    let about = format!("store: {storage}, peers: user-service {users}, product-service {products}");
    let time_left = chassis::run(SERVICE, config.port, &about, &app, &storage, signals).await?;
    placement.finish(time_left).await;
    telemetry.end().await;
    Ok(())
}
