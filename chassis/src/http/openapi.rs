//! The OpenAPI document of a service (`/openapi.json`), and the page that shows it (`/docs`).
//!
//! Handlers describe only what is special about them. This module adds what holds for every operation: both path
//! families, conditional requests, the errors that any request can cause, and a description of each response.

use std::sync::Arc;

use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Header, InfoBuilder, LicenseBuilder, Object, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    Responses, ServerBuilder, Type,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::auth::{self, Access, Grant, Rule};
use crate::http::extract::accepted_media_types;
use crate::http::forwarded::Prefix;
use crate::problem::{self, Body, FieldError, Problem};

/// The prefix of the second path family, the same API under `/api`.
pub(crate) const API: &str = "/api";

/// Mounts `resources` at the root and under `/api`, mounts `health` at the root only, and documents both.
pub(crate) fn assemble(
    service: &str,
    description: &str,
    resources: OpenApiRouter,
    health: OpenApiRouter,
    access: &Access,
) -> (Router, OpenApi) {
    let (resources, mut document) = resources.split_for_parts();
    document_access(&mut document, access);
    let (health, mut health_document) = health.split_for_parts();
    let server = |url, description| ServerBuilder::new().url(url).description(Some(description)).build();
    for item in health_document.paths.paths.values_mut() {
        item.servers = Some(vec![server("/", "Only here")]);
        // One client may be generated from the documents of all services, so an id is used only once.
        for id in operations(item).filter_map(|operation| operation.operation_id.as_mut()) {
            *id = format!("{id}Of{}", pascal_case(service));
        }
    }
    document.merge(health_document);
    document.servers = Some(vec![server("/", "The root"), server(API, "The same API under /api")]);
    document.info = InfoBuilder::new()
        .title(service)
        .description(Some(description))
        .version(env!("CARGO_PKG_VERSION"))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()))
        .build();
    complete(&mut document);

    let router = resources.clone().nest(API, resources).merge(health).merge(docs(document.clone()));
    (router, document)
}

/// Returns a name in another form: `UserService` for `user-service`.
fn pascal_case(name: &str) -> String {
    name.split('-')
        .flat_map(|word| word[..1].to_uppercase().chars().chain(word[1..].chars()).collect::<Vec<_>>())
        .collect()
}

/// Serves `/openapi.json`, and `/docs` from files inside the binary. The page loads nothing from another host. By default
/// Swagger UI would load a badge from its makers' validator.
fn docs(document: OpenApi) -> Router {
    let document = Arc::new(document);
    let page: Router = SwaggerUi::new("/docs").config(docs_config(DOCUMENT.to_owned())).into();
    page.route(DOCUMENT, get(async move |headers: HeaderMap| served_document(&document, &headers)))
        .route(&format!("/docs/{INITIALIZER}"), get(async |headers: HeaderMap| initializer(&headers)))
}

const DOCUMENT: &str = "/openapi.json";
/// The script that tells Swagger UI which document to load.
const INITIALIZER: &str = "swagger-initializer.js";

fn docs_config(document: String) -> Config<'static> {
    Config::from(document).validator_url("none")
}

/// Returns the document. Behind a proxy that strips a path, its servers are those that clients of the proxy know.
fn served_document(document: &OpenApi, headers: &HeaderMap) -> Json<OpenApi> {
    let mut document = document.clone();
    if let Some(prefix) = Prefix::from_headers(headers) {
        let of_health = document.paths.paths.values_mut().filter_map(|item| item.servers.as_mut());
        for server in of_health.chain(document.servers.as_mut()).flatten() {
            server.url = prefix.before(&server.url);
        }
    }
    Json(document)
}

fn initializer(headers: &HeaderMap) -> Result<impl IntoResponse + use<>, Problem> {
    let prefix = Prefix::from_headers(headers);
    let document = prefix.map_or_else(|| DOCUMENT.to_owned(), |prefix| prefix.before(DOCUMENT));
    let file = utoipa_swagger_ui::serve(INITIALIZER, Arc::new(docs_config(document))).map_err(Problem::internal)?;
    let file = file.ok_or_else(|| Problem::internal("Swagger UI has no initializer"))?;
    Ok(([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()))
}

/// The errors that any request can cause. Each status is listed, and there is no `default` response, so that clients and
/// tests can tell a documented response from an undocumented one.
const COMMON_ERRORS: [StatusCode; 7] = [
    StatusCode::BAD_REQUEST,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

/// The names of the shared error responses.
const PROBLEM: &str = "Problem";
const UNAVAILABLE: &str = "Unavailable";

/// Adds what is the same for every operation.
fn complete(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    components.schemas.insert(Body::name().into(), Body::schema());
    components.schemas.insert(FieldError::name().into(), FieldError::schema());
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(Body::name()))).build();
    let problem = ResponseBuilder::new()
        .description("What went wrong: `type` says which kind, `errors` which fields are to blame")
        .content(problem::CONTENT_TYPE, body)
        .build();
    let mut unavailable = problem.clone();
    unavailable
        .headers
        .insert("retry-after".to_owned(), required_header("Seconds after which to try again", Type::Integer));
    components.responses.insert(PROBLEM.to_owned(), problem.into());
    components.responses.insert(UNAVAILABLE.to_owned(), unavailable.into());

    for operation in document.paths.paths.values_mut().filter_map(|item| item.patch.as_mut()) {
        complete_patch(operation);
    }
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        let media_type = operation.request_body.is_some().then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        for status in COMMON_ERRORS.into_iter().chain(media_type) {
            operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(|| Response::new("").into());
        }
        complete_conditional(operation);
        complete_responses(&mut operation.responses);
    }
}

