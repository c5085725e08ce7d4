//! The HTTP endpoints.

use axum::extract::{OriginalUri, State};
use axum::http::HeaderValue;
use axum::response::Response;
use chassis::auth::Grant::{Account, Admin};
use chassis::auth::{Caller, Reach, Rule, not_allowed};
use chassis::context::RequestContext;
use chassis::crash_point;
use chassis::http::body::{FromQuery, QueryParams};
use chassis::http::conditional::{self, Preconditions};
use chassis::http::entity::Entity;
use chassis::http::extract::{Json, JsonBytes, OptionalHeader, Path, Query};
use chassis::http::page::{Page, Rows};
use shared::orders::{Order, OrderStatus};
use shared::{Id, OrderId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::AppState;
use crate::error::Error;
use crate::idempotency::{Fingerprint, Key};
use crate::order::{PlaceOrder, State as OrderState, UpdateOrder};
use crate::store::Filter;

/// Who may make each call while sign-in is on. A caller with an account sees and changes only its own orders.
pub(crate) const RULES: &[Rule] = &[
    Rule::new("GET /orders", &[Account, Admin]),
    Rule::new("POST /orders", &[Account, Admin]), // for the caller; an admin for every user
    Rule::new("GET /orders/{id}", &[Account, Admin]),
    Rule::new("PATCH /orders/{id}", &[Account, Admin]), // to `cancelled`; an admin to every status
];

/// Returns all routes of this service.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, place)).routes(routes!(read, update))
}

/// The query of `GET /orders`.
struct ListOrdersQuery {
    page: Page<OrderId>,
    filter: Filter,
}

impl FromQuery for ListOrdersQuery {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let page = Page::from_query(params);
        let user_id = params.optional("userId", str::parse::<Id>);
        let status = params.optional("status", str::parse::<OrderStatus>);
        Some(Self { page: page?, filter: Filter { user_id: user_id?, status: status? } })
    }
}

/// Lists orders, oldest first.
///
/// The position of an order depends on when it was requested, not on when it was placed.
#[utoipa::path(get, path = "/orders", operation_id = "listOrders", tag = "orders",
    params(("limit" = Option<usize>, Query, description = "Maximum number of orders to return", minimum = 1, maximum = 1000),
        ("after" = Option<OrderId>, Query, description = "Only orders after this id. \
            With the id of the newest, a client can miss one that got its id earlier and was stored later"),
        ("userId" = Option<Id>, Query, description = "Only orders of this user"),
        ("status" = Option<OrderStatus>, Query, description = "Only orders with this status")),
    responses((status = OK, body = Vec<Order>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn list(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    caller: Caller,
    Query(query): Query<ListOrdersQuery>,
) -> Result<Response, Error> {
    let rows = match visible(query.filter, &caller) {
        Some(filter) => app.placement.store().page(query.page, filter).await?,
        None => Rows::all(Vec::new()),
    };
    Ok(rows.respond(&uri, |order| order.id))
}

/// Returns the part of a filter that the caller may see. `None` if that is no order.
fn visible(filter: Filter, caller: &Caller) -> Option<Filter> {
    let Reach::Own(account) = caller.reach() else { return Some(filter) };
    let own = account.and_then(Id::new)?;
    let is_foreign = filter.user_id.is_some_and(|user| user != own);
    (!is_foreign).then_some(Filter { user_id: Some(own), ..filter })
}

/// Places an order: all lines or none, and once for each `Idempotency-Key`.
///
/// A repeated request returns the order in its present state, which may have changed since it was placed. No other call reads
/// `Idempotency-Key`. While sign-in is on, a key belongs to its caller, and `userId` may be absent: then the order is for the
/// user of the token.
#[utoipa::path(post, path = "/orders", operation_id = "placeOrder", tag = "orders", request_body = PlaceOrder,
    params(("idempotency-key" = Option<String>, Header, nullable = false,
        pattern = r#"^("[!-~]{1,255}"|[!#-~][!-~]{0,254}|"[!-~]{0,253}[!#-~]|")$"#,
        description = "1 to 255 visible ASCII characters, with or without quotes. The same key with the same body returns the same order")),
    responses((status = CREATED, body = Order, headers(("location" = String), ("etag" = String),
        ("idempotent-replayed" = bool, description = "Present and true if an earlier request has placed the order"))),
        (status = BAD_REQUEST, description = "`invalid-request`, `user-not-found` or `product-not-found`"),
        (status = CONFLICT, description = "`insufficient-stock`, `price-changed` or `request-in-progress`"),
        (status = UNPROCESSABLE_ENTITY, description = "`idempotency-key-reused`")))]
