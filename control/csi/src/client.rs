//! The other side, for those who probe or test the services: a plugin as an orchestrator sees it.

use crate::v1::{
    controller_client::ControllerClient, identity_client::IdentityClient, node_client::NodeClient,
};
use std::path::Path;
use tonic::transport::{Channel, Endpoint};

pub use tonic::{Code, Status};

/// The three services of one socket.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Who it is.
    pub identity: IdentityClient<Channel>,
    /// Creates and attaches.
    pub controller: ControllerClient<Channel>,
    /// Mounts.
    pub node: NodeClient<Channel>,
}

impl Plugin {
    /// Connects to a socket. The connection is made anew when the plugin was started again.
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await?;
        Ok(Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        })
    }
}
