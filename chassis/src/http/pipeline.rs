//! The middleware that every request passes, outermost first.
//!
//! It is one function around the router, [`Pipeline::handle`], which reads from top to bottom. The same steps as separate tower
//! layers cost several times as much per request.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use axum::response::IntoResponse;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;
use tower::{Service, service_fn};
use tracing::Instrument;

use crate::auth::{self, Authenticator, Caller, Grant};
use crate::config::Settings;
use crate::context::{RequestContext, X_REQUEST_ID};
use crate::http::access_log::AccessLog;
use crate::http::client_address::{ClientAddress, client_address};
use crate::http::compression;
use crate::http::conditional;
use crate::http::cors::{self, Cors};
use crate::http::forwarded::Prefix;
use crate::http::health::Draining;
use crate::http::resource_metadata::Origin;
use crate::http::routes::{RouteEntry, Routes};
use crate::problem::{
    DEADLINE_EXCEEDED, HEADERS_TOO_LARGE, INVALID_REQUEST, NOT_FOUND, OVERLOADED, PAYLOAD_TOO_LARGE, Problem,
    REQUEST_TIMEOUT, TIMED_OUT,
};
use crate::telemetry::metrics::{Metrics, Route};
use crate::telemetry::{PROBES, traces};

/// The error of a request body: hyper's, or that of a body made by a test.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The router of a service, and everything that its requests pass before and after it.
pub(crate) struct Pipeline {
    pub(crate) router: Router,
    pub(crate) routes: Routes,
    /// `None` while sign-in is off.
    pub(crate) authenticator: Option<Authenticator>,
    pub(crate) cors: Cors,
    pub(crate) metrics: Metrics,
    pub(crate) access_log: AccessLog,
    pub(crate) draining: Draining,
    pub(crate) settings: Settings,
    /// One permit for each request in a handler, shared by all routes.
    pub(crate) permits: Semaphore,
    /// Requests whose body was read and whose response is not finished. Shutdown waits for them.
    pub(crate) running: TaskTracker,
}

/// Returns the whole pipeline as one tower service, for requests from this peer with any type of body. Without a connection
/// there is no peer.
pub(crate) fn service<B>(
    pipeline: Arc<Pipeline>,
    peer: Option<SocketAddr>,
) -> impl Service<
    Request<B>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
where
    B: http_body::Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    service_fn(move |request| {
        let pipeline = Arc::clone(&pipeline);
        // Boxed, because an idle connection would otherwise reserve memory for the whole future of a request.
        boxed(|| async move { Ok(pipeline.handle(request, peer).await) })
    })
}

/// Builds a future on the heap. `Box::pin` would build it on the stack and copy all of it, 3 KB per request, although most of it
/// is not in use yet.
fn boxed<F: Future>(new: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), new()))
}

impl Pipeline {
    /// Handles one request, from its head to its response.
    async fn handle<B>(&self, mut request: Request<B>, peer: Option<SocketAddr>) -> Response<Body>
    where
        B: http_body::Body<Data: Buf, Error: Into<BoxError>>,
    {
        let received_at = Instant::now();
        let entry = self.routes.find(request.uri());
        let route = &entry.route;
        let cors_headers = self.cors.response_headers(request.method(), request.headers()).await;
        let mut context = RequestContext::received_at(received_at, request.headers(), self.settings.request_timeout);
        let span = traces::server_span(request.method(), &route.template, request.uri(), || context.remote_parent());
        context = context.with_span(&span);
        let prefix = Prefix::from_headers(request.headers());
        let accepted_codings = compression::accepted_codings(request.headers());
        let has_if_match = request.headers().contains_key(header::IF_MATCH);
        let origin = self.authenticator.as_ref().map(|_| Origin::from_headers(request.headers()));
        let client = peer.map(|peer| client_address(peer, request.headers(), &self.settings.trusted_proxies));
        if self.authenticator.is_some() {
            client.map(|client| request.extensions_mut().insert(ClientAddress(client)));
        }
        let log = self.access_log.start(request.method(), route, &context, client, received_at);

        // Pinned, because a future that gets another one by value stores it twice. The pinned future is in no variable, so its
        // memory is free again before the response is compressed.
        let answered = pin!(self.answer(request, entry, &context, received_at)).instrument(span.clone()).await;
        let mut response = answered.unwrap_or_else(IntoResponse::into_response);
        let mut problem = take_problem(&mut response);
        if has_if_match && is_missing_entity(problem.as_ref(), route) {
            problem = Some(conditional::failed("It does not exist")); // in every service and for every method
        }
        if let (Some(origin), Some(problem)) = (&origin, &mut problem) {
            origin.add_metadata_address(problem, prefix.as_ref());
        }
        if let Some(problem) = &problem {
            response = problem.render(context.request_id());
        }

        if let Some(prefix) = prefix {
            prefix.apply(response.headers_mut());
        }
        for (name, value) in cors_headers.iter() {
            response.headers_mut().append(name, value.clone()); // `Vary` may have a value already
        }
        response.headers_mut().insert(X_REQUEST_ID, context.request_id_header());
        if self.draining.has_begun() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let is_failure = problem.as_ref().map_or(response.status().is_server_error(), Problem::is_failure);
        traces::record_status(&span, response.status(), if is_failure { 500 } else { u16::MAX });
        log.finish(response.status(), problem.as_ref());
        compression::compress(response, accepted_codings).await
    }

