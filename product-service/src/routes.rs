//! HTTP: which request does what. The rules are in [`crate::product`] and [`crate::reservation`], the rows in
//! [`crate::store`].

use axum::Json as JsonResponse;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chassis::auth::Grant::{Admin, Everybody};
use chassis::auth::{Caller, Grant, Rule, not_allowed, token_rejected};
use chassis::context::RequestContext;
use chassis::crash_point;
use chassis::http::body::values::{self, Detail};
use chassis::http::body::{FromQuery, QueryParams};
use chassis::http::conditional::{self, Preconditions};
use chassis::http::entity::Entity;
use chassis::http::extract::{Json, JsonList, Path, Query};
use chassis::http::page::{self, Page, Rows};
use chassis::problem::{self, HEADERS_TOO_LARGE, Problem};
use serde::Serialize;
use shared::products::{Product, Reservation, Reserved};
use shared::users::User;
use shared::{Id, MAX_BATCH, OrderId};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::AppState;
use crate::error::Error;
use crate::peers::UserList;
use crate::product::{CreateProduct, ProductRecord, UpdateProduct, case_fold};
use crate::reservation::{
    OrderIds, ReservationBatch, ReservationBatchItem, ReservationLines, ReservationOutcome, ReservationRequest,
};
use crate::store::StoreError;

/// Who may make each call while sign-in is on.
pub(crate) const RULES: &[Rule] = &[
    Rule::new("GET /products", &[Everybody]),
    Rule::new("POST /products", &[Admin]),
    Rule::new("GET /products/{id}", &[Everybody]),
    Rule::new("PATCH /products/{id}", &[Admin]),
    Rule::new("DELETE /products/{id}", &[Admin]),
    Rule::new("GET /users", &[Admin]),
    Rule::new("POST /reservations", &[ORDER_SERVICE]),
    Rule::new("DELETE /reservations", &[ORDER_SERVICE]),
    Rule::new("PUT /reservations/{orderId}", &[ORDER_SERVICE]),
    Rule::new("GET /reservations/{orderId}", &[ORDER_SERVICE, Admin]),
    Rule::new("DELETE /reservations/{orderId}", &[ORDER_SERVICE]),
];

/// It reserves the stock of its orders.
const ORDER_SERVICE: Grant = Grant::Service(crate::ORDER_SERVICE);

/// Returns all routes of this service.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, update, delete))
        .routes(routes!(users))
        .routes(routes!(reserve_many, release_many))
        .routes(routes!(reserve, release, reservation))
}

/// The query of `GET /products`.
struct ListProductsQuery {
    page: Page<Id>,
    name: Option<String>,
    ids: Option<Vec<Id>>,
}

impl FromQuery for ListProductsQuery {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let page = Page::from_query(params);
        let name = params.optional("name", |text| Ok::<_, Detail>(text.to_owned()));
        let ids = params.optional("ids", values::list(MAX_BATCH));
        Some(Self { page: page?, name: name?, ids: ids? })
    }
}

/// Lists products, oldest first.
///
/// With `ids`, returns those of them that exist, without pages. With `name`, returns only products whose name contains it.
#[utoipa::path(get, path = "/products", operation_id = "listProducts", tag = "products",
    params(("limit" = Option<usize>, Query, description = "Maximum products to return", minimum = 1, maximum = 1000),
        ("after" = Option<Id>, Query, description = "Only products after this id. \
            With the id of the newest, a client can miss one that got its id earlier and was stored later"),
        ("name" = Option<String>, Query, description = "Only products whose name contains this text; case and Unicode form (NFC, NFD) do not matter"),
        ("ids" = Option<Vec<Id>>, Query, explode = false, description = "Only the products with these ids", min_items = 1, max_items = 128)),
    responses((status = OK, body = Vec<Product>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn list(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<ListProductsQuery>,
) -> Result<Response, Error> {
    let rows = match query.ids {
        Some(ids) => {
            let mut found = app.store.by_ids(&ids).await?;
            let name = case_fold(query.name.as_deref().unwrap_or_default());
            found.retain(|record| case_fold(&record.product.name).contains(&name));
            Rows::all(found)
        }
        None => app.store.page(query.page, query.name.as_deref()).await?,
    };
    Ok(rows.respond(&uri, |record| record.product.id))
}

/// Adds a product.
#[utoipa::path(post, path = "/products", operation_id = "createProduct", tag = "products", request_body = CreateProduct,
    responses((status = CREATED, body = Product, headers(("location" = String), ("etag" = String)))))]
