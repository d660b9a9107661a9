//! How the process that has the store open serves it to the others. `crate::wire` says what travels.

use crate::{
    Client, Error, ErrorKind, Event, Events, Expect, OBJECT_BYTES_MAX, WATCH_ALIVE_INTERVAL,
    wire::{Failure, Line, List, PREFIX, Revision, status_of},
};
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::JsonRejection},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use model::Kind;
use serde_json::Value;
use std::convert::Infallible;
use tokio::{sync::watch, time::timeout};

#[derive(Clone)]
struct Served {
    client: Client,
    closing: watch::Receiver<bool>,
}

/// The routes below `/store/v1`. When `closing` becomes true, or is dropped, the watches end.
pub fn routes(client: Client, closing: watch::Receiver<bool>) -> Router {
    let routes = Router::new()
        .route("/{kind}", get(list))
        .route("/{kind}/{key}", get(read).put(write).delete(delete))
        .route("/watch/{kind}", get(watch_kind))
        .layer(DefaultBodyLimit::max(OBJECT_BYTES_MAX))
        .with_state(Served { client, closing });
    Router::new().nest(PREFIX, routes)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let failure = Failure { kind: self.kind(), message: self.to_string() };
        (status_of(self.kind()), Json(failure)).into_response()
    }
}

fn kind_of(name: &str) -> Result<Kind, Error> {
    name.parse().map_err(|unknown| {
        let shown: String = name.chars().take(40).collect();
        Error::new(ErrorKind::Invalid, format!("{shown:?}: {unknown}"))
    })
}

async fn list(State(served): State<Served>, Path(kind): Path<String>) -> Result<Response, Error> {
    let items = served.client.list_raw(kind_of(&kind)?).await?;
    Ok(Json(List { items }).into_response())
}

async fn read(
    State(served): State<Served>,
    Path((kind, key)): Path<(String, String)>,
) -> Result<Response, Error> {
    let kind = kind_of(&kind)?;
    let found = served.client.get_raw(kind, &key).await?;
    found.map(|stored| Json(stored).into_response()).ok_or_else(|| Error::not_found(kind, &key))
}

async fn write(
    State(served): State<Served>,
    Path((kind, key)): Path<(String, String)>,
    Query(Revision { revision }): Query<Revision>,
    body: Result<Json<Value>, JsonRejection>,
) -> Result<Response, Error> {
    let kind = kind_of(&kind)?;
    let Json(value) = body.map_err(|cause| {
        Error::because(ErrorKind::Invalid, format!("{kind}/{key} refused: its body is not JSON"), cause)
    })?;
    let expect = if revision == 0 { Expect::Absent } else { Expect::Revision(revision) };
    // In its own task: a client that hangs up must not leave the outcome to chance.
    let written = tokio::spawn(async move { served.client.put_raw(kind, &key, expect, value).await });
    let revision = written
        .await
        .map_err(|cause| Error::because(ErrorKind::Unknown, "a write may have happened", cause))??;
    Ok(Json(Revision { revision }).into_response())
}

async fn delete(
    State(served): State<Served>,
    Path((kind, key)): Path<(String, String)>,
    Query(Revision { revision }): Query<Revision>,
) -> Result<Response, Error> {
    served.client.delete_raw(kind_of(&kind)?, &key, revision).await?;
    Ok(Json(Revision { revision: 0 }).into_response())
}

async fn watch_kind(State(served): State<Served>, Path(kind): Path<String>) -> Result<Response, Error> {
    let events = served.client.watch_raw(kind_of(&kind)?);
    let lines = stream::unfold((events, served.closing), |(mut events, mut closing)| async {
        let line = next_line(&mut events, &mut closing).await?;
        let mut json = serde_json::to_vec(&line).ok()?;
        json.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(json)), (events, closing)))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

async fn next_line(events: &mut Events, closing: &mut watch::Receiver<bool>) -> Option<Line> {
    let event: Option<Event> = tokio::select! {
        biased;
        _ = closing.wait_for(|closing| *closing) => return None,
        event = timeout(WATCH_ALIVE_INTERVAL, events.recv()) => match event {
            Ok(event) => event,
            Err(_) => return Some(Line::Alive { alive: true }),
        },
    };
    event.map(Line::Event)
}
