//! The default settings.

use chassis::config::defaults;
use order_service::config::Config;

#[test]
fn has_the_defaults_of_the_contract() {
    let config: Config = defaults();
    assert_eq!(config.port, 3003);
    assert_eq!(config.user_service_url.as_str(), "http://127.0.0.1:3001/");
    assert_eq!(config.product_service_url.as_str(), "http://127.0.0.1:3002/");
    assert_eq!((config.order_timeout.as_secs(), config.reconcile.as_secs()), (5, 1));
    assert!(config.peers.timeout < config.order_timeout, "after one slow call there is time for a retry");
    assert!(config.order_timeout < config.settings.request_timeout, "the order times out before its request");
}
