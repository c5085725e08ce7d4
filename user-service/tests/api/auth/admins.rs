//! The admins, common passwords, and the files of the settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs, process};

use clap::{CommandFactory, FromArgMatches};
use serde_json::json;
use testing::postgres;
use user_service::config::Config;
use user_service::issuer::Issuer;
use user_service::store::{self, PostgresStore, UserStore};

use super::{PASSWORD, Service, Setup, forge, key, new_key};

const ADMINS: &[&str] = &["Root", "Ädmin"];

async fn replica(pem: &str, store: &Arc<dyn UserStore>) -> Service {
    Setup { admins: ADMINS, ..Setup::signing_with(pem) }.start_over(Arc::clone(store), &new_key())
}

/// Creates the admins by two replicas at once, and checks that there is one account of each.
async fn create_admins(store: Arc<dyn UserStore>) {
    let pem = new_key();
    let (one, other) = (replica(&pem, &store).await, replica(&pem, &store).await);
    one.client.get("/readyz").await.expect_problem(503, "store-unavailable");
    tokio::join!(one.state.clone().create_admins(), other.state.clone().create_admins());
    let restarted = replica(&pem, &store).await;
    restarted.state.clone().create_admins().await;
    restarted.client.get("/readyz").await.expect(200);
    let token = restarted.token("root").await;
    let users = restarted.client.request("GET", "/users").token(&token).send().await.expect(200).json();
    let mut names: Vec<_> =
        users.as_array().into_iter().flatten().filter_map(|user| user["username"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Root", "Ädmin"]);
}

#[tokio::test]
async fn creates_the_missing_admins_once() {
    create_admins(store::memory(false).await.unwrap()).await;
}

#[tokio::test]
async fn creates_the_missing_admins_once_over_postgresql() {
    let Some(database) = postgres::database().await else { return };
    create_admins(Arc::new(PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap())).await;
}

#[tokio::test]
async fn keeps_the_password_of_an_admin_that_exists() {
    let pem = new_key();
    let store = store::memory(false).await.unwrap();
    let before = Setup::signing_with(&pem).start_over(Arc::clone(&store), &new_key());
    let account = json!({"username": "root", "password": "the password of before"});
    before.client.post("/users", account).await.expect(201);
    let service = replica(&pem, &store).await;
    service.state.clone().create_admins().await;
    service.sign_in("root", PASSWORD).await.expect(401);
    service.sign_in("root", "the password of before").await.expect(200);
}

#[tokio::test]
async fn gives_the_name_of_an_admin_to_no_other_account() {
    let pem = new_key();
    let store = store::memory(false).await.unwrap();
    let service = replica(&pem, &store).await;
    service.client.post("/users", json!({"name": "Eve", "username": "eve"})).await.expect(201);
    let (eve, admin) = (forge(&key(&pem), 1, &[]), forge(&key(&pem), 2, &["admin"]));
    let expect_taken = async || {
        for username in ["Root", "root", "ROOT", "ｒｏｏｔ", "ädmin", "A\u{308}DMIN"] {
            let account = json!({"username": username, "password": PASSWORD});
            service.client.post("/users", account.clone()).await.expect_problem(409, "username-taken");
            for token in [&eve, &admin] {
                let rename = service.client.request("PATCH", "/users/1").token(token).json(&account);
                rename.send().await.expect_problem(409, "username-taken");
            }
        }
    };
    expect_taken().await; // before they exist
    service.state.clone().create_admins().await;
    expect_taken().await;
    let patch = async |body| service.client.request("PATCH", "/users/2").token(&admin).json(&body).send().await;
    patch(json!({"username": "ROOT", "name": "The admin"})).await.expect(200); // its own name
    patch(json!({"username": "former"})).await.expect(200);
    expect_taken().await;
    patch(json!({"username": "Root"})).await.expect_problem(409, "username-taken");
    service.client.request("DELETE", "/users/2").token(&admin).send().await.expect(204);
    expect_taken().await;
    let roles = service.sign_in("root", PASSWORD).await;
    roles.expect_problem(401, "invalid-credentials");
}

#[tokio::test]
async fn rejects_the_most_common_passwords_while_sign_in_is_on() {
    let pem = new_key();
    let (on, off) = (Setup::signing_with(&pem).start().await, crate::support::service().await);
    on.sign_up("ada").await;
    off.post("/users", json!({"name": "Ada"})).await.expect(201);
    let token = forge(&key(&pem), 1, &[]);
    for (password, is_common) in [
        ("password", true),
        ("12345678", true),
        ("PassWord1", true),
        ("qwertyuiop", true),
        ("webster1", true), // the last one of the list
        ("password of ada", false),
        ("# The first", false),
    ] {
        let body = json!({"name": "Ada", "password": password});
        let changes = [
            on.client.request("POST", "/users").json(&body),
            on.client.request("PATCH", "/users/1").token(&token).json(&body),
        ];
        for change in changes {
            let response = change.send().await;
            match is_common {
                true => response.expect_invalid(&["/password"]),
                false => assert!(response.status.is_success(), "{password}: {response}"),
            }
        }
        off.post("/users", body.clone()).await.expect(201);
        off.patch("/users/1", body).await.expect(200);
    }
}

#[test]
fn has_a_list_of_3000_common_passwords() {
    let list = include_str!("../../../src/common_passwords.txt");
    let passwords: Vec<_> = list.lines().filter(|line| !line.starts_with("# ")).collect();
    assert_eq!(passwords.len(), 3000);
    for password in passwords {
        assert!(password.chars().count() >= 8 && password == password.to_lowercase(), "{password}");
    }
}

/// A file that is removed at the end of a test.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = env::temp_dir().join(format!("user-service-{}-{name}", process::id()));
        fs::write(&path, content).expect("a file that can be written");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Reads the settings from these flags, and nothing from the environment.
fn config(flags: &[&str]) -> Result<Config, String> {
    let command = Config::command().mut_args(|argument| argument.env(None::<&str>));
    let matches =
        command.try_get_matches_from([&["user-service"], flags].concat()).map_err(|error| error.to_string())?;
    Config::from_arg_matches(&matches).map_err(|error| error.to_string())
}

fn open(keys: &str, password: Option<&Path>) -> Result<Option<Issuer>, String> {
    let (keys, password) = (format!("--signing-key-files={keys}"), password.map(|file| file.display().to_string()));
    let password = password.map(|file| format!("--auth-admin-password-file={file}"));
    let mut flags =
        vec!["--auth-issuer=https://users.example", "--auth-audience=shop", "--auth-admins=root,ada", &keys];
    flags.extend(password.as_deref());
    Issuer::open(&config(&flags)?)
}

#[test]
fn names_a_file_that_it_cannot_use_and_repeats_no_part_of_it() {
    let good = File::new("good.pem", &new_key());
    let path = good.0.display().to_string();
    assert!(open(&path, None).is_ok_and(|issuer| issuer.is_some()));
    assert!(open(&format!("{path}, {path}"), None).is_ok(), "blanks beside a comma");
    let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQ";
    let bad = File::new("bad.pem", &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n"));
    let bad_path = bad.0.display().to_string();
    for keys in [&bad_path, &format!("{path},{bad_path}"), "/no/such/file.pem", "/tmp"] {
        let error = open(keys, None).err().expect(keys);
        let file = keys.rsplit(',').next().unwrap();
        assert!(error.contains(file) && !error.contains(secret), "{error}");
    }
    for (number, content) in ["short", "password1\n", "", "two\nlines of it\n", &"x".repeat(129)].iter().enumerate() {
        let file = File::new(&format!("password-{number}"), content);
        let error = open(&path, Some(&file.0)).err().expect(content);
        assert!(error.contains(&file.0.display().to_string()), "{error}");
        assert!(content.is_empty() || !error.contains(content.trim()), "{error}");
    }
    for content in [PASSWORD, &format!("{PASSWORD}\n"), &format!("{PASSWORD}\r\n")] {
        let file = File::new("password", content);
        assert!(open(&path, Some(&file.0)).is_ok(), "{content:?}");
    }
}

#[test]
fn rejects_settings_that_miss_what_they_need() {
    let issuer = ["--auth-issuer=https://users.example", "--auth-audience=shop"];
    for (flags, named) in [
        (&["--signing-key-files=a.pem"][..], "--auth-issuer"),
        (&[issuer[0], issuer[1], "--auth-admins=root"], "--signing-key-files"),
        (&[issuer[0], issuer[1], "--signing-key-files=a.pem", "--auth-admin-password-file=p"], "--auth-admins"),
        (&[issuer[0], issuer[1], "--signing-key-files=a.pem,,b.pem"], "--signing-key-files"),
        (&[issuer[0], issuer[1], "--signing-key-files=a.pem", "--auth-admins=root,"], "--auth-admins"),
        (&[issuer[0], issuer[1], "--signing-key-files=a.pem", "--auth-admins=\u{fb01}"], "--auth-admins"),
    ] {
        let error = config(flags).err().unwrap_or_else(|| panic!("{flags:?}"));
        assert!(error.contains(named), "{error}");
    }
    assert!(config(&issuer).is_ok_and(|config| Issuer::open(&config).is_ok_and(|issuer| issuer.is_none())));
}
