//! Every failure as a problem (RFC 9457): one object, one cause, one thing to do.

use axum::{
    Json,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use manager::NoPlace;
use model::Invalid;
use serde::{Deserialize, Serialize};
use store::ErrorKind;
use utoipa::ToSchema;

/// Why a request failed.
///
/// # Spec
/// RFC 9457, section 3.1; `hint` is an extension member (section 3.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What kind of problem, for programs: `urn:orlop:problem:...`.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The same for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The object and the cause.
    pub detail: String,
    /// What to do.
    pub hint: String,
}

impl Problem {
    fn new(
        status: StatusCode,
        name: &str,
        title: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            type_uri: format!("urn:orlop:problem:{name}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn not_found(noun: &str, name: &str) -> Self {
        // A hostile name must not fill a screen.
        let shown: String = name.chars().take(80).collect();
        let hint = format!("`orlop {noun} list` shows those that there are");
        let detail = format!("there is no {noun} {shown:?}");
        Self::new(StatusCode::NOT_FOUND, "not-found", "No such object", detail, hint)
    }

    pub(crate) fn bad_request(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request is not understood", detail, hint)
    }

    pub(crate) fn in_the_way(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "The state of the object forbids it", detail, hint)
    }

    pub(crate) fn node_full(object: &str, node: &str, there: usize) -> Self {
        let detail =
            format!("{object}: node {node} has {there} volumes attached, which is as many as it takes");
        let hint = "choose another node, or detach a volume there first";
        Self::new(StatusCode::CONFLICT, "node-full", "The node takes no more volumes", detail, hint)
    }

    pub(crate) fn precondition(detail: impl Into<String>) -> Self {
        let hint = "read the object again and decide anew";
        Self::new(StatusCode::PRECONDITION_FAILED, "changed", "The object has changed", detail, hint)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        let (title, hint) = ("The store cannot be used", "nothing was done; try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", title, detail, hint)
    }

    pub(crate) fn no_place(object: &str, why: &NoPlace) -> Self {
        let (name, title) = match why {
            NoPlace::TooFewNodes { .. } => ("too-few-nodes", "Too few nodes"),
            NoPlace::TooFewDomains { .. } => ("too-few-domains", "Too few failure domains"),
            NoPlace::TooLittleSpace { .. } => ("too-little-space", "Too little space"),
            NoPlace::NotThere { .. } => ("not-there", "No place where a copy has to be"),
        };
        Self::new(StatusCode::CONFLICT, name, title, format!("{object}: {}", why.cause()), why.hint())
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        let detail = format!("{}: {}", invalid.object, invalid.cause);
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            "The object is not well formed",
            detail,
            invalid.hint,
        )
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        let detail = error.to_string();
        match error.kind() {
            ErrorKind::Conflict => Self::precondition(detail),
            ErrorKind::NotFound => {
                let hint = "list the objects that there are";
                Self::new(StatusCode::NOT_FOUND, "not-found", "No such object", detail, hint)
            }
            ErrorKind::Invalid => {
                let hint = "correct the request";
                Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "invalid",
                    "The object is not well formed",
                    detail,
                    hint,
                )
            }
            ErrorKind::Unavailable | ErrorKind::InUse => Self::unavailable(detail),
            ErrorKind::Unknown => {
                let hint = "look at the object before trying again: it may have been done";
                Self::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "outcome-unknown",
                    "The outcome is not known",
                    detail,
                    hint,
                )
            }
            ErrorKind::Corrupt => {
                let hint = "use the version of orlop that wrote it, or restore the store from a backup";
                let title = "The store is not understood";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store-corrupt", title, detail, hint)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(self)).into_response()
    }
}

pub(crate) async fn no_such_path(uri: Uri) -> Problem {
    let shown: String = uri.path().chars().take(120).collect();
    let hint = "/openapi.json lists the paths";
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        "No such path",
        format!("there is nothing at {shown}"),
        hint,
    )
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let shown: String = uri.path().chars().take(120).collect();
    let detail = format!("{method} is not possible on {shown}");
    let hint = "/openapi.json lists the methods";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", "No such method", detail, hint)
}
