//! Who this is, and whether it can work.

use crate::{
    DRIVER,
    v1::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
        GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
        identity_server::{Identity, IdentityServer},
        plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
    },
};
use api::client::Client;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How long the API has to answer a probe: the answer tells also that the plugin is alive, and cannot be late for that.
const PATIENCE: Duration = Duration::from_secs(4);

/// The identity service.
#[derive(Debug)]
struct Plugin {
    api: Client,
}

/// The identity service of a plugin.
pub(crate) fn service(api: Client) -> IdentityServer<impl Identity> {
    IdentityServer::new(Plugin { api })
}

#[tonic::async_trait]
impl Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version,
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let expansion =
            |kind: volume_expansion::Type| Type::VolumeExpansion(VolumeExpansion { r#type: kind.into() });
        let capabilities = [
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            expansion(volume_expansion::Type::Online),
        ];
        let capabilities = capabilities.map(|kind| PluginCapability { r#type: Some(kind) }).into();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Ready while the API answers: all else waits for it.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let health = tokio::time::timeout(PATIENCE, self.api.health()).await;
        let ready = health.is_ok_and(|health| health.is_ok());
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}
