//! HTTP: which call does what. The rules are in [`crate::product`] and [`crate::reservation`], the rows in
//! [`crate::store`].

use axum::Json as JsonAnswer;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chassis::context::RequestContext;
use chassis::crash_point;
use chassis::http::body::values::{self, Detail};
use chassis::http::body::{FromQuery, QueryParams};
use chassis::http::conditional::{self, IfMatch};
use chassis::http::extract::{Json, JsonList, OptionalHeader, Path, Query};
use chassis::http::page::{self, Page, Rows};
use chassis::problem::{self, Problem};
use serde::Serialize;
use shared::products::{
    CreateProduct, Product as WireProduct, Reservation, Reserve, ReserveEach, Reserved, UpdateProduct,
};
use shared::users::User;
use shared::{Id, MAX_BATCH, OrderId};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::AppState;
use crate::error::Error;
use crate::peers::Listed;
use crate::product::{NewProduct, ProductChange, fold};
use crate::reservation::{Lines, OneOfSeveral, OrderIds, ReservationOutcome};
use crate::store::StoreError;

/// All routes of this service.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, update, delete))
        .routes(routes!(users))
        .routes(routes!(reserve_each, release_each))
        .routes(routes!(reserve, release, reservation))
}

/// Which products to list.
struct Wanted {
    page: Page<Id>,
    name: Option<String>,
    ids: Option<Vec<Id>>,
}

impl FromQuery for Wanted {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let page = Page::from_query(params);
        let name = params.optional("name", |text| Ok::<_, Detail>(text.to_owned()));
        let ids = params.optional("ids", values::list(MAX_BATCH));
        Some(Self { page: page?, name: name?, ids: ids? })
    }
}

/// Lists products, oldest first.
///
/// With `ids`, those that there are, in one answer; else a page, with `name` only of those whose name has it as a part.
#[utoipa::path(get, path = "/products", tag = "products",
    params(("limit" = Option<usize>, Query, description = "Most products to answer", minimum = 1, maximum = 1000),
        ("after" = Option<Id>, Query, description = "Only products behind this id"),
        ("name" = Option<String>, Query, description = "Only products with this in their name, compared without case"),
        ("ids" = Option<Vec<Id>>, Query, explode = false, description = "Only the products of these ids", min_items = 1, max_items = 128)),
    responses((status = OK, body = Vec<WireProduct>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn list(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Error> {
    let rows = match wanted.ids {
        Some(ids) => {
            let mut found = app.store.by_ids(&ids).await?;
            let name = fold(wanted.name.as_deref().unwrap_or_default());
            found.retain(|product| fold(&product.public.name).contains(&name));
            Rows::all(found)
        }
        None => app.store.page(wanted.page, wanted.name.as_deref()).await?,
    };
    Ok(rows.answer(&uri, |product| &product.public, |product| product.public.id)?)
}

/// Adds a product.
#[utoipa::path(post, path = "/products", tag = "products", request_body = CreateProduct,
    responses((status = CREATED, body = WireProduct, headers(("location" = String), ("etag" = String)))))]
async fn create(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Json(new): Json<NewProduct>,
) -> Result<Response, Error> {
    let product = app.store.insert(new, chassis::now()).await?;
    Ok(conditional::created(&product.public, &format!("{}/{}", uri.path(), product.public.id))?)
}

/// Answers one product.
#[utoipa::path(get, path = "/products/{id}", tag = "products", params(("id" = Id, Path)),
    responses((status = OK, body = WireProduct, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn read(State(app): State<AppState>, Path(id): Path<Id>, headers: HeaderMap) -> Result<Response, Error> {
    let product = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
    Ok(conditional::show(&product.public, &headers)?)
}

/// Changes the members that are given.
#[utoipa::path(patch, path = "/products/{id}", tag = "products", params(("id" = Id, Path)),
    request_body = UpdateProduct, responses((status = OK, body = WireProduct, headers(("etag" = String))), (status = NOT_FOUND), (status = PRECONDITION_FAILED)))]
async fn update(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    OptionalHeader(if_match): OptionalHeader<IfMatch>,
    Json(change): Json<ProductChange>,
) -> Result<Response, Error> {
    if if_match.is_none() {
        let product = app.store.change(id, &change).await?.ok_or(Error::NotFound)?;
        return Ok(conditional::show(&product.public, &HeaderMap::new())?);
    }
    loop {
        let seen = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
        conditional::check(if_match.as_ref(), &seen.public)?;
        // Only if it is still what was seen; else somebody was quicker, and it is looked at again.
        if let Some(product) = app.store.replace(seen.version, change.apply(&seen)).await? {
            return Ok(conditional::show(&product.public, &HeaderMap::new())?);
        }
    }
}

/// Removes a product. Orders keep its name and price.
#[utoipa::path(delete, path = "/products/{id}", tag = "products", params(("id" = Id, Path)),
    responses((status = NO_CONTENT), (status = NOT_FOUND), (status = PRECONDITION_FAILED)))]
