//! The OpenAPI document of a service, `/openapi.json`, and the page that shows it, `/docs`.
//!
//! Handlers describe what is special about them in a few attribute lines. What holds for all of them is added here: both
//! path families, conditional requests, the answers to what can go wrong with any request, a description for each
//! response.

use axum::Router;
use axum::http::StatusCode;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{
    ContentBuilder, Header, InfoBuilder, LicenseBuilder, Object, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    Responses, ServerBuilder, Type,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::problem::{self, Body, FieldError};

/// The prefix of the second path family.
pub(crate) const API: &str = "/api";

/// Mounts `resources` at the root and under `/api`, and `plain` (health) at the root only, and documents both.
pub(crate) fn assemble(
    service: &str,
    description: &str,
    resources: OpenApiRouter,
    plain: OpenApiRouter,
) -> (Router, OpenApi) {
    let (resources, mut document) = resources.split_for_parts();
    let (plain, mut plain_document) = plain.split_for_parts();
    let server = |url, description| ServerBuilder::new().url(url).description(Some(description)).build();
    for item in plain_document.paths.paths.values_mut() {
        item.servers = Some(vec![server("/", "Only here")]);
    }
    document.merge(plain_document);
    document.servers = Some(vec![server("/", "The root"), server(API, "The same, one floor down")]);
    document.info = InfoBuilder::new()
        .title(service)
        .description(Some(description))
        .version(env!("CARGO_PKG_VERSION"))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()))
        .build();
    complete(&mut document);

    let router = resources.clone().nest(API, resources).merge(plain).merge(docs(document.clone()));
    (router, document)
}

/// `/openapi.json`, and `/docs` from files inside the binary. The page asks no other host: not even for the badge by
/// which Swagger UI has the document judged by a server of its makers.
fn docs(document: OpenApi) -> Router {
    let config = Config::from("/openapi.json").validator_url("none");
    SwaggerUi::new("/docs").url("/openapi.json", document).config(config).into()
}

/// What any request can come to, whatever it asks for. That no status stands for all others lets a client, and a test,
/// tell a documented answer from one that is not.
const ANY_REQUEST: [StatusCode; 6] = [
    StatusCode::BAD_REQUEST,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// The names of the answers to what goes wrong.
const PROBLEM: &str = "Problem";
const UNAVAILABLE: &str = "Unavailable";

/// What is the same for every operation.
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
    unavailable.headers.insert("retry-after".to_owned(), always("Seconds after which to try again", Type::Integer));
    components.responses.insert(PROBLEM.to_owned(), problem.into());
    components.responses.insert(UNAVAILABLE.to_owned(), unavailable.into());

    for operation in document.paths.paths.values_mut().flat_map(operations) {
        let unreadable = operation.request_body.is_some().then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        for status in ANY_REQUEST.into_iter().chain(unreadable) {
            operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(|| Response::new("").into());
        }
        complete_conditional(operation);
        complete_responses(&mut operation.responses);
    }
}

/// Whoever answers 304 or 412 reads the header that asks for it.
fn complete_conditional(operation: &mut Operation) {
    for (status, header, description, example) in [
        ("304", "if-none-match", "The `ETag` of what the client has: if it is still the same, the answer is 304", None),
        (
            "412",
            "if-match",
            "The `ETag` of what the client has seen: if it is another now, the answer is 412",
            Some("*"),
        ),
    ] {
        if operation.responses.responses.contains_key(status) {
            let parameter = ParameterBuilder::new().name(header).parameter_in(ParameterIn::Header);
            let parameter = parameter.description(Some(description)).schema(Some(Object::with_type(Type::String)));
            let parameter = parameter.example(example.map(Into::into));
            operation.parameters.get_or_insert_default().push(parameter.build().into());
        }
    }
}

fn complete_responses(responses: &mut Responses) {
    for (status, response) in &mut responses.responses {
        let RefOr::T(given) = response else { continue };
        let code = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
        if given.description.is_empty() {
            given.description = code.and_then(|code| code.canonical_reason()).unwrap_or(status).to_owned();
        }
        for (name, description) in [
            ("etag", "Changes whenever what is shown changes"),
            ("location", "The path of what was made, in the path family that was called"),
        ] {
            if let Some(header) = given.headers.get_mut(name) {
                *header = always(description, Type::String);
            }
        }
        if code.is_some_and(|code| code.is_client_error() || code.is_server_error()) {
            let unavailable = code == Some(StatusCode::SERVICE_UNAVAILABLE);
            let mut problem = Ref::from_response_name(if unavailable { UNAVAILABLE } else { PROBLEM });
            problem.description = std::mem::take(&mut given.description);
            *response = problem.into();
        }
    }
}

/// A header that is never absent.
fn always(description: &str, kind: Type) -> RefOr<Header> {
    let header = HeaderBuilder::new().description(Some(description)).schema(Some(Object::with_type(kind)));
    // utoipa has no field for it, and writes out what it takes for an extension as it is.
    header.extensions(Some([("required", true)].into_iter().collect())).build().into()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
}
