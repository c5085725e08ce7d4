//! One entity as handlers and stores pass it around: a value and its JSON.
//!
//! The JSON is rendered on first use, by serde, and shared until the value is replaced. A read sends these bytes, a page
//! joins them, and the entity tag is a digest of them.

use std::array;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use axum::http::HeaderValue;
use bytes::Bytes;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

/// A value and its JSON. Cloning shares both.
pub struct Entity<T>(Arc<Inner<T>>);

struct Inner<T> {
    value: T,
    json: OnceLock<Bytes>,
}

impl<T: Serialize> Entity<T> {
    /// Wraps a value. Its `Serialize` decides what clients see.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Inner { value, json: OnceLock::new() }))
    }

    /// Returns the JSON of the value.
    ///
    /// # Panics
    /// If the value cannot be JSON. Types that derive `Serialize` and have no maps with other keys than strings always can.
    pub fn json(&self) -> &Bytes {
        self.0.json.get_or_init(|| serde_json::to_vec(&self.0.value).expect("a derived Serialize gives JSON").into())
    }

    /// Returns the strong entity tag (RFC 9110, section 8.8.3): the XXH3 digest of the JSON, 16 hexadecimal digits in quotes.
    ///
    /// XXH3 has a specification, so every replica and every release computes the same tag.
    pub fn etag(&self) -> HeaderValue {
        let digest = xxh3_64(self.json());
        let digit = |index| b"0123456789abcdef"[(digest >> (60 - 4 * index)) as usize & 0xf]; // `format!` costs 3 % of a read
        let tag: [u8; 18] = array::from_fn(|index| if index % 17 == 0 { b'"' } else { digit(index - 1) });
        HeaderValue::from_bytes(&tag).unwrap_or_else(|_| HeaderValue::from_static("\"\"")) // digits are valid in a header
    }

    /// Changes the value. If a reader still holds the entity, that reader keeps the old value.
    pub fn update(&mut self, change: impl FnOnce(&mut T))
    where
        T: Clone,
    {
        if Arc::get_mut(&mut self.0).is_none() {
            *self = Self::new(self.0.value.clone());
        }
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            change(&mut inner.value);
            inner.json = OnceLock::new();
        }
    }
}

impl<T> Deref for Entity<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Clone for Entity<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: PartialEq> PartialEq for Entity<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.value == other.0.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Entity<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_same_tag_in_every_release() {
        assert_eq!(Entity::new("x").etag(), "\"bbc5544a8f0ed47d\"");
    }

    #[test]
    fn gives_equal_values_equal_tags_and_different_values_different_tags() {
        assert_eq!(Entity::new([1, 2]).etag(), Entity::new(vec![1, 2]).etag());
        assert_ne!(Entity::new([1, 2]).etag(), Entity::new([2, 1]).etag());
    }

    #[test]
    fn renders_the_json_again_after_a_change_and_leaves_other_readers_alone() {
        let mut entity = Entity::new(1);
        let reader = entity.clone();
        assert_eq!(reader.json().as_ref(), b"1");
        entity.update(|value| *value = 2);
        assert_eq!((entity.json().as_ref(), reader.json().as_ref()), (&b"2"[..], &b"1"[..]));
        drop(reader);
        entity.update(|value| *value = 3);
        assert_eq!(entity.json().as_ref(), b"3");
    }
}
