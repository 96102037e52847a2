//! Tasks that run on this runtime, as people name them, and their checkpoint. Called by `microvmctl snapshot create`.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::{
    CheckpointTaskRequest, Container, ListContainersRequest, containers_client::ContainersClient,
    tasks_client::TasksClient,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim::oci::CheckpointOptions;

use super::{Client, answer, failed};
use crate::error::{Context, Error, Kind, Result};

/// Our name among containerd's runtimes.
const RUNTIME: &str = "io.containerd.microvm.v1";
/// Longest checkpoint: a minute for RAM (the shim's own limit) and one to pack it.
const CHECKPOINT: Duration = Duration::from_secs(120);
/// Labels that containerd's CRI gives the containers of a pod.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const KIND: &str = "io.cri-containerd.kind";

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
    let label = |key: &str| container.labels.get(key).map_or("", String::as_str);
    let name = match wanted.split_once('/') {
        Some((namespace, name)) if namespace == label(POD_NAMESPACE) => name,
        Some(_) => return false,
        None => wanted,
    };
    let is_pod = label(KIND) == "sandbox" && label(POD_NAME) == name;
    is_pod || (!wanted.is_empty() && container.id.starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, kind: &str, pod: &str) -> Container {
        let labels = [(KIND, kind), (POD_NAME, pod), (POD_NAMESPACE, "default")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Container { id: id.into(), labels, ..Container::default() }
    }

    #[test]
    fn people_name_pods_in_several_ways() {
        let all = [
            container("abc1", "sandbox", "web"),
            container("abd2", "container", "web"),
            container("abc", "", ""),
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
