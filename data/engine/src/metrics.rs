//! What an engine counts, read at each scrape.

use crate::State;
use crate::meter::IoMetrics;
use std::time::Duration;

/// One volume's figures.
#[derive(Clone, Debug)]
pub struct VolumeMetrics {
    /// Its name.
    pub name: String,
    /// What its nexus says.
    pub status: nexus::NexusStatus,
    /// What its hosts did, by operation.
    pub io: Vec<IoMetrics>,
    /// The longest that a write has waited since the nexus opened, or still waits.
    pub write_stall_max: Duration,
}

/// A snapshot of an engine's figures.
#[derive(Clone, Debug, Default)]
pub struct EngineMetrics {
    /// The volumes whose nexus runs here.
    pub volumes: Vec<VolumeMetrics>,
    /// The pools.
    pub pools: Vec<model::Pool>,
}

impl EngineMetrics {
    pub(crate) fn gather(state: &State) -> Self {
        let volumes = state
            .volumes
            .borrow()
            .values()
            .filter_map(|task| {
                let handle = task.handle()?;
                Some(VolumeMetrics {
                    name: task.name(),
                    status: handle.nexus.status(),
                    io: task.meter().read(),
                    write_stall_max: task.meter().stall_max_now(),
                })
            })
            .collect();
        Self { volumes, pools: state.pools.reports(&state.config) }
    }
}