    /// Checks the head, reads the body, acquires a permit and calls the router.
    async fn answer<B>(
        &self,
        request: Request<B>,
        entry: &RouteEntry,
        context: &RequestContext,
        received_at: Instant,
    ) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data: Buf, Error: Into<BoxError>>,
    {
        let (mut head, body) = request.into_parts();
        check_head(&head, self.settings.max_header_bytes as usize)?;
        if cors::is_preflight(&head.method, &head.headers) {
            return Ok(Response::default());
        }
        if let Some(authenticator) = &self.authenticator {
            match authorize(authenticator, entry, &head, context).await {
                Ok(caller) => head.extensions.insert(caller),
                Err(problem) => {
                    if !head.headers.contains_key(header::EXPECT) {
                        discard(body).await;
                    }
                    return Err(problem);
                }
            };
        }

        let (body, complete_at) = match body.is_end_stream() {
            true => (Body::empty(), received_at),
            false => (Body::from(self.read_body(&head, body, context).await?), Instant::now()),
        };
        entry.check_query(&head)?;
        if context.caller_deadline_has_passed() {
            return Err(deadline_exceeded());
        }
        // After the body, so that a slow body holds no permit.
        let _permit = self.acquire_permit(&head.uri)?;
        let _running = self.running.token();

        // The body has a time limit of its own, so reading it does not shorten the handler's. The handler's own calls end when
        // 90 % of its time are over. Then it has 5 % for its error handling. The last 5 % are for sending the response to a
        // client whose own timeout is the same.
        let deadline = context.deadline_after(complete_at - received_at);
        let reserve = deadline.saturating_duration_since(complete_at) / 10;
        let context = context.with_deadline(deadline - reserve);
        head.extensions.insert(context.clone());
        let response = self.call_router(Request::from_parts(head, body), &context, reserve / 2).await;
        blame_caller_for_timeout(response, &context)
    }

    /// Calls the router, and waits until the deadline of `context` and `grace` are over.
    ///
    /// A panic becomes a 500 and affects no other request. What the handler owns is dropped, and no store can panic in the
    /// middle of a change while it holds a lock.
    async fn call_router(
        &self,
        request: Request<Body>,
        context: &RequestContext,
        grace: Duration,
    ) -> Result<Response<Body>, Problem> {
        let response = pin!(AssertUnwindSafe(self.router.clone().call(request)).catch_unwind());
        match context.with_grace(grace, response).await {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(panic)) => Err(Problem::internal(format!("panic: {}", panic_message(&*panic)))),
            Err(_) => Err(Problem::new(&TIMED_OUT, "It took too long. It may have been done all the same")),
        }
    }

    /// Acquires a permit, if the path needs one. Without a free permit the request is rejected immediately: in a queue it
    /// would wait until its client has given up.
    fn acquire_permit(&self, uri: &Uri) -> Result<Option<SemaphorePermit<'_>>, Problem> {
        if PROBES.contains(&uri.path()) {
            return Ok(None);
        }
        self.permits.try_acquire().map(Some).map_err(|_| {
            self.metrics.shed.inc();
            Problem::new(&OVERLOADED, "Too many requests at once")
        })
    }

    /// Reads the whole body, within its limits of size and time, and within the time that the caller gave.
    async fn read_body<B>(&self, head: &Parts, body: B, context: &RequestContext) -> Result<Bytes, Problem>
    where
        B: http_body::Body<Data: Buf, Error: Into<BoxError>>,
    {
        let limit = self.settings.max_body_bytes as usize;
        let too_large = || Problem::new(&PAYLOAD_TOO_LARGE, format!("The body is larger than {limit} bytes"));
        let declared = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > limit as u64) {
            if !head.headers.contains_key(header::EXPECT) {
                discard(body).await;
            }
            return Err(too_large());
        }
        let mut body = pin!(body);
        let callers_time =
            context.caller_time_left().map(|left| left - left / 20).filter(|left| *left < self.settings.body_timeout);
        let timeout = callers_time.unwrap_or(self.settings.body_timeout);
        match time::timeout(timeout, collect(Limited::new(body.as_mut(), limit))).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                discard(body).await;
                Err(too_large())
            }
            Ok(Err(error)) => Err(Problem::new(&INVALID_REQUEST, "The body could not be read").caused_by(error)),
            Err(_) if callers_time.is_some() => Err(deadline_exceeded()),
            Err(_) => Err(Problem::new(&REQUEST_TIMEOUT, "The body did not arrive in time")),
        }
    }
}

