//! Volumes that are wished for by an object alone: applied by a person, applied again after they were deleted by hand,
//! or begun by a creation that was interrupted.
//!
//! 1. A volume that has a UUID keeps it: its data is found again, and its record with it. It has had a record, for the
//!    UUID is the last that a creation writes: if there is none now, it was lost, and is not made again as if nothing had
//!    been (docs/decisions/0031).
//! 2. No creation is disturbed: it is done, or has ended, when its object has not changed for longer than any takes.
//! 3. The mandate is asked before every write, which is long after the list.

use crate::{
    kubernetes::{Kubernetes, folder},
    object::{Object, Parts, UUID},
};
use model::{Kind, Object as _, Volume, VolumeIntent};
use serde_json::Value;
use std::time::Duration;
use store::{Error, ErrorKind, Mandate, OPERATION_TIMEOUT, Result};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How long an object has to be as it is.
const STILL: Duration = OPERATION_TIMEOUT.saturating_add(Duration::from_secs(1));

impl Kubernetes {
    /// Makes volumes present that have no UUID or no status, and answers their names, while the mandate holds. Takes
    /// some seconds if there are any.
    ///
    /// # Errors
    /// As the store's; `Unavailable` if the mandate has ended, too.
    pub async fn adopt(&self, mandate: &Mandate) -> Result<Vec<String>> {
        let volumes = self.server.list(&folder(Kind::Volume), Instant::now() + OPERATION_TIMEOUT).await?;
        let absent: Vec<_> =
            volumes.items.into_iter().filter(|object| !object.is_present(Kind::Volume)).collect();
        if !absent.is_empty() {
            // Invariant 2: the swap below is by the revision of before.
            sleep(STILL).await;
        }
        let mut adopted = Vec::new();
        for object in absent {
            match self.adopt_one(&object, mandate).await {
                Ok(_) => adopted.push(object.metadata.name),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    tracing::warn!(volume = object.metadata.name, %error, "cannot be made");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(adopted)
    }

    async fn adopt_one(&self, object: &Object, mandate: &Mandate) -> Result<u64> {
        let name = &object.metadata.name;
        let invalid = |cause: String| {
            Error::new(ErrorKind::Invalid, format!("{}/{name} is not well formed: {cause}", Kind::Volume))
        };
        let mut spec = object.spec.clone();
        // Invariant 1.
        let uuid = spec.remove(UUID);
        let recorded = uuid.is_some();
        let uuid = uuid.unwrap_or_else(|| Uuid::new_v4().to_string().into());
        let volume = Volume {
            name: name.clone(),
            uuid: serde_json::from_value(uuid).map_err(|cause| invalid(cause.to_string()))?,
            spec: serde_json::from_value(Value::Object(spec)).map_err(|cause| invalid(cause.to_string()))?,
            intent: VolumeIntent { recorded, ..VolumeIntent::default() },
            message: None,
        };
        volume.validate().map_err(|cause| invalid(cause.to_string()))?;
        let value = serde_json::to_value(&volume).map_err(|cause| invalid(cause.to_string()))?;
        let parts = Parts::of(Kind::Volume, name, value)?;
        self.complete(Kind::Volume, object, &parts, (Instant::now() + OPERATION_TIMEOUT, mandate)).await
    }
}
