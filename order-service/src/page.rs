//! `GET /`: a page that shows the three services and places orders.
//!
//! It is one document, embedded in the binary. This module adds what only the process knows: the addresses of the
//! peers, the issuer while sign-in is on, and a nonce per response.

use axum::http::header;
use axum::response::Html;
use axum::routing::{self, MethodRouter};
use chassis::auth::Authenticator;
use url::Url;
use uuid::Uuid;

use crate::placement::Placement;

/// Has an empty `<style>`, an empty `<script>`, and a `<meta>` for each peer and for the issuer.
const HTML: &str = include_str!("../page/index.html");
const STYLE: &str = include_str!("../page/page.css");
const SCRIPT: &str = concat!(include_str!("../page/requests.js"), include_str!("../page/page.js"));

/// Returns the handler of the page.
pub(crate) fn route(
    placement: &Placement,
    public_urls: &[Option<Url>],
    authenticator: Option<&Authenticator>,
) -> MethodRouter {
    let issuer = authenticator.and_then(|authenticator| Url::parse(authenticator.issuer()).ok());
    let page = document(placement, public_urls, issuer.as_ref());
    routing::get(async move || {
        let nonce = Uuid::new_v4().simple().to_string();
        // The query of the page may name any service to connect to, but nothing from another origin may run or style.
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
             connect-src http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        let headers = [(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-store".to_owned())];
        (headers, Html(page.replace("nonce=\"\"", &format!("nonce=\"{nonce}\""))))
    })
}

/// Returns the document with style, script, the addresses of the peers for browsers, and the issuer, still without a nonce.
fn document(placement: &Placement, public_urls: &[Option<Url>], issuer: Option<&Url>) -> String {
    let inline = |page: String, element: &str, content: &str| {
        let tags = |content: &str| format!("<{element} nonce=\"\">{content}</{element}>");
        page.replace(&tags(""), &tags(content))
    };
    let page = inline(HTML.to_owned(), "style", STYLE);
    let page = inline(page, "script", SCRIPT);
    let peers = placement.peers();
    let peers =
        peers.iter().zip(public_urls).map(|(peer, public)| (peer.name(), public.as_ref().unwrap_or(peer.base())));
    peers.chain(issuer.map(|issuer| ("sign-in", issuer))).fold(page, |page, (name, url)| {
        // A URL has no quotes or angle brackets, they are percent-encoded, so it needs no escaping.
        let meta = |content: &str| format!("<meta name=\"{name}\" content=\"{content}\">");
        page.replace(&meta(""), &meta(url.as_str()))
    })
}
