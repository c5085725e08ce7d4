//! HTTP: which call does what. The story is in [`crate::placement`], the rows in [`crate::store`].

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use chassis::context::RequestContext;
use chassis::crash_point;
use chassis::http::body::{FromQuery, QueryParams};
use chassis::http::conditional::{self, IfMatch};
use chassis::http::extract::{Json, OptionalHeader, Path, Query};
use chassis::http::page::Page;
use shared::orders::{Order, OrderStatus, PlaceOrder, UpdateOrder};
use shared::{Id, OrderId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::AppState;
use crate::error::Error;
use crate::idempotency::{Fingerprint, Key};
use crate::order::{NewOrder, State as OrderState, StatusChange};
use crate::store::Filter;

/// All routes of this service.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, place)).routes(routes!(read, update))
}

/// Which orders to list.
struct Wanted {
    page: Page<OrderId>,
    filter: Filter,
}

impl FromQuery for Wanted {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let page = Page::from_query(params);
        let user_id = params.optional("userId", str::parse::<Id>);
        let status = params.optional("status", str::parse::<OrderStatus>);
        Some(Self { page: page?, filter: Filter { user_id: user_id?, status: status? } })
    }
}

/// Lists orders, oldest first.
///
/// An order that takes long to be placed appears at the place of the moment when it was asked for.
#[utoipa::path(get, path = "/orders", tag = "orders",
    params(("limit" = Option<usize>, Query, description = "Most orders to answer", minimum = 1, maximum = 1000),
        ("after" = Option<OrderId>, Query, description = "Only orders behind this id"),
        ("userId" = Option<Id>, Query, description = "Only this user's orders"),
        ("status" = Option<OrderStatus>, Query, description = "Only orders that stand here")),
    responses((status = OK, body = Vec<Order>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn list(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Error> {
    let rows = app.placement.store().page(wanted.page, wanted.filter).await?;
    Ok(rows.answer(&uri, |order| &**order, |order| order.id)?)
}

/// Places an order: all of it or nothing, and once for each `Idempotency-Key`.
#[utoipa::path(post, path = "/orders", tag = "orders", request_body = PlaceOrder,
    params(("idempotency-key" = Option<String>, Header, nullable = false,
        pattern = r#"^("[!-~]{1,255}"|[!#-~][!-~]{0,254}|"[!-~]{0,253}[!#-~]|")$"#,
        description = "1 to 255 visible characters, in quotes or without: the same key and body again answer the same order")),
    responses((status = CREATED, body = Order, headers(("location" = String), ("etag" = String),
        ("idempotent-replayed" = bool, description = "There, and true, if the order was placed before"))),
        (status = BAD_REQUEST, description = "`invalid-request`, `user-not-found` or `product-not-found`"),
        (status = CONFLICT, description = "`insufficient-stock`, `price-changed` or `request-in-progress`"),
        (status = UNPROCESSABLE_ENTITY, description = "`idempotency-key-reused`")))]
async fn place(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    context: RequestContext,
    OptionalHeader(key): OptionalHeader<Key>,
    Json(new): Json<NewOrder>,
) -> Result<Response, Error> {
    let keyed = key.map(|key| (key, Fingerprint::of(&new.body)));
    let placed = app.placement.place(new, keyed, &context).await?;
    let mut response = conditional::created(&*placed.order, &format!("{}/{}", uri.path(), placed.order.id))?;
    if placed.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Answers one order.
#[utoipa::path(get, path = "/orders/{id}", tag = "orders", params(("id" = OrderId, Path)),
    responses((status = OK, body = Order, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn read(State(app): State<AppState>, Path(id): Path<OrderId>, headers: HeaderMap) -> Result<Response, Error> {
    let order = app.placement.store().by_id(id).await?.ok_or(Error::NotFound)?;
    Ok(conditional::show(&*order, &headers)?)
}

/// Takes a step: pending → confirmed → shipped → delivered, or pending or confirmed → cancelled.
///
/// A cancelled order's units are back within seconds.
#[utoipa::path(patch, path = "/orders/{id}", tag = "orders", params(("id" = OrderId, Path)),
    request_body = UpdateOrder, responses((status = OK, body = Order, headers(("etag" = String))), (status = NOT_FOUND),
        (status = CONFLICT, description = "`illegal-status-step`"), (status = PRECONDITION_FAILED)))]
async fn update(
    State(app): State<AppState>,
    Path(id): Path<OrderId>,
    OptionalHeader(if_match): OptionalHeader<IfMatch>,
    Json(StatusChange(to)): Json<StatusChange>,
) -> Result<Response, Error> {
    let store = app.placement.store();
    loop {
        let seen = store.by_id(id).await?.ok_or(Error::NotFound)?;
        conditional::check(if_match.as_ref(), &*seen)?;
        let next = OrderState::of(seen.status).step(to).ok_or(Error::IllegalStep(seen.status, to))?;
        // Only if it is still what was seen; else somebody was quicker, and it is looked at again.
        crash_point!("cancel: before");
        if let Some(order) = store.step(id, seen.status, next).await? {
            if next.wants_release() {
                crash_point!("cancel: after");
                app.placement.release_later(id);
            }
            return Ok(conditional::show(&*order, &HeaderMap::new())?);
        }
    }
}
