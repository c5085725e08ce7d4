//! The one stack of middleware: everything that happens to every request, outermost first.
//!
//! Compression is tower-http's. All the rest is one function around the router, [`Pipeline::handle`], to be read
//! from top to bottom; as a stack of separate layers the same steps cost several times as much a request.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use axum::response::IntoResponse;
use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{self, Instant};
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::compression::predicate::SizeAbove;
use tower_http::compression::{CompressionBody, CompressionLayer};
use tracing::Instrument;

use crate::config::Settings;
use crate::context::{RequestContext, X_REQUEST_ID};
use crate::http::access_log::Access;
use crate::http::cors::{self, Cors};
use crate::http::health::Draining;
use crate::problem::{HEADERS_TOO_LARGE, INVALID_REQUEST, OVERLOADED, PAYLOAD_TOO_LARGE, Problem, REQUEST_TIMEOUT};
use crate::telemetry::metrics::{Metrics, Route};
use crate::telemetry::traces;

/// Answers of at least so many bytes are compressed for clients that ask for it.
const COMPRESS_FROM: u64 = 1024;

/// What is answered however much there is to do: else a busy service would look like a dead one.
const NEVER_SHED: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The error of a body: hyper's, or a test's that cannot fail.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where requests come in: what every one of them needs on its way.
pub(crate) struct Pipeline {
    pub(crate) router: Router,
    pub(crate) routes: Routes,
    pub(crate) cors: Cors,
    pub(crate) metrics: Metrics,
    pub(crate) access: Access,
    pub(crate) draining: Draining,
    pub(crate) settings: Settings,
    /// One place for each request in work, all routes together.
    pub(crate) places: Semaphore,
    /// The requests that have arrived whole and are not answered yet, for the end of the service to wait for.
    pub(crate) running: TaskTracker,
}

/// The whole stack as one service, for requests with any kind of body.
pub(crate) fn stack<B>(
    pipeline: Arc<Pipeline>,
) -> impl Service<
    Request<B>,
    Response = Response<CompressionBody<Body>>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<CompressionBody<Body>>, Infallible>> + Send,
> + Clone
where
    B: http_body::Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    ServiceBuilder::new()
        .map_request(accept_plain)
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESS_FROM)))
        .service(service_fn(move |request| {
            let pipeline = Arc::clone(&pipeline);
            // Boxed, since a connection has room for the whole future of a request, also while there is none.
            Box::pin(async move { Ok(pipeline.handle(request).await) })
        }))
}

/// Has every client take an answer that is not compressed, at worst. tower-http would else turn the answer for one that
/// refuses it into a 406, when the thing is done already.
fn accept_plain<B>(mut request: Request<B>) -> Request<B> {
    if let Some(accepted) = request.headers_mut().get_mut(header::ACCEPT_ENCODING) {
        let with_plain = [b"identity;q=0.001, ", accepted.as_bytes()].concat();
        *accepted = HeaderValue::from_bytes(&with_plain).unwrap_or(HeaderValue::from_static("identity"));
    }
    request
}

impl Pipeline {
    /// One request from its head to its answer.
    async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data: Buf, Error: Into<BoxError>>,
    {
        let route = self.routes.of(request.uri());
        let arrived = Instant::now();
        let context = RequestContext::received_at(arrived, request.headers(), self.settings.request_timeout);
        let allowed = self.cors.allowed(request.headers());
        let span = traces::server_span(request.method(), &route.template, request.uri(), || context.remote_parent());
        let context = context.with_span(&span);
        let record = self.access.begin(request.method(), route, &context, arrived);
        let mut response = match self.answer(request, &context, arrived).instrument(span.clone()).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        let problem = take_problem(&mut response);
        if let Some(problem) = &problem {
            response = problem.render(context.request_id());
        }
        self.cors.mark(response.headers_mut(), allowed);
        response.headers_mut().insert(X_REQUEST_ID, context.request_id_header());
        if self.draining.has_begun() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        traces::record_status(&span, response.status(), 500);
        record.end(response.status(), problem.as_ref());
        response
    }