/// Returns the caller of a request, if the table of the service allows the call.
async fn authorize(
    authenticator: &Authenticator,
    entry: &RouteEntry,
    Parts { method, uri, headers, .. }: &Parts,
    context: &RequestContext,
) -> Result<Caller, Problem> {
    let grants = entry.grants(method)?;
    if grants.contains(&Grant::Everybody) {
        return Ok(Caller::Anonymous); // so these calls work with an old token too, and without the issuer
    }
    let caller = authenticator.authenticate(headers, context.time_left()).await?;
    auth::check(grants, &caller, uri.path())?;
    Ok(caller)
}

/// Returns the whole body. Its parts are copied, because each would keep its read buffer of 8 KiB alive, even for one byte.
pub(super) async fn collect<B: http_body::Body<Data: Buf>>(body: B) -> Result<Bytes, B::Error> {
    let mut body = pin!(body);
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(mut data) = frame?.into_data() {
            if whole.is_empty() && body.is_end_stream() {
                return Ok(data.copy_to_bytes(data.remaining())); // the usual case: one part, without a copy
            }
            whole.put(data);
        }
    }
    Ok(whole.freeze())
}

fn deadline_exceeded() -> Problem {
    Problem::new(&DEADLINE_EXCEEDED, "The time that the caller gave is over. Nothing was done")
}

/// Reads and drops the rest of a body, within limits. The operating system resets a connection that is closed with unread
/// data, and a client that is still sending would then lose the response.
async fn discard<B: http_body::Body<Data: Buf>>(body: B) {
    const MAX_BYTES: usize = 1 << 20;
    const MAX_TIME: Duration = Duration::from_secs(1);
    let mut body = pin!(body);
    let read = async {
        let mut remaining = MAX_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = remaining.checked_sub(frame.data_ref().map_or(0, Buf::remaining)) else { return };
            remaining = rest;
        }
    };
    let _ = time::timeout(MAX_TIME, read).await; // the response is the same, whether or not the body ended
}

/// Checks the parts of a request that no handler looks at: host, transfer coding and size of the header.
fn check_head(Parts { version, uri, headers, .. }: &Parts, max_bytes: usize) -> Result<(), Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host) => {}
        (Some(_), None) => return Err(Problem::new(&INVALID_REQUEST, "The Host header names no host")),
        (None, _) if *version < Version::HTTP_11 => {} // load balancers send such health checks
        _ => return Err(Problem::new(&INVALID_REQUEST, "A request has one Host header")),
    }
    // hyper accepts every list that ends in `chunked`, and does not decode the other codings.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter().enumerate();
    if codings.any(|(index, coding)| index > 0 || !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Problem::new(&INVALID_REQUEST, "The only transfer coding accepted is chunked, once"));
    }
    let line = |(name, value): (&header::HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    let bytes = uri.path().len() + uri.query().map_or(0, str::len) + headers.iter().map(line).sum::<usize>();
    if bytes > max_bytes {
        return Err(Problem::new(&HEADERS_TOO_LARGE, format!("The header is larger than {max_bytes} bytes")));
    }
    Ok(())
}

/// Returns whether a value has only characters of a host and a port (RFC 3986). `@` is not among them: `a@b` makes one host
/// look like another.
fn is_host(value: &HeaderValue) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    !value.is_empty() && value.as_bytes().iter().all(allowed)
}

/// Turns a 503 into a 504 if the caller's own deadline has passed: the caller gave too little time.
fn blame_caller_for_timeout(
    response: Result<Response<Body>, Problem>,
    context: &RequestContext,
) -> Result<Response<Body>, Problem> {
    let problem = match &response {
        Ok(response) => response.extensions().get::<Problem>(),
        Err(problem) => Some(problem),
    };
    let unavailable = problem.filter(|problem| problem.kind().status == StatusCode::SERVICE_UNAVAILABLE);
    match unavailable {
        Some(problem) if context.caller_deadline_has_passed() => {
            let detail = "The time that the caller gave is over. It may have been done all the same";
            Err(Problem::new(&DEADLINE_EXCEEDED, detail).caused_by(problem.cause().unwrap_or(problem.kind().slug)))
        }
        _ => response,
    }
}

/// Returns whether a call failed because there is no entity with the id in its path.
fn is_missing_entity(problem: Option<&Problem>, route: &Route) -> bool {
    problem.is_some_and(|problem| problem.kind() == &NOT_FOUND) && route.template.contains('{')
}

/// Returns the problem that a response carries. An error response without one comes from a library, such as axum's 404.
fn take_problem(response: &mut Response<Body>) -> Option<Problem> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let allow = response.headers().get(header::ALLOW).cloned();
    response.extensions_mut().remove().or_else(|| Some(Problem::from_status(status, allow)))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}
