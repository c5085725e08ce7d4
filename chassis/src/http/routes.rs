//! The routes of a service by their templates (`/things/{id}`): what the pipeline must know before it calls the router.

use axum::http::request::Parts;
use axum::http::{Method, Uri};
use utoipa::openapi::OpenApi;

use crate::auth::{self, Grant, Rule};
use crate::http::{body, openapi};
use crate::problem::{NOT_FOUND, Problem};
use crate::telemetry::PROBES;
use crate::telemetry::metrics::Route;

/// The paths that are not in the document.
const UNDOCUMENTED: [&str; 6] =
    ["/metrics", "/openapi.json", "/docs", "/docs/", "/docs/{*file}", auth::RESOURCE_METADATA];

/// The table of all routes.
pub(crate) struct Routes {
    by_template: matchit::Router<RouteEntry>,
    unmatched: RouteEntry,
}

pub(crate) struct RouteEntry {
    /// The template, for metrics, spans and log lines.
    pub(crate) route: Route,
    /// Whether all its calls need no token, and may have a query.
    is_public: bool,
    calls: Vec<openapi::Call>,
}

impl Routes {
    /// Returns the table of the documented calls, at the root and under `/api`, and of the other paths.
    pub(crate) fn new(document: &OpenApi, rules: &'static [Rule]) -> Self {
        let unmatched = RouteEntry { route: Route::new("(none)"), is_public: false, calls: Vec::new() };
        let mut table = Self { by_template: matchit::Router::new(), unmatched };
        UNDOCUMENTED.iter().for_each(|path| table.add_public(path));
        for (path, calls) in openapi::calls(document, rules) {
            if PROBES.contains(&path.as_str()) {
                table.add_public(&path); // load balancers may add a query
                continue;
            }
            table.add(&format!("{}{path}", openapi::API), false, calls.clone());
            table.add(&path, false, calls);
        }
        table
    }

    /// Adds a path whose calls need no token.
    pub(crate) fn add_public(&mut self, template: &str) {
        self.add(template, true, Vec::new());
    }

    fn add(&mut self, template: &str, is_public: bool, calls: Vec<openapi::Call>) {
        // Fails only if the template conflicts with an earlier one.
        let _ = self.by_template.insert(template, RouteEntry { route: Route::new(template), is_public, calls });
    }

    pub(crate) fn find(&self, uri: &Uri) -> &RouteEntry {
        self.by_template.at(uri.path()).map_or(&self.unmatched, |found| found.value)
    }
}

impl RouteEntry {
    /// Returns who may make the call with this method. A method that is not documented gets 405 from the router.
    ///
    /// # Errors
    /// 404 for a path that is in no table. The router would answer the same, but must not be asked.
    pub(crate) fn grants(&self, method: &Method) -> Result<&'static [Grant], Problem> {
        match self.call(method) {
            Some(call) => Ok(call.grants),
            None if self.is_public || !self.calls.is_empty() => Ok(&[Grant::Everybody]),
            None => Err(Problem::new(&NOT_FOUND, NOT_FOUND.title)),
        }
    }

    /// Rejects a query if the call has no query parameters. Every other call checks its own query.
    pub(crate) fn check_query(&self, Parts { method, uri, .. }: &Parts) -> Result<(), Problem> {
        match (uri.query(), self.call(method)) {
            (Some(query), Some(call)) if !call.has_query => body::reject_all(query),
            _ => Ok(()),
        }
    }

    fn call(&self, method: &Method) -> Option<&openapi::Call> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.calls.iter().find(|call| call.method == method)
    }
}
