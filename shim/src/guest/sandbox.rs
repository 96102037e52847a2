//! Calls about the guest as a whole: liveness, features, the sandbox, entropy, clock, OOM events. Called by
//! `sandbox`.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_proto::agent::{
    CreateSandboxRequest, DestroySandboxRequest, GetOOMEventRequest, GuestDetailsRequest,
    ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use agent_proto::health::{CheckRequest, health_check_response::ServingStatus};
use ttrpc::context::Context;

use super::{Agent, failure};
use crate::error::{Context as _, Error, Kind, Result};

/// Most features that an agent may announce, and most bytes of a name: far above what exists.
const MOST_FEATURES: usize = 64;
const MOST_NAME: usize = 128;

/// What an agent says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// Version of the agent.
    pub version: String,
    /// Whether processes can get a seccomp filter.
    pub seccomp: bool,
    /// Names of what it can do beyond the kata-agent protocol.
    pub features: Vec<String>,
}

impl Agent {
    /// Asks whether the agent serves.
    ///
    /// # Errors
    /// `Unavailable` if it says no; else as every call.
    pub async fn check(&self) -> Result<()> {
        const WHAT: &str = "tell whether it serves";
        let answer = self.ask(WHAT, self.health.check(self.context(), &CheckRequest::new())).await?;
        match answer.status.enum_value() {
            Ok(ServingStatus::SERVING) => Ok(()),
            _ => Err(Error::new(Kind::Unavailable, "The guest agent says that it does not serve")),
        }
    }

    /// Asks for version and features.
    ///
    /// # Errors
    /// As every call.
    pub async fn details(&self) -> Result<Details> {
        const WHAT: &str = "tell its version and features";
        let answer =
            self.ask(WHAT, self.rpc.get_guest_details(self.context(), &GuestDetailsRequest::new())).await?;
        let details = answer.agent_details.unwrap_or_default();
        if details.extra_features.len() > MOST_FEATURES {
            return Err(failure::nonsense(WHAT, &format!("{} features", details.extra_features.len())));
        }
        let name = |text: &String| failure::bounded(text, MOST_NAME);
        Ok(Details {
            version: name(&details.version),
            seccomp: details.supports_seccomp,
            features: details.extra_features.iter().map(name).collect(),
        })
    }

    /// Makes the sandbox: hostname, DNS, and the storages that all containers see.
    ///
    /// # Errors
    /// As every call.
    pub async fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<()> {
        self.ask("create the sandbox", self.rpc.create_sandbox(self.context(), request)).await.map(drop)
    }

    /// Ends all containers and the agent; a guest whose PID 1 it is powers off.
    ///
    /// # Errors
    /// As every call; `Unavailable` may mean that the guest was quick.
    pub async fn destroy_sandbox(&self) -> Result<()> {
        let request = DestroySandboxRequest::new();
        self.ask("destroy the sandbox", self.rpc.destroy_sandbox(self.context(), &request)).await.map(drop)
    }

    /// Adds `bytes` to the guest's entropy and makes its generator start anew.
    ///
    /// # Errors
    /// As every call.
    pub async fn reseed(&self, bytes: &[u8]) -> Result<()> {
        let request = ReseedRandomDevRequest { data: bytes.to_vec(), ..Default::default() };
        let call = self.rpc.reseed_random_dev(self.context(), &request);
        self.ask("reseed the guest's random numbers", call).await.map(drop)
    }

    /// Sets the guest's clock.
    ///
    /// # Errors
    /// `InvalidArgument` for a time before 1970; else as every call.
    pub async fn set_time(&self, now: SystemTime) -> Result<()> {
        let since = now
            .duration_since(UNIX_EPOCH)
            .kind(Kind::InvalidArgument, || "The host's clock is before 1970; set it".into())?;
        let request = SetGuestDateTimeRequest {
            Sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Usec: i64::from(since.subsec_micros()),
            ..Default::default()
        };
        self.ask("set the guest's clock", self.rpc.set_guest_date_time(self.context(), &request))
            .await
            .map(drop)
    }

    /// Waits without deadline until the kernel has killed a process for want of memory; answers the guest's id of
    /// the container.
    ///
    /// # Errors
    /// As every call without a deadline.
    pub async fn oom_event(&self) -> Result<String> {
        let request = GetOOMEventRequest::new();
        let call = self.rpc.get_oom_event(Context::default(), &request);
        let event = self.wait("report a container out of memory", call).await?;
        Ok(failure::bounded(&event.container_id, MOST_NAME * 2))
    }
}
