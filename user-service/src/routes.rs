//! The HTTP calls of this service. The rules are in [`crate::user`], the rows in [`crate::store`].

use axum::extract::{OriginalUri, State};
use axum::http::StatusCode;
use axum::response::Response;
use chassis::auth::Grant::{Admin, Everybody, Owner};
use chassis::auth::{Caller, Grant, Rule, not_allowed};
use chassis::http::body::values::{self, Detail};
use chassis::http::body::{FromQuery, QueryParams};
use chassis::http::conditional::{self, Preconditions};
use chassis::http::extract::{Json, Path, Query};
use chassis::http::page::{Page, Rows};
use shared::users::User;
use shared::{Id, MAX_BATCH};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::AppState;
use crate::error::Error;
use crate::sessions;
use crate::user::{CreateUser, UpdateUser, UserRecord};

/// Who may make each call while sign-in is on.
pub(crate) const RULES: &[Rule] = &[
    Rule::new("GET /users", &[Admin, ORDER_SERVICE]), // order-service only with `ids`
    Rule::new("POST /users", &[Everybody]),
    Rule::new("GET /users/{id}", &[Owner, Admin, ORDER_SERVICE]),
    Rule::new("PATCH /users/{id}", &[Owner, Admin]),
    Rule::new("DELETE /users/{id}", &[Owner, Admin]),
    Rule::new("POST /sessions", &[Everybody]),
];

/// It asks whether the user of an order exists.
const ORDER_SERVICE: Grant = Grant::Service(crate::ORDER_SERVICE);

/// Returns all routes of this service.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, update, delete))
        .routes(routes!(sessions::create))
}

/// The query of `GET /users`.
struct ListUsersQuery {
    page: Page<Id>,
    username: Option<String>,
    ids: Option<Vec<Id>>,
}

impl FromQuery for ListUsersQuery {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let page = Page::from_query(params);
        let username = params.optional("username", |text| Ok::<_, Detail>(text.to_owned()));
        let ids = params.optional("ids", values::list(MAX_BATCH));
        Some(Self { page: page?, username: username?, ids: ids? })
    }
}

/// Lists users, oldest first.
///
/// With `ids`, returns those of them that exist, without pages. With `username`, returns at most one user.
#[utoipa::path(get, path = "/users", operation_id = "listUsers", tag = "users",
    params(("limit" = Option<usize>, Query, description = "Maximum users to return", minimum = 1, maximum = 1000),
        ("after" = Option<Id>, Query, description = "Only users after this id. \
            With the id of the newest, a client can miss one that got its id earlier and was stored later"),
        ("username" = Option<String>, Query, description = "Only the user with this username; case does not matter"),
        ("ids" = Option<Vec<Id>>, Query, explode = false, description = "Only the users with these ids", min_items = 1, max_items = 128)),
    responses((status = OK, body = Vec<User>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn list(
    State(app): State<AppState>,
    caller: Caller,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<ListUsersQuery>,
) -> Result<Response, Error> {
    if caller.is_service() && (query.ids.is_none() || query.username.is_some()) {
        return Err(not_allowed().into());
    }
    let rows = match (query.username, query.ids) {
        (Some(username), ids) => {
            let mut found: Vec<_> = app.store.by_username(&username).await?.into_iter().collect();
            found.retain(|record| ids.as_ref().is_none_or(|ids| ids.contains(&record.user.id)));
            Rows::all(found)
        }
        (None, Some(ids)) => Rows::all(app.store.by_ids(&ids).await?),
        (None, None) => app.store.page(query.page).await?,
    };
    Ok(rows.respond(&uri, |record| record.user.id))
}

/// Adds a user.
#[utoipa::path(post, path = "/users", operation_id = "createUser", tag = "users", request_body = CreateUser,
    responses((status = CREATED, body = User, headers(("location" = String), ("etag" = String))),
        (status = CONFLICT, description = "`username-taken` or `email-taken`")))]
async fn create(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Json(mut user): Json<CreateUser>,
) -> Result<Response, Error> {
    app.check_account(None, user.username.as_deref(), user.password.as_ref())?;
    let password = app.hasher.hash_optional(user.password.take()).await?;
    let created = app.store.insert(user, password, chassis::now()).await?;
    Ok(conditional::respond_created(&created, &format!("{}/{}", uri.path(), created.user.id))?)
}

/// Returns one user.
#[utoipa::path(get, path = "/users/{id}", operation_id = "getUser", tag = "users", params(("id" = Id, Path)),
    responses((status = OK, body = User, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn read(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    preconditions: Preconditions,
) -> Result<Response, Error> {
    let found = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
    Ok(conditional::respond(&found, &preconditions))
}

/// Changes the members that are given, and removes those that are `null`. A removed username or e-mail is free again.
#[utoipa::path(patch, path = "/users/{id}", operation_id = "updateUser", tag = "users", params(("id" = Id, Path)),
    request_body = UpdateUser, responses((status = OK, body = User, headers(("etag" = String))), (status = NOT_FOUND),
        (status = CONFLICT, description = "`username-taken` or `email-taken`"), (status = PRECONDITION_FAILED)))]
async fn update(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    preconditions: Preconditions,
    Json(mut change): Json<UpdateUser>,
) -> Result<Response, Error> {
    app.check_account(None, None, change.password.as_ref().and_then(Option::as_ref))?;
    let password = match change.password.take() {
        Some(password) => Some(app.hasher.hash_optional(password).await?),
        None => None,
    };
    loop {
        let current = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
        preconditions.check(Some(&current))?;
        app.check_account(current.user.username.as_deref(), change.username.as_ref().and_then(Option::as_deref), None)?;
        let mut changed = UserRecord::clone(&current);
        change.apply(&mut changed, password.as_ref());
        // On `None`, another request has changed the user meanwhile. Then the preconditions must hold for the new state.
        if let Some(updated) = app.store.replace(current.version, changed).await? {
            return Ok(conditional::respond(&updated, &Preconditions::default()));
        }
    }
}

/// Removes a user. Its username and e-mail are free again.
#[utoipa::path(delete, path = "/users/{id}", operation_id = "deleteUser", tag = "users", params(("id" = Id, Path)),
    responses((status = NO_CONTENT), (status = NOT_FOUND), (status = PRECONDITION_FAILED)))]
async fn delete(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    preconditions: Preconditions,
) -> Result<StatusCode, Error> {
    loop {
        let current = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
        preconditions.check(Some(&current))?;
        if app.store.remove(id, current.version).await? {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
}
