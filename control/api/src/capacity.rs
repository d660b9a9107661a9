//! How large a new volume may be.

use crate::{App, Problem, live::Live, requests::Parameters};
use axum::{Json, extract::State};
use manager::{Copies, Promised, largest};
use model::{DiskClass, limits::SIZE_MAX_BYTES, limits::SIZE_UNIT_BYTES};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};
use utoipa::ToSchema;

/// How long a sum of promises is believed.
const SUM_LASTS: Duration = Duration::from_secs(1);

/// What the volume is to be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Room {
    /// How many copies it has.
    pub copies: u32,
    /// The class of disks that they are on; any, if nothing is said.
    pub class: Option<DiskClass>,
    /// The label of nodes that keeps them apart; if nothing is said only nodes do.
    pub spread: Option<String>,
    /// The node that has to get one of them.
    pub on: Option<String>,
}

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// The size of the largest volume that can be made now; 0 if there are too few places, whatever their space.
    pub largest_volume_bytes: u64,
}

/// How large a volume can be made now. It may be larger than a disk: volumes are thin.
#[utoipa::path(
    get, path = "/api/v1/capacity", tag = "volumes", 
    params(
        ("copies" = u32, Query, description = "how many it has"),
        ("class" = Option<DiskClass>, Query, description = "of the disks that they are on; any, if nothing is said"),
        ("spread" = Option<String>, Query, description = "the label of nodes that keeps them apart"),
        ("on" = Option<String>, Query, description = "the node that has to get one of them"),
    ),
    responses(
        (status = 200, body = Capacity),
        (status = 400, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_capacity(
    State(app): State<App>,
    Parameters(Room { copies, class, spread, on }): Parameters<Room>,
) -> Result<Json<Capacity>, Problem> {
    let live = app.live().await?;
    let promised = app.promised.of(&live).await;
    let on = on.map(|node| BTreeSet::from([node]));
    let wanted = usize::try_from(copies).unwrap_or(usize::MAX);
    let copies = Copies { class, spread: spread.as_deref(), on: on.as_ref(), ..Copies::new(0, wanted) };
    let bytes = live.see(|view| largest(view, &promised, app.overcommit, &copies)).min(SIZE_MAX_BYTES);
    Ok(Json(Capacity { largest_volume_bytes: bytes / SIZE_UNIT_BYTES * SIZE_UNIT_BYTES }))
}

/// What has been promised of each pool, if somebody has asked.
#[derive(Clone, Default)]
pub(crate) struct Sum(Arc<Mutex<Option<Summed>>>);

struct Summed {
    at: Instant,
    promised: Arc<Promised>,
}

impl Sum {
    /// As it was a moment ago: many ask at once, and each sum is over all volumes.
    async fn of(&self, live: &Live) -> Arc<Promised> {
        let mut last = self.0.lock().await;
        if let Some(Summed { at, promised }) = &*last
            && at.elapsed() < SUM_LASTS
        {
            return Arc::clone(promised);
        }
        let promised = Arc::new(live.see(Promised::of));
        *last = Some(Summed { at: Instant::now(), promised: Arc::clone(&promised) });
        promised
    }
}
