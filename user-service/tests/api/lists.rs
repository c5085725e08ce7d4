//! Lists: plain arrays, oldest first, a page at a time.

use crate::support::{add, add_many, ids, next_page, seeded, service, sign_up};

#[tokio::test]
async fn a_list_is_a_plain_array_of_what_each_user_is_alone_oldest_first() {
    let client = seeded().await;
    sign_up(&client, "ada").await;
    let list = client.get("/users").await.expect(200);
    assert_eq!(list.header("content-type"), "application/json");
    assert_eq!(ids(&list.json()), [1, 2, 3]);
    for user in list.json().as_array().unwrap() {
        assert_eq!(client.get(&format!("/users/{}", user["id"])).await.json(), *user);
    }
    assert_eq!(client.get("/api/users").await.json(), list.json());
    assert_eq!(service().await.get("/users").await.expect(200).body, "[]");
}

#[tokio::test]
async fn a_page_has_100_rows_unless_the_client_says_otherwise() {
    let client = service().await;
    add_many(&client, 100).await;
    let all = client.get("/users").await.expect(200);
    assert_eq!((ids(&all.json()).len(), next_page(&all).as_str()), (100, ""));
    add(&client, "101").await;
    let page = client.get("/users").await.expect(200);
    assert_eq!((ids(&page.json()).len(), next_page(&page).as_str()), (100, "/users?after=100"));
    let all = client.get("/users?limit=1000").await.expect(200);
    assert_eq!((ids(&all.json()).len(), next_page(&all).as_str()), (101, ""));
}

#[tokio::test]
async fn there_is_a_next_page_exactly_while_more_follows() {
    let client = service().await;
    add_many(&client, 4).await;
    client.delete("/users/2").await.expect(204);
    for (query, found, next) in [
        ("limit=1", vec![1], "/users?limit=1&after=1"),
        ("limit=2", vec![1, 3], "/users?limit=2&after=3"),
        ("limit=3", vec![1, 3, 4], ""),
        ("limit=4", vec![1, 3, 4], ""),
        ("limit=2&after=1", vec![3, 4], ""),
        ("limit=1&after=1", vec![3], "/users?limit=1&after=3"),
        ("after=2&limit=1", vec![3], "/users?limit=1&after=3"),
        ("after=4", vec![], ""),
        ("after=9223372036854775807", vec![], ""),
    ] {
        let page = client.get(&format!("/users?{query}")).await.expect(200);
        assert_eq!((ids(&page.json()), next_page(&page).as_str()), (found, next), "{query}");
    }
}

#[tokio::test]
async fn following_the_links_one_sees_everybody_once_in_either_family() {
    let client = service().await;
    add_many(&client, 10).await;
    for root in ["/users", "/api/users"] {
        for limit in 1..=11 {
            let (mut seen, mut path) = (Vec::new(), format!("{root}?limit={limit}"));
            while !path.is_empty() {
                assert!(path.starts_with(&format!("{root}?")), "{path} left the family");
                let page = client.get(&path).await.expect(200);
                assert!(ids(&page.json()).len() <= limit, "{page}");
                seen.extend(ids(&page.json()));
                assert!(seen.is_sorted_by(|one, next| one < next), "out of order or twice: {seen:?}");
                path = next_page(&page);
            }
            assert_eq!(seen, (1..=10).collect::<Vec<_>>(), "{root}, {limit} at a time");
        }
    }
}

#[tokio::test]
async fn a_link_keeps_the_rest_of_the_query() {
    let client = service().await;
    add_many(&client, 3).await;
    let page = client.get("/users?trace=a%26b%3E+c&limit=1&after=1&x").await.expect(200);
    assert_eq!(next_page(&page), "/users?trace=a%26b%3E+c&limit=1&x=&after=2");
}

#[tokio::test]
async fn of_the_ids_asked_for_those_that_there_are_are_answered_once_each() {
    let client = service().await;
    add_many(&client, 130).await;
    client.delete("/users/3").await.expect(204);
    for (asked, found) in [("5", vec![5]), ("5,3,1,999,5", vec![1, 5]), ("3", vec![]), ("9223372036854775807", vec![])]
    {
        let answer = client.get(&format!("/users?ids={asked}")).await.expect(200);
        assert_eq!((ids(&answer.json()), next_page(&answer).as_str()), (found, ""), "{asked}");
    }
    let asked: Vec<i64> = (1..=130).filter(|&id| id != 3).take(128).collect();
    let query = asked.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let answer = client.get(&format!("/api/users?ids={query}")).await.expect(200);
    assert_eq!((ids(&answer.json()), next_page(&answer).as_str()), (asked, ""), "more than a page has by default");
}