/// Documents who may make each call of a service: the scheme, `security`, 401 and 403. While sign-in is off, a token is optional.
///
/// # Panics
/// If a call has no rule, or a rule has no call. So no test can start such a service.
fn document_access(document: &mut OpenApi, access: &Access) {
    const SCHEME: &str = "bearer";
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    document.components.get_or_insert_default().add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    let mut documented = 0;
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in methods(item) {
            let grants = auth::grants(access.rules, method.as_str(), path);
            assert!(!grants.is_empty(), "{method} {path} has no rule");
            documented += 1;
            let callers = grants.iter().map(Grant::to_string).collect::<Vec<_>>().join(", ");
            let text = operation.description.take().unwrap_or_default();
            operation.description =
                Some(format!("{text}\n\nWhile sign-in is on, allowed to: {callers}.").trim_start().to_owned());
            if grants.contains(&Grant::Everybody) {
                continue;
            }
            let required = SecurityRequirement::new(SCHEME, [""; 0]);
            let optional = access.authenticator.is_none().then(SecurityRequirement::default);
            operation.security = Some([required].into_iter().chain(optional).collect());
            for (status, why) in
                [(StatusCode::UNAUTHORIZED, "`unauthenticated`"), (StatusCode::FORBIDDEN, "`insufficient-scope`")]
            {
                let response = Response::new(format!("{why}, only while sign-in is on")).into();
                operation.responses.responses.entry(status.as_str().to_owned()).or_insert(response);
            }
        }
    }
    assert_eq!(documented, access.rules.len(), "each rule is for one call");
}

/// Documents every accepted media type of the body of a PATCH.
fn complete_patch(operation: &mut Operation) {
    let Some(RefOr::T(body)) = &mut operation.request_body else { return };
    let Some(content) = body.content.values().next().cloned() else { return };
    let media_types = accepted_media_types(&Method::PATCH);
    body.content = media_types.iter().map(|media_type| ((*media_type).to_owned(), content.clone())).collect();
}

/// Documents `If-Match` and `If-None-Match` for an operation that responds 304 (a read) or 412 (a change).
fn complete_conditional(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let is_read = responses.contains_key("304");
    if is_read {
        responses.insert("412".to_owned(), Response::new("").into());
    }
    let none_match = match is_read {
        true => "The `ETag` of what the client has, or a list: if it is still the same, the response is 304",
        false => "The `ETag` of a state to leave alone, or a list: if it is the current one, the response is 412",
    };
    let seen = "The `ETag` of what the client has seen, or a list: if it is another now, the response is 412";
    if responses.contains_key("412") {
        for (header, description, example) in [("if-match", seen, Some("*")), ("if-none-match", none_match, None)] {
            let parameter = ParameterBuilder::new().name(header).parameter_in(ParameterIn::Header);
            let parameter = parameter.description(Some(description)).schema(Some(Object::with_type(Type::String)));
            let parameter = parameter.example(example.map(Into::into));
            operation.parameters.get_or_insert_default().push(parameter.build().into());
        }
    }
}

/// Fills in missing descriptions, describes common headers, and replaces each error response by a shared one.
fn complete_responses(responses: &mut Responses) {
    for (status, response) in &mut responses.responses {
        let RefOr::T(documented) = response else { continue };
        let code = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
        if documented.description.is_empty() {
            documented.description = code.and_then(|code| code.canonical_reason()).unwrap_or(status).to_owned();
        }
        for (name, description) in [
            ("etag", "Changes whenever what is shown changes"),
            ("location", "The path of what was made, in the path family that was called"),
        ] {
            if let Some(header) = documented.headers.get_mut(name) {
                *header = required_header(description, Type::String);
            }
        }
        if code.is_some_and(|code| code.is_client_error() || code.is_server_error()) {
            let is_temporary = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS]
                .iter()
                .any(|status| code == Some(*status));
            let mut problem = Ref::from_response_name(if is_temporary { UNAVAILABLE } else { PROBLEM });
            problem.description = std::mem::take(&mut documented.description);
            *response = problem.into();
        }
    }
}

/// Describes a header that is always present.
fn required_header(description: &str, kind: Type) -> RefOr<Header> {
    let header = HeaderBuilder::new().description(Some(description)).schema(Some(Object::with_type(kind)));
    // utoipa has no field for `required`, but writes extensions as they are.
    header.extensions(Some([("required", true)].into_iter().collect())).build().into()
}

/// What the pipeline must know of one call.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) has_query: bool,
    pub(crate) grants: &'static [Grant],
}

/// Returns the documented calls of each path.
pub(crate) fn calls(document: &OpenApi, rules: &'static [Rule]) -> impl Iterator<Item = (String, Vec<Call>)> {
    let has_query = |operation: &Operation| {
        let mut parameters = operation.parameters.iter().flatten();
        parameters.any(|p| matches!(p, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query))
    };
    document.paths.paths.clone().into_iter().map(move |(path, mut item)| {
        let call = |(method, operation): (Method, &mut Operation)| {
            let grants = auth::grants(rules, method.as_str(), &path);
            Call { method, has_query: has_query(operation), grants }
        };
        let calls = methods(&mut item).map(call).collect();
        (path, calls)
    })
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    methods(item).map(|(_, operation)| operation)
}

/// Returns the operations of a path with their methods.
fn methods(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let operations = [
        (Method::GET, &mut item.get),
        (Method::PUT, &mut item.put),
        (Method::POST, &mut item.post),
        (Method::DELETE, &mut item.delete),
        (Method::PATCH, &mut item.patch),
    ];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}
