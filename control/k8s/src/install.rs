//! The definitions of the custom resources, put into a cluster.
//!
//! 1. Applying them again changes nothing, and an object is never touched by it.

use crate::{
    crds,
    kubernetes::{Kubernetes, folder},
    server::Verb,
};
use model::Kind;
use serde::de::IgnoredAny;
use std::time::Duration;
use store::{Error, ErrorKind, OPERATION_TIMEOUT, Result};
use tokio::time::{Instant, sleep};

/// How long an API server may take to serve what it was told to.
const SERVED_WITHIN: Duration = Duration::from_secs(60);

impl Kubernetes {
    /// Applies the definitions, and waits until all kinds are served.
    pub async fn install(&self) -> Result<()> {
        for crd in crds() {
            let path = format!(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}?fieldManager=orlop&force=true",
                crd["metadata"]["name"].as_str().unwrap_or_default()
            );
            let deadline = Instant::now() + OPERATION_TIMEOUT;
            let _: IgnoredAny = self.server.ask(&Verb::Apply(crd), &path, deadline).await?;
        }
        let deadline = Instant::now() + SERVED_WITHIN;
        for kind in Kind::ALL {
            while let Err(error) = self.server.list(&folder(kind), deadline).await {
                if error.kind() != ErrorKind::Unavailable || Instant::now() > deadline {
                    return Err(Error::because(error.kind(), format!("{kind} are not served yet"), error));
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }
}