async fn create(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Json(product): Json<CreateProduct>,
) -> Result<Response, Error> {
    let created = app.store.insert(product, chassis::now()).await?;
    Ok(conditional::respond_created(&created, &format!("{}/{}", uri.path(), created.product.id))?)
}

/// Returns one product.
#[utoipa::path(get, path = "/products/{id}", operation_id = "getProduct", tag = "products", params(("id" = Id, Path)),
    responses((status = OK, body = Product, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn read(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    preconditions: Preconditions,
) -> Result<Response, Error> {
    let found = app.store.by_id(id).await?.ok_or(Error::ProductNotFound)?;
    Ok(conditional::respond(&found, &preconditions))
}

/// Changes the members that are given.
#[utoipa::path(patch, path = "/products/{id}", operation_id = "updateProduct", tag = "products", params(("id" = Id, Path)),
    request_body = UpdateProduct, responses((status = OK, body = Product, headers(("etag" = String))), (status = NOT_FOUND), (status = PRECONDITION_FAILED)))]
async fn update(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    preconditions: Preconditions,
    Json(change): Json<UpdateProduct>,
) -> Result<Response, Error> {
    if preconditions.is_empty() {
        let updated = app.store.update(id, &change).await?.ok_or(Error::ProductNotFound)?;
        return Ok(conditional::respond(&updated, &Preconditions::default()));
    }
    loop {
        let current = app.store.by_id(id).await?.ok_or(Error::ProductNotFound)?;
        preconditions.check(Some(&current))?;
        let mut changed = ProductRecord::clone(&current);
        change.apply(&mut changed);
        // If another request changed the product in between, the new state is checked against the preconditions again.
        if let Some(updated) = app.store.replace(current.version, changed).await? {
            return Ok(conditional::respond(&updated, &Preconditions::default()));
        }
    }
}

/// Removes a product. Orders keep its name and price.
#[utoipa::path(delete, path = "/products/{id}", operation_id = "deleteProduct", tag = "products", params(("id" = Id, Path)),
    responses((status = NO_CONTENT), (status = NOT_FOUND), (status = PRECONDITION_FAILED)))]