async fn delete(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    OptionalHeader(if_match): OptionalHeader<IfMatch>,
) -> Result<StatusCode, Error> {
    if if_match.is_none() {
        let removed = app.store.remove(id, None).await?;
        return if removed { Ok(StatusCode::NO_CONTENT) } else { Err(Error::NotFound) };
    }
    loop {
        let seen = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
        conditional::check(if_match.as_ref(), &seen.public)?;
        if app.store.remove(id, Some(seen.version)).await? {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
}

/// Lists users: the rows that user-service answers, untouched.
#[utoipa::path(get, path = "/users", tag = "users",
    params(("limit" = Option<usize>, Query, description = "Most users to answer", minimum = 1, maximum = 1000),
        ("after" = Option<Id>, Query, description = "Only users behind this id"),
        ("username" = Option<String>, Query, description = "Only the user of this name"),
        ("ids" = Option<Vec<Id>>, Query, explode = false, description = "Only the users of these ids", min_items = 1, max_items = 128)),
    responses((status = OK, body = Vec<User>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn users(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    context: RequestContext,
) -> Result<Response, Error> {
    match app.users.list(uri.query(), &context).await? {
        Listed::Rows(rows, next) => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            let mut response = (json, rows).into_response();
            response.headers_mut().extend(next.and_then(|query| page::next_link(uri.path(), &query)));
            Ok(response)
        }
        Listed::Invalid(errors) => Err(Problem::invalid(errors).into()),
    }
}

/// Takes the units of all lines for an order, or of none. Safe to repeat.
#[utoipa::path(put, path = "/reservations/{orderId}", tag = "reservations", params(("orderId" = OrderId, Path)), request_body = Reserve,
    responses((status = CREATED, body = Reserved, description = "Taken"), (status = OK, body = Reserved, description = "Already taken"),
        (status = BAD_REQUEST, description = "`invalid-request` or `product-not-found`"),
        (status = CONFLICT, description = "`insufficient-stock`, `reservation-released` or `reservation-mismatch`")))]
async fn reserve(
    State(app): State<AppState>,
    Path(order_id): Path<OrderId>,
    Json(lines): Json<Lines>,
) -> Result<Response, Error> {
    crash_point!("take: before");
    let taken = app.store.take(order_id, &lines).await?;
    crash_point!("take: done");
    match taken {
        ReservationOutcome::Created(reserved) => Ok((StatusCode::CREATED, JsonAnswer(reserved)).into_response()),
        ReservationOutcome::Existing(reserved) => Ok(JsonAnswer(reserved).into_response()),
        ReservationOutcome::Rejected(refusal) => Err(Error::Refused(refusal)),
    }
}

/// One answer among several: what the single call would have answered.
#[derive(Serialize, ToSchema)]
struct ReserveOutcome {
    /// The status code.
    #[schema(minimum = 100, maximum = 599, example = 201)]
    status: u16,
    /// What was reserved, or what went wrong.
    body: ReserveBody,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ReserveBody {
    Reserved(Reserved),
    Problem(problem::Body),
}

/// Takes the units for several orders, each all or nothing and on its own: one that is refused does not touch the others.
#[utoipa::path(post, path = "/reservations", tag = "reservations", request_body = ReserveEach,
    responses((status = OK, body = Vec<ReserveOutcome>, description = "What the single calls would have answered, in the order asked")))]
