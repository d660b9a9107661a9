//! What an engine counts, read at each scrape.

use crate::State;

/// One volume's figures.
#[derive(Clone, Debug)]
pub struct VolumeMetrics {
    /// Its name.
    pub name: String,
    /// What its nexus says.
    pub status: nexus::NexusStatus,
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
                Some(VolumeMetrics { name: task.name(), status: handle.nexus.status() })
            })
            .collect();
        Self { volumes, pools: state.pools.reports(&state.config) }
    }
}
