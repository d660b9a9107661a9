//! The explicit word that lets a volume open whose record is from a copy, although not all its members have answered (I12).
//!
//! 1. It changes nothing but the mark, the epoch and the owner: an opening that is under way is fenced, and the next one asks
//!    the members that are there once more.

use crate::{
    App, Problem,
    nodes::find,
    requests::IfMatch,
    volumes::{ATTEMPTS_MAX, answer, object},
    wait::complete,
};
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use model::{Stored, Volume, VolumeRecord, VolumeView};
use store::ErrorKind;

/// Lets a volume open whose record is from a copy, without the members that do not answer: writes that only these have are
/// lost.
#[utoipa::path(
    post, path = "/api/v1/volumes/{name}/recover", tag = "volumes",
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
    ),
    responses(
        (status = 200, body = VolumeView, description = "it opens with the members that answer"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "its record is not from a copy, or is missing and no copy of it was found"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn recover_volume(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    let volume = find::<Volume>(&app.client, "volume", &name).await?;
    if_match.check(&object(&name), volume.revision)?;
    if volume.value.intent.deleting {
        let detail = format!("{} is being deleted", object(&name));
        return Err(Problem::in_the_way(detail, "wait until it is gone"));
    }
    let key = volume.value.uuid.to_string();
    for _ in 0..ATTEMPTS_MAX {
        let record = app.client.get::<VolumeRecord>(&key).await?;
        let Stored { revision, value } = record.ok_or_else(|| missing(&volume.value))?;
        if !value.unconfirmed {
            let detail =
                format!("the record of {} is not from a copy: nothing is to be confirmed", object(&name));
            let hint = format!("`orlop volume get {name}` says what it waits for");
            return Err(Problem::in_the_way(detail, hint));
        }
        let (version, epoch) = (value.version + 1, value.epoch + 1);
        // Invariant 1.
        let next = VolumeRecord { version, epoch, owner: None, unconfirmed: false, ..value };
        match app.client.replace(&next, revision).await {
            Ok(_) => {
                tracing::warn!(volume = name, epoch, "its record counts as confirmed, by the explicit word");
                return Ok(answer(StatusCode::OK, &complete(&app, volume).await?));
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Problem::in_the_way(format!("the record of {} keeps changing", object(&name)), "try again"))
}

fn missing(volume: &Volume) -> Problem {
    let object = object(&volume.name);
    if volume.intent.recorded {
        let detail = format!("the record of {object} is missing from the store, and no copy of it was found");
        let hint = "start the nodes that have its copies: the record is made again from what these keep";
        return Problem::in_the_way(detail, hint);
    }
    Problem::in_the_way(format!("{object} has no record yet"), "wait until its copies are made")
}
