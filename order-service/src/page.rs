//! `GET /`: a page for people, on which the three services can be watched and orders placed, as any client would.
//!
//! All of it is in `page/index.html`. Added here is what only this process knows: where the other two services are.

use axum::http::header;
use axum::response::Html;
use axum::routing::{self, MethodRouter};
use uuid::Uuid;

use crate::placement::Placement;

/// It has a `<meta>` for each peer, and a nonce for what may run and what may style.
const PAGE: &str = include_str!("../page/index.html");

/// The page, told where the peers are. (The characters that HTML has a use for are percent-encoded in a URL.)
pub(crate) fn route(placement: &Placement) -> MethodRouter {
    let page = placement.peers().iter().fold(PAGE.to_owned(), |page, peer| {
        let meta = |content: &str| format!("<meta name=\"{}\" content=\"{content}\">", peer.name());
        page.replace(&meta(""), &meta(peer.base().as_str()))
    });
    routing::get(async move || {
        let nonce = Uuid::new_v4().simple().to_string();
        // It may call any service, since its own address can say where to look; but nothing from elsewhere runs in it.
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
             connect-src http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        let headers = [(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-store".to_owned())];
        (headers, Html(page.replace("nonce=\"\"", &format!("nonce=\"{nonce}\""))))
    })
}
