//! Calls about the guest's network. Called by `sandbox` with what `network` found in the pod's namespace.

use agent_proto::agent::{AddARPNeighborsRequest, UpdateInterfaceRequest, UpdateRoutesRequest};
use agent_proto::types::{ARPNeighbor, Interface, Route};

use super::Agent;
use crate::error::Result;

impl Agent {
    /// Gives the interface with that MAC address its name, MTU and addresses, and brings it up.
    ///
    /// # Errors
    /// As every call.
    pub async fn update_interface(&self, interface: &Interface) -> Result<()> {
        let request =
            UpdateInterfaceRequest { interface: Some(interface.clone()).into(), ..Default::default() };
        let what = format!("configure network interface {:?}", interface.name);
        self.ask(&what, self.rpc.update_interface(self.context(), &request)).await.map(drop)
    }

    /// Adds routes; the agent sorts those without a gateway first.
    ///
    /// # Errors
    /// As every call.
    pub async fn update_routes(&self, routes: &[Route]) -> Result<()> {
        let mut request = UpdateRoutesRequest::new();
        request.routes.mut_or_insert_default().Routes = routes.to_vec();
        self.ask("set its routes", self.rpc.update_routes(self.context(), &request)).await.map(drop)
    }

    /// Adds permanent neighbours.
    ///
    /// # Errors
    /// As every call.
    pub async fn update_neighbors(&self, neighbors: &[ARPNeighbor]) -> Result<()> {
        let mut request = AddARPNeighborsRequest::new();
        request.neighbors.mut_or_insert_default().ARPNeighbors = neighbors.to_vec();
        self.ask("set its neighbours", self.rpc.add_arp_neighbors(self.context(), &request)).await.map(drop)
    }
}