async fn place(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    context: RequestContext,
    caller: Caller,
    OptionalHeader(key): OptionalHeader<Key>,
    JsonBytes(body): JsonBytes,
) -> Result<Response, Error> {
    if caller.reach() == Reach::Own(None) {
        return Err(not_allowed().into()); // whatever the body is
    }
    let request = PlaceOrder::read(&body, caller.account().and_then(Id::new))?;
    if !may_see(&caller, request.user_id) {
        return Err(not_allowed().into());
    }
    let key = key.map(|key| (key.scoped(caller.scope().as_deref()), Fingerprint::of(&request.body)));
    let placed = app.placement.place(request, key, &context).await?;
    let location = format!("{}/{}", uri.path(), placed.order.id);
    let mut response = conditional::respond_created(&placed.order, &location)?;
    if placed.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Returns one order.
#[utoipa::path(get, path = "/orders/{id}", operation_id = "getOrder", tag = "orders", params(("id" = OrderId, Path)),
    responses((status = OK, body = Order, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn read(
    State(app): State<AppState>,
    Path(id): Path<OrderId>,
    caller: Caller,
    preconditions: Preconditions,
) -> Result<Response, Error> {
    let order = find(&app, id, &caller).await?;
    Ok(conditional::respond(&order, &preconditions))
}

/// Returns an order. To a caller who may not see it, it does not exist.
async fn find(app: &AppState, id: OrderId, caller: &Caller) -> Result<Entity<Order>, Error> {
    let order = app.placement.store().by_id(id).await?.filter(|order| may_see(caller, order.user_id));
    order.ok_or(Error::NotFound)
}

/// Returns whether the caller may see the orders of a user, and place and cancel them.
fn may_see(caller: &Caller, user: Id) -> bool {
    match caller.reach() {
        Reach::All => true,
        Reach::Own(account) => account.and_then(Id::new) == Some(user),
    }
}

/// Takes a status step: pending → confirmed → shipped → delivered, or pending or confirmed → cancelled.
///
/// The status that the order has already is 200 and changes nothing. The units of a cancelled order return to the stock within
/// seconds.
#[utoipa::path(patch, path = "/orders/{id}", operation_id = "updateOrder", tag = "orders", params(("id" = OrderId, Path)),
    request_body = UpdateOrder, responses((status = OK, body = Order, headers(("etag" = String))), (status = NOT_FOUND),
        (status = CONFLICT, description = "`illegal-status-step`"), (status = PRECONDITION_FAILED)))]
async fn update(
    State(app): State<AppState>,
    Path(id): Path<OrderId>,
    caller: Caller,
    preconditions: Preconditions,
    Json(UpdateOrder { status }): Json<UpdateOrder>,
) -> Result<Response, Error> {
    let store = app.placement.store();
    loop {
        let order = find(&app, id, &caller).await?;
        if status != OrderStatus::Cancelled && caller.reach() != Reach::All {
            return Err(not_allowed().into());
        }
        preconditions.check(Some(&order))?;
        if order.status == status {
            return Ok(conditional::respond(&order, &Preconditions::default())); // a repeated step changes nothing
        }
        let next = OrderState::from_status(order.status).step(status);
        let next = next.ok_or(Error::IllegalStep(order.status, status))?;
        crash_point!("cancel: before");
        // The step fails if a concurrent request has changed the status since it was read. Then the loop reads it again.
        if let Some(order) = store.step(id, order.status, next).await? {
            if next.needs_release() {
                crash_point!("cancel: after");
                app.placement.release_in_background(id);
            }
            return Ok(conditional::respond(&order, &Preconditions::default()));
        }
    }
}
