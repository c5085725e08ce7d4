//! HTTP: which call does what. The rules are in [`crate::user`], the rows in [`crate::store`].

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chassis::http::body::values::{self, Detail};
use chassis::http::body::{FromQuery, QueryParams};
use chassis::http::conditional::{self, IfMatch};
use chassis::http::extract::{Json, OptionalHeader, Path, Query};
use chassis::http::page::{Page, Rows};
use shared::users::{CreateUser, UpdateUser, User as WireUser};
use shared::{Id, MAX_BATCH};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::AppState;
use crate::error::Error;
use crate::user::{NewUser, UserChange};

/// All routes of this service.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(read, update, delete))
}

/// Which users to list.
struct Wanted {
    page: Page<Id>,
    username: Option<String>,
    ids: Option<Vec<Id>>,
}

impl FromQuery for Wanted {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let page = Page::from_query(params);
        let username = params.optional("username", |text| Ok::<_, Detail>(text.to_owned()));
        let ids = params.optional("ids", values::list(MAX_BATCH));
        Some(Self { page: page?, username: username?, ids: ids? })
    }
}

/// Lists users, oldest first.
///
/// With `username`, the one of that name or none; with `ids`, those that there are, in one answer; else a page.
#[utoipa::path(get, path = "/users", tag = "users",
    params(("limit" = Option<usize>, Query, description = "Most users to answer", minimum = 1, maximum = 1000),
        ("after" = Option<Id>, Query, description = "Only users behind this id"),
        ("username" = Option<String>, Query, description = "Only the user of this name, compared without case"),
        ("ids" = Option<Vec<Id>>, Query, explode = false, description = "Only the users of these ids", min_items = 1, max_items = 128)),
    responses((status = OK, body = Vec<WireUser>, headers(("link" = String, description = "The next page, if there is one")))))]
async fn list(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Error> {
    let rows = match (wanted.username, wanted.ids) {
        (Some(username), ids) => {
            let mut found: Vec<_> = app.store.by_username(&username).await?.into_iter().collect();
            found.retain(|user| ids.as_ref().is_none_or(|ids| ids.contains(&user.id)));
            Rows::all(found)
        }
        (None, Some(ids)) => Rows::all(app.store.by_ids(&ids).await?),
        (None, None) => app.store.page(wanted.page).await?,
    };
    Ok(rows.answer(&uri, |user| user, |user| user.id)?)
}

/// Adds a user.
#[utoipa::path(post, path = "/users", tag = "users", request_body = CreateUser,
    responses((status = CREATED, body = WireUser, headers(("location" = String), ("etag" = String))),
        (status = CONFLICT, description = "`username-taken` or `email-taken`")))]
async fn create(
    State(app): State<AppState>,
    OriginalUri(uri): OriginalUri,
    Json(new): Json<NewUser>,
) -> Result<Response, Error> {
    let draft = new.into_draft(&app.hasher).await?;
    let user = app.store.insert(draft, chassis::now()).await?;
    Ok(conditional::created(&user, &format!("{}/{}", uri.path(), user.id))?)
}

/// Answers one user.
#[utoipa::path(get, path = "/users/{id}", tag = "users", params(("id" = Id, Path)),
    responses((status = OK, body = WireUser, headers(("etag" = String))), (status = NOT_MODIFIED), (status = NOT_FOUND)))]
async fn read(State(app): State<AppState>, Path(id): Path<Id>, headers: HeaderMap) -> Result<Response, Error> {
    let user = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
    Ok(conditional::show(&user, &headers)?)
}

/// Changes the members that are given.
#[utoipa::path(patch, path = "/users/{id}", tag = "users", params(("id" = Id, Path)),
    request_body = UpdateUser, responses((status = OK, body = WireUser, headers(("etag" = String))), (status = NOT_FOUND),
        (status = CONFLICT, description = "`username-taken` or `email-taken`"), (status = PRECONDITION_FAILED)))]
async fn update(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    OptionalHeader(if_match): OptionalHeader<IfMatch>,
    Json(change): Json<UserChange>,
) -> Result<Response, Error> {
    let change = change.hashed(&app.hasher).await?;
    loop {
        let seen = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
        conditional::check(if_match.as_ref(), &seen)?;
        // Only if it is still what was seen; else somebody was quicker, and it is looked at again.
        if let Some(user) = app.store.replace(seen.version(), change.apply(seen.user())).await? {
            return Ok(conditional::show(&user, &HeaderMap::new())?);
        }
    }
}

/// Removes a user; its username and e-mail are free again.
#[utoipa::path(delete, path = "/users/{id}", tag = "users", params(("id" = Id, Path)),
    responses((status = NO_CONTENT), (status = NOT_FOUND), (status = PRECONDITION_FAILED)))]
async fn delete(
    State(app): State<AppState>,
    Path(id): Path<Id>,
    OptionalHeader(if_match): OptionalHeader<IfMatch>,
) -> Result<StatusCode, Error> {
    loop {
        let seen = app.store.by_id(id).await?.ok_or(Error::NotFound)?;
        conditional::check(if_match.as_ref(), &seen)?;
        if app.store.remove(id, seen.version()).await? {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
}
