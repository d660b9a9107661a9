//! What handlers take from a request, with refusals that are problems.

use crate::Problem;
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Query, Request, rejection::JsonRejection},
    http::{HeaderMap, header, request::Parts},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::{convert::Infallible, time::Duration};

/// The longest that a request may wait.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// A body of JSON.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = Json::<T>::from_request(request, state).await;
        body.map(|Json(body)| Self(body)).map_err(|refused| {
            let hint = match refused {
                JsonRejection::MissingJsonContentType(_) => "send it as application/json",
                _ => "/openapi.json says what the body must be",
            };
            Problem::bad_request(format!("the body: {}", refused.body_text()), hint)
        })
    }
}

/// What is behind the question mark.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let parameters = Query::<T>::from_request_parts(parts, state).await;
        parameters.map(|Query(parameters)| Self(parameters)).map_err(|refused| {
            Problem::bad_request(format!("the query: {}", refused.body_text()), "correct it")
        })
    }
}

/// `?wait=30s`: how long to wait for what was asked for.
pub(crate) struct Wait(pub(crate) Option<Duration>);

impl<S: Send + Sync> FromRequestParts<S> for Wait {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Waiting {
            wait: Option<String>,
        }
        let Parameters(Waiting { wait }) = Parameters::from_request_parts(parts, state).await?;
        let Some(text) = wait else { return Ok(Self(None)) };
        let duration = parse_duration(&text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Problem::bad_request(
                format!("wait={shown:?} is not a duration"),
                "use one such as 30s, 500ms or 2m",
            )
        })?;
        Ok(Self(Some(duration.min(WAIT_MAX))))
    }
}

/// `?node=NAME`: what is on this node and nowhere else.
pub(crate) struct OnNode(pub(crate) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for OnNode {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct On {
            node: Option<String>,
        }
        let Parameters(On { node }) = Parameters::from_request_parts(parts, state).await?;
        Ok(Self(node))
    }
}

/// A duration as people write it: `30s`, `500ms`, `10m`; seconds where there is no unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(60 * 60).map(Duration::from_secs),
        _ => None,
    }
}

/// `If-Match: "REVISION"`: only if the object is still at that revision.
pub(crate) struct IfMatch(Option<String>);

impl IfMatch {
    pub(crate) fn check(&self, object: &str, revision: u64) -> Result<(), Problem> {
        match &self.0 {
            Some(wanted) if wanted != "*" && *wanted != etag(revision) => Err(Problem::precondition(
                format!("{object} is at revision {} and not at {wanted}", etag(revision)),
            )),
            _ => Ok(()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let header = parts.headers.get(header::IF_MATCH);
        // What is not text matches nothing.
        Ok(Self(header.map(|value| value.to_str().unwrap_or("").to_owned())))
    }
}

/// The entity tag of a revision.
pub(crate) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The `ETag` header of a revision.
pub(crate) fn etag_header(revision: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = etag(revision).parse() {
        headers.insert(header::ETAG, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, wanted) in [
            ("30s", Some(Duration::from_secs(30))),
            ("30", Some(Duration::from_secs(30))),
            ("500ms", Some(Duration::from_millis(500))),
            ("2m", Some(Duration::from_secs(120))),
            ("", None),
            ("s", None),
            ("2h", Some(Duration::from_secs(7200))),
            ("1d", None),
            ("-1s", None),
            ("99999999999999999999", None),
            ("18446744073709551615m", None),
        ] {
            assert_eq!(parse_duration(text), wanted, "{text}");
        }
    }
}
