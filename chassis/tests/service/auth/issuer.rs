//! The keys of an issuer, fetched over HTTP.

use super::*;

/// An issuer over HTTP. Its key set is `jwks`, and it counts its fetches.
struct HttpIssuer {
    url: String,
    fetches: Arc<AtomicUsize>,
}

impl HttpIssuer {
    async fn new<R: IntoResponse + 'static>(jwks: impl Fn() -> R + Clone + Send + Sync + 'static) -> Self {
        let fetches = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&fetches);
        let keys = async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            jwks()
        };
        let router = Router::new().route("/keys", get(keys));
        let url = stub_peer(router).await.to_string().trim_end_matches('/').to_owned();
        Self { url, fetches }
    }

    fn client(&self) -> Client {
        let jwks_url = Some(format!("{}/keys", self.url).parse().expect("a fixture"));
        let auth = AuthSettings { jwks_url, ..auth_settings() };
        Client::new(app(
            Authenticator::with_clock("sample", &auth, None, Vec::new(), || NOW).expect("a fixture"),
            &settings(),
        ))
    }
}

#[tokio::test]
async fn fetches_the_keys_of_the_issuer() {
    let key = Arc::new(TokenKey::new("1"));
    let jwks = json!({"keys": [{"kty": "unknown"}, key.jwk()]}).to_string();
    let issuer = HttpIssuer::new(move || jwks.clone()).await;
    let client = issuer.client();
    assert_eq!(status(&client, &key.token(&claims())).await, 200);
    for n in 0..200 {
        let unknown = TokenKey::new(&n.to_string());
        assert_eq!(status(&client, &unknown.token(&claims())).await, 401);
    }
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 1, "the next fetch is due in 30 s");
}

#[tokio::test]
async fn finds_the_keys_by_the_discovery_document_of_the_right_issuer_only() {
    for (named, expected) in [(None, 200), (Some("https://another.example"), 503)] {
        let key = TokenKey::new("1");
        let (jwks, url) = (json!({"keys": [key.jwk()]}).to_string(), Arc::<std::sync::OnceLock<String>>::default());
        let address = Arc::clone(&url);
        let discovery = async move || {
            let own = address.get().expect("it was set").clone();
            json!({"issuer": named.map_or(own.clone(), str::to_owned), "jwks_uri": format!("{own}/keys")}).to_string()
        };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(async move || jwks));
        let base = stub_peer(router).await.to_string().trim_end_matches('/').to_owned();
        url.set(base.clone()).expect("a fixture");
        let auth = AuthSettings { issuer: Some(base.clone()), ..auth_settings() };
        let authenticator = Authenticator::with_clock("sample", &auth, None, Vec::new(), || NOW).expect("a fixture");
        let client = Client::new(app(authenticator, &settings()));
        let token = key.token(&claims_with(json!({"iss": base})));
        assert_eq!(status(&client, &token).await, expected, "{named:?}");
    }
}

#[tokio::test]
async fn is_unavailable_without_keys_and_works_when_the_issuer_is_back() {
    let key = Arc::new(TokenKey::new("1"));
    let good = json!({"keys": [key.jwk()]}).to_string();
    let many = json!({"keys": vec![key.jwk(); 65]}).to_string();
    let huge = json!({"keys": [key.jwk()], "padding": "x".repeat(70_000)}).to_string();
    type Answer = Box<dyn Fn() -> axum::response::Response + Send + Sync>;
    let answers: Vec<(&str, Answer)> = vec![
        ("empty", Box::new(|| String::new().into_response())),
        ("broken", Box::new(|| "{\"keys\": [".into_response())),
        ("no keys", Box::new(|| "{\"keys\": []}".into_response())),
        ("html", Box::new(|| "<html>".into_response())),
        ("500", Box::new(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())),
        ("redirect", Box::new(|| Redirect::temporary("/keys").into_response())),
        ("65 keys", Box::new(move || many.clone().into_response())),
        ("70 kB", Box::new(move || huge.clone().into_response())),
    ];
    for (name, bad) in answers {
        let (calls, bad, good) = (Arc::new(AtomicU64::new(0)), Arc::new(bad), good.clone());
        let issuer = HttpIssuer::new(move || match calls.fetch_add(1, Ordering::SeqCst) {
            0 => bad(),
            _ => good.clone().into_response(),
        })
        .await;
        let client = issuer.client();
        let token = key.token(&claims());
        let response =
            client.request("GET", "/caller").header("authorization", &format!("Bearer {token}")).send().await;
        assert_eq!(response.status, 503, "{name}");
        assert_eq!(response.json()["type"], "urn:problem-type:keys-unavailable", "{name}");
        assert!(response.headers.contains_key("retry-after"), "{name}");
        assert_eq!(client.get("/public").await.status, 200, "{name}");
        assert_eq!(client.get("/readyz").await.status, 200, "{name}");
        eventually(name, async || status(&client, &token).await == StatusCode::OK).await;
    }
}
