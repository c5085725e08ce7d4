//! The OpenAPI document of a service, `/openapi.json`, and the page that shows it, `/docs`.
//!
//! Handlers describe what is special about them in a few attribute lines. What holds for all of them is added here: both
//! path families, the answer to anything that goes wrong, a description for each response.

use axum::Router;
use axum::http::StatusCode;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, ResponseBuilder, ServerBuilder,
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

/// What is the same for every operation.
fn complete(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    components.schemas.insert(Body::name().into(), Body::schema());
    components.schemas.insert(FieldError::name().into(), FieldError::schema());
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        for (status, response) in &mut operation.responses.responses {
            if let RefOr::T(response) = response
                && response.description.is_empty()
            {
                let code = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
                response.description = code.and_then(|code| code.canonical_reason()).unwrap_or(status).to_owned();
            }
        }
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(Body::name()))).build();
        let problem = ResponseBuilder::new()
            .description("What went wrong: `type` says which kind, `errors` which fields are to blame")
            .content(problem::CONTENT_TYPE, body);
        operation.responses.responses.insert("default".to_owned(), problem.build().into());
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
}
