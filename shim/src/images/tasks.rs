//! Tasks that run on this runtime, as people name them, and their checkpoint. Called by `microvmctl snapshot create`.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::{
    CheckpointTaskRequest, Container, ListContainersRequest, containers_client::ContainersClient,
    tasks_client::TasksClient,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use serde::Deserialize;

use super::{Client, answer, failed};
use crate::error::{Context, Error, Kind, Result};

/// Our name among containerd's runtimes.
const RUNTIME: &str = "io.containerd.microvm.v1";
/// Longest checkpoint: a minute for RAM (the shim's own limit) and one to pack it.
const CHECKPOINT: Duration = Duration::from_secs(120);
/// Annotations that containerd's CRI puts into the spec of a pod's sandbox; labels come from kubelet alone.
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const KIND: &str = "io.kubernetes.cri.container-type";

/// What we read of a spec.
#[derive(Debug, Default, Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Client {
    /// The id of the container that `wanted` names: an id, the beginning of just one, the name of a pod, or its
    /// Kubernetes namespace and name with a slash between.
    ///
    /// # Errors
    /// `NotFound` when nothing on this runtime has that name, `InvalidArgument` when several have.
    pub async fn find_task(&self, wanted: &str) -> Result<String> {
        let mut client = ContainersClient::new(self.channel());
        let filters = vec![format!("runtime.name=={RUNTIME}")];
        let all = answer(client.list(self.request(ListContainersRequest { filters }))).await;
        let all = all.map_err(failed(|| "Could not ask containerd for its containers".into()))?.containers;
        choose(&all, wanted)
    }

    /// Has the task `id` checkpointed into the directory `into`, which is empty or missing; without an image. With
    /// `exit` the pod ends when it is captured.
    ///
    /// # Errors
    /// The shim's own; `DeadlineExceeded` after two minutes.
    pub async fn checkpoint(&self, id: &str, into: &Path, exit: bool) -> Result<()> {
        let about = || format!("Could not checkpoint {id} into {}", into.display());
        let options =
            CheckpointOptions { image_path: into.to_string_lossy().into_owned(), exit, ..Default::default() };
        let mut request = CheckpointTaskRequest { container_id: id.into(), ..Default::default() };
        let any = request.options.insert(Default::default());
        any.type_url = "containerd.runc.v1.CheckpointOptions".into();
        any.value = options.write_to_bytes().context(about)?;
        let mut client = TasksClient::new(self.channel());
        match tokio::time::timeout(CHECKPOINT, client.checkpoint(self.request(request))).await {
            Ok(done) => done.map(drop).map_err(failed(about)),
            Err(_) => Err(Error::new(Kind::DeadlineExceeded, format!("{} within {CHECKPOINT:?}", about()))),
        }
    }
}

fn choose(all: &[Container], wanted: &str) -> Result<String> {
    if let Some(exact) = all.iter().find(|container| container.id == wanted) {
        return Ok(exact.id.clone());
    }
    let found: Vec<&str> =
        all.iter().filter(|one| is_named(one, wanted)).map(|one| one.id.as_str()).collect();
    match found[..] {
        [one] => Ok(one.into()),
        [] => {
            let text = format!(
                "containerd has no pod or container {wanted:?} on {RUNTIME} in this namespace (those of Kubernetes are \
                 in k8s.io)"
            );
            Err(Error::new(Kind::NotFound, text))
        }
        _ => {
            let text =
                format!("{wanted:?} names {} containers, say which: {}", found.len(), found.join(", "));
            Err(Error::new(Kind::InvalidArgument, text))
        }
    }
}

/// Whether `wanted` begins the id, or is the name of the pod whose sandbox this is.
fn is_named(container: &Container, wanted: &str) -> bool {
    if !wanted.is_empty() && container.id.starts_with(wanted) {
        return true;
    }
    // Of a container whose spec can't be read, only the id is known.
    let spec = container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
    let Annotated { annotations } = serde_json::from_slice(spec).unwrap_or_default();
    let has = |key: &str, value: &str| annotations.get(key).is_some_and(|found| found == value);
    let (namespace, name) = match wanted.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    has(KIND, "sandbox") && has(POD_NAME, name) && namespace.is_none_or(|one| has(POD_NAMESPACE, one))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(id: &str, kind: &str, pod: &str) -> Container {
        let mut container = Container { id: id.into(), ..Container::default() };
        let annotations = json!({KIND: kind, POD_NAME: pod, POD_NAMESPACE: "default"});
        container.spec.insert(Default::default()).value =
            json!({"ociVersion": "1.2.1", "annotations": annotations}).to_string().into_bytes();
        container
    }

    #[test]
    fn people_name_pods_in_several_ways() {
        let all = [
            container("abc1", "sandbox", "web"),
            container("abd2", "container", "web"),
            Container { id: "abc".into(), ..Container::default() },
            container("e1", "sandbox", "db"),
            container("e2", "sandbox", "db"),
        ];
        for (wanted, id) in
            [("web", "abc1"), ("default/web", "abc1"), ("abd", "abd2"), ("abc", "abc"), ("e2", "e2")]
        {
            assert_eq!(choose(&all, wanted).unwrap(), id, "{wanted}");
        }
        for wanted in ["kube-system/web", "nothing", "", "/"] {
            assert_eq!(choose(&all, wanted).unwrap_err().kind(), Kind::NotFound, "{wanted}");
        }
        let several = choose(&all, "db").unwrap_err();
        assert!(
            several.kind() == Kind::InvalidArgument && several.to_string().contains("e1, e2"),
            "{several}"
        );
    }
}
