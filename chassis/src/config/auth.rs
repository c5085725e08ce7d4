//! The settings of sign-in that every service has.

use clap::Args;
use url::Url;

/// Who issues the tokens of callers. Without an issuer sign-in is off, and every caller may do everything.
#[derive(Args, Clone, Debug)]
pub struct AuthSettings {
    /// Issuer of the access tokens, as in their claim `iss`: the URL of user-service, or of an OpenID Connect provider. If it is not
    /// set, sign-in is off
    #[arg(id = "auth_issuer", long = "auth-issuer", env = "AUTH_ISSUER", value_name = "AUTH_ISSUER", requires = "auth_audience", value_parser = issuer)]
    pub issuer: Option<String>,

    /// Audience that access tokens must name in their claim `aud`; needed with AUTH_ISSUER
    #[arg(
        id = "auth_audience",
        long = "auth-audience",
        env = "AUTH_AUDIENCE",
        value_name = "AUTH_AUDIENCE",
        requires = "auth_issuer"
    )]
    pub audience: Option<String>,

    /// URL of the public keys of the issuer (JWKS); by default it is read from `/.well-known/openid-configuration` of the issuer
    #[arg(id = "auth_jwks_url", long = "auth-jwks-url", env = "AUTH_JWKS_URL", value_name = "AUTH_JWKS_URL", requires = "auth_issuer", value_parser = web_url)]
    pub jwks_url: Option<Url>,

    /// Claim of the roles of a caller, by its name or its path, such as `realm_access.roles`
    #[arg(
        id = "auth_roles_claim",
        long = "auth-roles-claim",
        env = "AUTH_ROLES_CLAIM",
        value_name = "AUTH_ROLES_CLAIM",
        default_value = "roles"
    )]
    pub roles_claim: String,

    /// Claim of the user id of a caller, by its name or its path
    #[arg(
        id = "auth_user_claim",
        long = "auth-user-claim",
        env = "AUTH_USER_CLAIM",
        value_name = "AUTH_USER_CLAIM",
        default_value = "user_id"
    )]
    pub account_claim: String,
}

/// Checks the URL of an issuer, and returns it as it is written: tokens must have the same text.
fn issuer(text: &str) -> Result<String, String> {
    web_url(text).map(|_| text.to_owned())
}

/// Parses a URL outside this system: `https://`, or `http://` within a private network.
fn web_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let has_credentials = !url.username().is_empty() || url.password().is_some();
    if !["http", "https"].contains(&url.scheme()) || has_credentials || url.fragment().is_some() {
        return Err("must start with https:// or http://, and have no name, password or fragment".to_owned());
    }
    Ok(url)
}
