//! The REST API from the side of the commands: one request at a time, JSON in and out.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// An answer larger than this is not one of ours.
const ANSWER_MAX_BYTES: usize = 64 << 20;
/// Longer than any `?wait=` of the commands.
const PATIENCE: Duration = Duration::from_secs(90);

/// A connection to the API.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    base: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

/// The parts of an `application/problem+json` that are shown (RFC 9457).
#[derive(serde::Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    hint: Option<String>,
}

impl Client {
    /// A client of the API at `base`, such as `http://127.0.0.1:7070`.
    pub(crate) fn new(base: &str) -> Outcome<Self> {
        let trimmed = base.trim_end_matches('/');
        let usable = trimmed.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none()
        });
        if !usable {
            return Err(Failure::new(format!("{base:?} is not the address of an API"))
                .kind(Kind::Usage)
                .hint("write it as http://HOST:PORT"));
        }
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Ok(Self { base: trimmed.to_owned(), http })
    }

    /// The address of the API.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Reads one object or list.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Outcome<T> {
        self.answer(Method::GET, path, None).await
    }

    /// Sends `body` and reads the answer.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Outcome<T> {
        self.answer(Method::POST, path, Some(encode(body)?)).await
    }

    /// Deletes one object: what is left of it, or nothing.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Outcome<Option<T>> {
        let bytes = self.send(Method::DELETE, path, None).await?;
        if bytes.is_empty() { Ok(None) } else { self.decode(path, &bytes).map(Some) }
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Outcome<T> {
        let bytes = self.send(method, path, body).await?;
        self.decode(path, &bytes)
    }

    fn decode<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Outcome<T> {
        serde_json::from_slice(bytes).map_err(|error| {
            Failure::new(format!("{}{path} gave an answer that is not understood: {error}", self.base))
                .hint("are the program and the controller of the same version?")
        })
    }

    async fn send(&self, method: Method, path: &str, body: Option<Bytes>) -> Outcome<Bytes> {
        let unreachable = |cause: String| {
            Failure::new(format!("the API at {} cannot be reached: {cause}", self.base))
                .kind(Kind::Unreachable)
                .hint("start one with `orlop dev`, or name another with --api or ORLOP_API")
        };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .or_fail(|| format!("{path:?} is not a path of the API"))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| unreachable(deepest(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
            let bytes = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", PATIENCE.as_secs())))?
    }
}

fn encode(body: &impl Serialize) -> Outcome<Bytes> {
    serde_json::to_vec(body).map(Bytes::from).or_fail(|| "cannot write the request as JSON".into())
}

/// The last cause of an error says what happened; those above it only where.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What the API said no to.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let (what, hint) = match problem {
        Some(Problem { title, detail, hint }) => (detail.or(title), hint),
        None => (None, None),
    };
    let failure = Failure::new(what.unwrap_or_else(|| format!("the API answered {status}")));
    let failure = failure.kind(match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Kind::Conflict,
        _ => Kind::Failed,
    });
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_addresses_are_taken() {
        for (base, good) in [
            ("http://127.0.0.1:7070", true),
            ("http://localhost:7070/", true),
            ("127.0.0.1:7070", false),
            ("https://x", false),
            ("", false),
            ("http://x?y", false),
        ] {
            assert_eq!(Client::new(base).is_ok(), good, "{base}");
        }
    }

    #[test]
    fn a_refusal_carries_what_the_api_said() {
        let body = br#"{"title":"Conflict","detail":"volume \"a\" exists","hint":"choose another name"}"#;
        let failure = refusal(StatusCode::CONFLICT, body);
        assert!(failure.is(Kind::Conflict));
        assert_eq!(failure.to_string(), "volume \"a\" exists; choose another name");
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, b"<html>").to_string(),
            "the API answered 502 Bad Gateway"
        );
    }
}