async fn delete(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    preconditions: Preconditions,
) -> Result<StatusCode, Error> {
    if preconditions.is_empty() {
        let removed = app.store.remove(id, None).await?;
        return if removed { Ok(StatusCode::NO_CONTENT) } else { Err(Error::ProductNotFound) };
    }
    loop {
        let current = app.store.by_id(id).await?.ok_or(Error::ProductNotFound)?;
        preconditions.check(Some(&current))?;
        if app.store.remove(id, Some(current.version)).await? {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
}

/// Lists users, with the rows unchanged from user-service.
#[utoipa::path(get, path = "/users", operation_id = "listUsersOfProductService", tag = "users",
    params(("limit" = Option<usize>, Query, description = "Maximum users to return", minimum = 1, maximum = 1000),
        ("after" = Option<Id>, Query, description = "Only users after this id. \
            With the id of the newest, a client can miss one that got its id earlier and was stored later"),
        ("username" = Option<String>, Query, description = "Only the user with this username"),
        ("ids" = Option<Vec<Id>>, Query, explode = false, description = "Only the users with these ids", min_items = 1, max_items = 128)),
    responses((status = OK, body = Vec<User>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn users(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    context: RequestContext,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let token = headers.get(header::AUTHORIZATION).filter(|_| !matches!(caller, Caller::Unknown)).cloned();
    match app.users.list(uri.query(), token.map(sensitive), &context).await? {
        UserList::Found { rows, next } => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            let mut response = (json, rows).into_response();
            response.headers_mut().extend(next.and_then(|query| page::next_link(uri.path(), &query)));
            Ok(response)
        }
        UserList::InvalidQuery(errors) => Err(Problem::invalid(errors).into()),
        UserList::Unauthenticated => Err(token_rejected().into()),
        UserList::Forbidden => Err(not_allowed().into()),
        UserList::TooLarge => Err(Problem::new(&HEADERS_TOO_LARGE, "The header is too large for user-service").into()),
    }
}

/// Returns a header value that `Debug` does not show.
fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Reserves the units of all lines for an order, or of none. Safe to repeat.
#[utoipa::path(put, path = "/reservations/{orderId}", operation_id = "reserveStock", tag = "reservations", params(("orderId" = OrderId, Path)), request_body = ReservationLines,
    responses((status = CREATED, body = Reserved, description = "Reserved"), (status = OK, body = Reserved, description = "Reserved before"),
        (status = BAD_REQUEST, description = "`invalid-request` or `product-not-found`"),
        (status = CONFLICT, description = "`insufficient-stock`, `reservation-released` or `reservation-mismatch`"),
        (status = PRECONDITION_FAILED)))]
async fn reserve(
    State(app): State<AppState>,
    Path(order_id): Path<OrderId>,
    preconditions: Preconditions,
    Json(lines): Json<ReservationLines>,
) -> Result<Response, Error> {
    check_reservation(&app, order_id, &preconditions).await?;
    crash_point!("reserve: before");
    let outcome = app.store.reserve(order_id, &lines).await?;
    crash_point!("reserve: done");
    match outcome {
        ReservationOutcome::Created(reserved) => Ok((StatusCode::CREATED, JsonResponse(reserved)).into_response()),
        ReservationOutcome::Existing(_) if preconditions.requires_absence() => {
            Err(conditional::failed("Another request has just made this reservation").into())
        }
        ReservationOutcome::Existing(reserved) => Ok(JsonResponse(reserved).into_response()),
        ReservationOutcome::Rejected(error) => Err(error.into()),
    }
}

/// Checks the preconditions of a change of a reservation.
///
/// The check and the change are two steps. A reservation that was checked can change only by its release, so an `If-Match` that
/// held changes nothing that the client has not seen. After `If-None-Match: *` of a release, another request may still make the
/// reservation, which is then released. No unit is lost: the order gets `reservation-released` when it asks again.
async fn check_reservation(app: &AppState, order_id: OrderId, preconditions: &Preconditions) -> Result<(), Error> {
    if !preconditions.is_empty() {
        let current = app.store.reservation(order_id).await?.map(Entity::new);
        preconditions.check(current.as_ref())?;
    }
    Ok(())
}

/// The response to one item of a batch: what a request for this item alone would have returned.
#[derive(Serialize, ToSchema)]
#[schema(as = ReserveOutcome)]
struct BatchItemResponse {
    /// The status code.
    #[schema(minimum = 100, maximum = 599, example = 201)]
    status: u16,
    /// What was reserved, or the problem.
    body: BatchItemBody,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ReserveBody)]
#[serde(untagged)]
enum BatchItemBody {
    Reserved(Reserved),
    Problem(problem::Body),
}

/// Reserves units for several orders. Each order gets all units of its lines, or none, independently of the others.
#[utoipa::path(post, path = "/reservations", operation_id = "reserveStockBatch", tag = "reservations", request_body = ReservationBatch,
    responses((status = OK, body = Vec<BatchItemResponse>, description = "What a request for each item alone would have returned, in the order of the items")))]