    /// The request is checked and read whole, within its limits; then the router has its time for it.
    async fn answer<B>(
        &self,
        request: Request<B>,
        context: &RequestContext,
        arrived: Instant,
    ) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data: Buf, Error: Into<BoxError>>,
    {
        let (mut head, body) = request.into_parts();
        check_head(&head.uri, &head.headers, self.settings.max_header_bytes as usize)?;
        if cors::is_preflight(&head.method, &head.headers) {
            return Ok(cors::preflight());
        }
        let (body, began) = match body.is_end_stream() {
            true => (Body::empty(), arrived),
            false => (Body::from(self.read_body(&head, body).await?), Instant::now()),
        };
        let deadline = context.deadline_after(began - arrived); // a body has a limit of its own
        // Only now: a slow body holds no place.
        let _place = self.place_for(&head.uri)?;
        let _running = self.running.token();
        // A handler that runs into its deadline has a tenth of the time left to put things in order and to say so.
        head.extensions.insert(context.with_deadline(deadline - deadline.saturating_duration_since(began) / 10));

        let routed = self.router.clone().call(Request::from_parts(head, body));
        // A panic costs its own request and nothing else: what the handler held is dropped with it, and the stores'
        // locks are never held across anything that can panic half-way through a change.
        let guarded = AssertUnwindSafe(routed).catch_unwind();
        match time::timeout_at(deadline, guarded).await {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(panic)) => Err(Problem::internal(format!("panic: {}", panic_message(&*panic)))),
            Err(_) => Err(Problem::new(&OVERLOADED, "It took too long")),
        }
    }

    /// A place among the requests in work. Without one a request is refused at once: to queue it would help nobody, for
    /// by the time it is served its client has gone.
    fn place_for(&self, uri: &Uri) -> Result<Option<SemaphorePermit<'_>>, Problem> {
        if NEVER_SHED.contains(&uri.path()) {
            return Ok(None);
        }
        self.places.try_acquire().map(Some).map_err(|_| {
            self.metrics.shed.inc();
            Problem::new(&OVERLOADED, "Too many requests at once")
        })
    }

    async fn read_body<B>(&self, head: &Parts, body: B) -> Result<Bytes, Problem>
    where
        B: http_body::Body<Data: Buf, Error: Into<BoxError>>,
    {
        let limit = self.settings.max_body_bytes as usize;
        let too_large = || Problem::new(&PAYLOAD_TOO_LARGE, format!("The body is larger than {limit} bytes"));
        let announced = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > limit as u64) {
            if !head.headers.contains_key(header::EXPECT) {
                discard(body).await;
            }
            return Err(too_large());
        }
        let mut body = pin!(body);
        match time::timeout(self.settings.body_timeout, Limited::new(body.as_mut(), limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                discard(body).await;
                Err(too_large())
            }
            Ok(Err(error)) => Err(Problem::new(&INVALID_REQUEST, "The body could not be read").caused_by(error)),
            Err(_) => Err(Problem::new(&REQUEST_TIMEOUT, "The body did not arrive in time")),
        }
    }
}

/// Reads on for a little while: a client that is still sending would not see the answer in time, for a connection closed
/// with something unread in it is reset.
async fn discard<B: http_body::Body<Data: Buf>>(body: B) {
    const ENOUGH: usize = 1 << 20;
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut body = pin!(body);
    let read = async {
        let mut left = ENOUGH;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Buf::remaining)) else { return };
            left = rest;
        }
    };
    let _ = time::timeout(PATIENCE, read).await; // all of it or not, the answer is the same
}

/// What is wrong with a request before anyone looks at what it asks for.
fn check_head(uri: &Uri, headers: &HeaderMap, max_bytes: usize) -> Result<(), Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none());
    if !is_host(host.ok_or_else(|| Problem::new(&INVALID_REQUEST, "A request has one Host header"))?) {
        return Err(Problem::new(&INVALID_REQUEST, "The Host header names no host"));
    }
    // hyper takes every list that ends in `chunked`, and leaves what the others have made of the body as it is.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter().enumerate();
    if codings.any(|(at, coding)| at > 0 || !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Problem::new(&INVALID_REQUEST, "The only transfer coding taken is chunked, once"));
    }
    let line = |(name, value): (&header::HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    let bytes = uri.path().len() + uri.query().map_or(0, str::len) + headers.iter().map(line).sum::<usize>();
    if bytes > max_bytes {
        return Err(Problem::new(&HEADERS_TOO_LARGE, format!("The header is larger than {max_bytes} bytes")));
    }
    Ok(())
}

/// Whether it is made of what a host and a port are made of, RFC 3986. (No user, for one: that is how one host is made to
/// look like another.)
fn is_host(value: &HeaderValue) -> bool {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    !value.is_empty() && value.as_bytes().iter().all(known)
}

/// The problem that a response stands for. Whatever fails without one was refused by a library, in its own words.
fn take_problem(response: &mut Response<Body>) -> Option<Problem> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let allow = response.headers().get(header::ALLOW).cloned();
    response.extensions_mut().remove().or_else(|| Some(Problem::from_bare(status, allow)))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// The routes by their templates (`/users/{id}`), under which requests are counted and logged.
pub(crate) struct Routes {
    known: matchit::Router<Route>,
    none: Route,
}

impl Routes {
    /// From a list of templates. One that cannot stand beside the others is left out.
    pub(crate) fn new(templates: impl IntoIterator<Item = String>) -> Self {
        let mut all = Self { known: matchit::Router::new(), none: Route::new("(none)") };
        templates.into_iter().for_each(|template| all.add(&template));
        all
    }

    pub(crate) fn add(&mut self, template: &str) {
        let _ = self.known.insert(template, Route::new(template));
    }

    fn of(&self, uri: &Uri) -> &Route {
        self.known.at(uri.path()).map_or(&self.none, |found| found.value)
    }
}