async fn reserve_each(
    State(app): State<AppState>,
    context: RequestContext,
    JsonList(asked): JsonList<OneOfSeveral, MAX_BATCH>,
) -> Result<JsonAnswer<Vec<ReserveOutcome>>, Error> {
    let (mut takes, mut spans) = (Vec::with_capacity(asked.len()), Vec::new());
    let asked: Vec<Result<Option<String>, Problem>> = asked
        .into_iter()
        .map(|item| {
            let OneOfSeveral { take, request_id, traceparent } = item?;
            let (id, parent) = (request_id.as_deref(), traceparent.as_deref());
            spans.push(context.item_span("PUT /reservations/{orderId}", id, parent));
            takes.push(take);
            Ok(request_id)
        })
        .collect();
    crash_point!("take each: before");
    let mut taken = app.store.take_each(&takes).await?.into_iter();
    crash_point!("take each: done");
    drop(spans);
    let outcomes = asked.iter().map(|asked| match asked {
        Ok(request_id) => {
            let taken = taken.next().expect("the store answers each");
            outcome(taken, || context.for_item(request_id.as_deref(), None))
        }
        Err(problem) => refused(problem, &context),
    });
    Ok(JsonAnswer(outcomes.collect()))
}

fn outcome(taken: Result<ReservationOutcome, StoreError>, context: impl FnOnce() -> RequestContext) -> ReserveOutcome {
    let (status, reserved) = match taken {
        Ok(ReservationOutcome::Created(reserved)) => (StatusCode::CREATED, reserved),
        Ok(ReservationOutcome::Existing(reserved)) => (StatusCode::OK, reserved),
        Ok(ReservationOutcome::Rejected(refusal)) => return refused(&refusal.into(), &context()),
        Err(error) => {
            tracing::warn!(%error, "a take among several came to nothing");
            return refused(&Error::from(error).into(), &context());
        }
    };
    ReserveOutcome { status: status.as_u16(), body: ReserveBody::Reserved(reserved) }
}

fn refused(problem: &Problem, context: &RequestContext) -> ReserveOutcome {
    let body = problem.body(context.request_id());
    ReserveOutcome { status: body.status, body: ReserveBody::Problem(body) }
}

/// Gives the units back, once. Also for an id never seen, which is then refused for ever.
#[utoipa::path(delete, path = "/reservations/{orderId}", tag = "reservations", params(("orderId" = OrderId, Path)),
    responses((status = NO_CONTENT), (status = PRECONDITION_FAILED)))]
async fn release(
    State(app): State<AppState>,
    Path(order_id): Path<OrderId>,
    OptionalHeader(if_match): OptionalHeader<IfMatch>,
) -> Result<StatusCode, Error> {
    if if_match.is_some() {
        // A reservation changes once, by its release: what it was when it was looked at, it is still, or it is released.
        conditional::check(if_match.as_ref(), &app.store.reservation(order_id).await?)?;
    }
    crash_point!("give back: before");
    app.store.release(order_id).await?;
    crash_point!("give back: done");
    Ok(StatusCode::NO_CONTENT)
}

/// Gives the units of several reservations back, each as by its own call.
#[utoipa::path(delete, path = "/reservations", tag = "reservations",
    params(("ids" = Vec<OrderId>, Query, explode = false, description = "The orders whose units to give back", min_items = 1, max_items = 128)),
    responses((status = NO_CONTENT)))]
async fn release_each(
    State(app): State<AppState>,
    Query(OrderIds(order_ids)): Query<OrderIds>,
) -> Result<StatusCode, Error> {
    crash_point!("give back each: before");
    app.store.release_each(&order_ids).await?;
    crash_point!("give back each: done");
    Ok(StatusCode::NO_CONTENT)
}

/// Answers a reservation as it stands.
#[utoipa::path(get, path = "/reservations/{orderId}", tag = "reservations", params(("orderId" = OrderId, Path)),
    responses((status = OK, body = Reservation, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn reservation(
    State(app): State<AppState>,
    Path(order_id): Path<OrderId>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let reservation = app.store.reservation(order_id).await?.ok_or(Error::NoReservation)?;
    Ok(conditional::show(&reservation, &headers)?)
}