async fn reserve_many(
    State(app): State<AppState>,
    context: RequestContext,
    JsonList(items): JsonList<ReservationBatchItem, MAX_BATCH>,
) -> Result<JsonResponse<Vec<BatchItemResponse>>, Error> {
    let (mut requests, mut spans) = (Vec::with_capacity(items.len()), Vec::new());
    let items: Vec<Result<Option<String>, Problem>> = items
        .into_iter()
        .map(|item| {
            let ReservationBatchItem { order_id, lines, request_id, traceparent } = item?;
            let (id, parent) = (request_id.as_deref(), traceparent.as_deref());
            spans.push(context.item_span("PUT /reservations/{orderId}", id, parent));
            requests.push(ReservationRequest { order_id, lines });
            Ok(request_id)
        })
        .collect();
    crash_point!("reserve many: before");
    let mut outcomes = app.store.reserve_many(&requests).await?.into_iter();
    crash_point!("reserve many: done");
    drop(spans);
    let responses = items.iter().map(|item| match item {
        Ok(request_id) => {
            let outcome = outcomes.next().expect("the store returns an outcome for each request");
            item_response(outcome, || context.for_item(request_id.as_deref(), None))
        }
        Err(problem) => item_problem(problem, &context),
    });
    Ok(JsonResponse(responses.collect()))
}

fn item_response(
    outcome: Result<ReservationOutcome, StoreError>,
    context: impl FnOnce() -> RequestContext,
) -> BatchItemResponse {
    let (status, reserved) = match outcome {
        Ok(ReservationOutcome::Created(reserved)) => (StatusCode::CREATED, reserved),
        Ok(ReservationOutcome::Existing(reserved)) => (StatusCode::OK, reserved),
        Ok(ReservationOutcome::Rejected(error)) => return item_problem(&error.into(), &context()),
        Err(error) => {
            tracing::warn!(%error, "one reservation of a batch failed");
            return item_problem(&Error::from(error).into(), &context());
        }
    };
    BatchItemResponse { status: status.as_u16(), body: BatchItemBody::Reserved(reserved) }
}

fn item_problem(problem: &Problem, context: &RequestContext) -> BatchItemResponse {
    let body = problem.body(context.request_id());
    BatchItemResponse { status: body.status, body: BatchItemBody::Problem(body) }
}

/// Releases a reservation, known or not: its units return to the stock once, and its id can never be reserved again.
#[utoipa::path(delete, path = "/reservations/{orderId}", operation_id = "releaseStock", tag = "reservations", params(("orderId" = OrderId, Path)),
    responses((status = NO_CONTENT), (status = PRECONDITION_FAILED)))]
async fn release(
    State(app): State<AppState>,
    Path(order_id): Path<OrderId>,
    preconditions: Preconditions,
) -> Result<StatusCode, Error> {
    check_reservation(&app, order_id, &preconditions).await?;
    crash_point!("release reservation: before");
    app.store.release(order_id).await?;
    crash_point!("release reservation: done");
    Ok(StatusCode::NO_CONTENT)
}

/// Releases several reservations, each as by a request of its own.
#[utoipa::path(delete, path = "/reservations", operation_id = "releaseStockBatch", tag = "reservations",
    params(("ids" = Vec<OrderId>, Query, explode = false, description = "The orders whose reservations to release", min_items = 1, max_items = 128)),
    responses((status = NO_CONTENT)))]
async fn release_many(
    State(app): State<AppState>,
    Query(OrderIds(order_ids)): Query<OrderIds>,
) -> Result<StatusCode, Error> {
    crash_point!("release reservations: before");
    app.store.release_many(&order_ids).await?;
    crash_point!("release reservations: done");
    Ok(StatusCode::NO_CONTENT)
}

/// Returns a reservation.
#[utoipa::path(get, path = "/reservations/{orderId}", operation_id = "getReservation", tag = "reservations", params(("orderId" = OrderId, Path)),
    responses((status = OK, body = Reservation, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn reservation(
    State(app): State<AppState>,
    Path(order_id): Path<OrderId>,
    preconditions: Preconditions,
) -> Result<Response, Error> {
    let found = app.store.reservation(order_id).await?.ok_or(Error::ReservationNotFound)?;
    Ok(conditional::respond(&Entity::new(found), &preconditions))
}
