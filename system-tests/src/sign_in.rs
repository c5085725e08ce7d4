//! What turns sign-in on for the three services: keys and a password in a temporary folder, and the settings.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{env, io};

use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;

use crate::launch::Launch;
use crate::service::Service;
use crate::system::{ORDERS, System, USERS};

/// The username of the admin.
pub const ADMIN: &str = "admin";

/// The issuer in the tokens: the address of user-service under `make run`. Elsewhere it is only a name.
const ISSUER: &str = "http://127.0.0.1:3001";
const AUDIENCE: &str = "three-services";

/// Keys, and the password of the admin. Its files are readable only by their owner, and removed with this value.
pub struct SignIn {
    folder: PathBuf,
    password: String,
}

impl SignIn {
    /// Makes new keys and a password.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn new() -> Result<Self, String> {
        let folder = env::temp_dir().join(format!("three-services-{:032x}", rand::random::<u128>()));
        let sign_in = Self { folder, password: format!("{:032x}", rand::random::<u128>()) };
        sign_in.write_files().map_err(|error| format!("cannot write the keys of sign-in: {error}"))?;
        Ok(sign_in)
    }

    fn write_files(&self) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.folder)?;
        let key = || KeyPair::generate_for(&PKCS_ED25519).map_err(io::Error::other);
        let (issuer, service) = (key()?, key()?);
        self.write("issuer.pem", &issuer.serialize_pem())?;
        self.write("order-service.pem", &service.serialize_pem())?;
        self.write("order-service.pub.pem", &service.public_key_pem())?;
        self.write("password", &self.password)
    }

    fn write(&self, name: &str, content: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.folder.join(name))?;
        file.write_all(content.as_bytes())
    }

    /// Adds the settings of a service. All but user-service fetch the keys of the issuer from `users`, its address.
    pub(crate) fn set_up(&self, launch: Launch, users: &str) -> Launch {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let launch = launch.env("AUTH_ISSUER", ISSUER).env("AUTH_AUDIENCE", AUDIENCE);
        if launch.service() == USERS {
            let launch = launch.env("SIGNING_KEY_FILES", file("issuer.pem"));
            let launch = launch.env("SERVICE_KEYS_FILE", file("order-service.pub.pem"));
            return launch.env("AUTH_ADMINS", ADMIN).env("AUTH_ADMIN_PASSWORD_FILE", file("password"));
        }
        let launch = launch.env("AUTH_JWKS_URL", format!("{users}/.well-known/jwks.json"));
        if launch.service() == ORDERS {
            launch.env("SERVICE_KEY_FILE", file("order-service.pem"))
        } else {
            launch.env("SERVICE_KEYS_FILE", file("order-service.pub.pem"))
        }
    }

    /// Returns the folder of the files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the password of the admin.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Signs the admin in. Returns the value of the header `Authorization`.
    ///
    /// # Panics
    /// If user-service does not accept the password.
    pub async fn admin(&self, users: &Service) -> String {
        sign_in(users, ADMIN, &self.password).await
    }

    /// Returns commands for a shell: they sign the admin in, list the users and place an order.
    pub fn commands(&self, system: &System) -> String {
        let (users, products, orders) = (system.users.url(), system.products.url(), system.orders.url());
        let account = json!({"username": ADMIN, "password": self.password});
        format!(
            "  token=$(curl -s {users}/sessions -H 'content-type: application/json' \\\n    \
             -d '{account}' | sed 's/.*\"accessToken\":\"\\([^\"]*\\)\".*/\\1/')\n  \
             curl -s {users}/users -H \"authorization: Bearer $token\"\n  \
             curl -s {products}/products\n  \
             curl -s {orders}/orders -H \"authorization: Bearer $token\" -H 'content-type: application/json' \\\n    \
             -d '{{\"products\":[{{\"productId\":1,\"quantity\":1}}]}}'\n"
        )
    }
}

impl Drop for SignIn {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Signs a user in. Returns the value of the header `Authorization`.
///
/// # Panics
/// If user-service does not accept the password.
pub async fn sign_in(users: &Service, username: &str, password: &str) -> String {
    let session = users.post("/sessions", json!({"username": username, "password": password})).await.expect(200);
    format!("Bearer {}", session.json()["accessToken"].as_str().expect("a token"))
}
