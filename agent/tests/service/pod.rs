//! A pod from its sandbox to its end.

use agent_proto::agent::{
    CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest, GetDiagnosticDataRequest,
    SignalProcessRequest, StatsContainerRequest, WaitProcessRequest, WriteStreamRequest,
};
use agent_proto::oci;
use protobuf::well_known_types::empty::Empty;
use tokio::time::timeout;
use ttrpc::Code;

use crate::world::{LONG, carrier, ctx, left, refused, remove, start, test, workload};

#[test]
fn a_container_lives_in_its_pod_and_leaves_nothing() {
    test(|world| async move {
        let host = world.pod().await;
        let script = "cat /proc/sys/kernel/hostname /etc/resolv.conf /file; echo new > /file; echo $$; read line; exit 3";
        let mut request = workload(script);
        request.sandbox_pidns = true;
        host.agent.create_container(ctx(), &carrier()).await.unwrap();
        host.agent.create_container(ctx(), &request).await.unwrap();
        host.agent.start_container(ctx(), &start("web_ovl")).await.unwrap();
        let out = host.read_until("2\n").await;
        assert_eq!(out, "podname\nnameserver 10.0.0.10\nof the image2\n", "process 1 is the pod's");

        let wanted = StatsContainerRequest { container_id: "web_ovl".into(), ..Default::default() };
        let stats = host.agent.stats_container(ctx(), &wanted).await.unwrap();
        let memory = &stats.cgroup_stats.memory_stats.stats;
        assert_eq!(memory["microvm.upper_limit"], 4 << 20);
        assert!((4096..65536).contains(&memory["microvm.upper_bytes"]), "{memory:?}");

        let frozen = host.guest.freeze_all(ctx(), &Empty::new()).await.unwrap();
        assert_eq!(frozen.ids, ["web_ovl"]);
        assert_eq!(
            host.guest.freeze_all(ctx(), &Empty::new()).await.unwrap().ids,
            [""; 0],
            "it is frozen already"
        );
        host.guest.thaw_all(ctx(), &frozen).await.unwrap();
        host.guest.thaw_all(ctx(), &frozen).await.unwrap();

        let in_use = refused(host.agent.remove_container(ctx(), &remove("web")).await);
        assert_eq!(in_use.0, Code::FAILED_PRECONDITION);
        let line =
            WriteStreamRequest { container_id: "web_ovl".into(), data: b"x\n".into(), ..Default::default() };
        host.agent.write_stdin(ctx(), &line).await.unwrap();
        let wait = WaitProcessRequest { container_id: "web_ovl".into(), ..Default::default() };
        assert_eq!(host.agent.wait_process(ctx(), &wait).await.unwrap().status, 3);
        host.agent.remove_container(ctx(), &remove("web_ovl")).await.unwrap();
        host.agent.remove_container(ctx(), &remove("web")).await.unwrap();
        assert_eq!(left(), (vec![], vec![]));
        let image =
            std::fs::read_to_string("/run/kata-containers/shared/containers/web@1/rootfs/file").unwrap();
        assert_eq!(image, "of the image");
        assert_eq!(
            std::fs::read_to_string("/run/caches").unwrap(),
            "2",
            "virtiofsd would keep its files open"
        );

        host.agent.destroy_sandbox(ctx(), &DestroySandboxRequest::new()).await.unwrap();
        timeout(LONG, world.parts.end.notified()).await.unwrap();
    });
}

#[test]
fn what_is_wrong_is_refused_with_its_code_and_cause_and_leaves_nothing() {
    test(|world| async move {
        let host = world.connect();
        host.agent.create_container(ctx(), &carrier()).await.unwrap();
        let early = refused(host.agent.create_container(ctx(), &workload("true")).await);
        assert_eq!(early.0, Code::FAILED_PRECONDITION);
        assert!(early.1.contains("web_ovl") && early.1.contains("CreateSandbox"), "{}", early.1);
        host.agent.remove_container(ctx(), &remove("web")).await.unwrap();
        assert_eq!(left(), (vec![], vec![]));

        let host = world.pod().await;
        let twice = host.agent.create_sandbox(ctx(), &CreateSandboxRequest::new()).await;
        assert_eq!(refused(twice).0, Code::ALREADY_EXISTS);
        assert_eq!(refused(host.agent.start_container(ctx(), &start("none")).await).0, Code::NOT_FOUND);
        let hostile = agent_proto::agent::CreateContainerRequest { container_id: "../x".into(), ..carrier() };
        assert_eq!(refused(host.agent.create_container(ctx(), &hostile).await).0, Code::INVALID_ARGUMENT);
        let mut absent = carrier();
        absent.OCI.mut_or_insert_default().Root.mut_or_insert_default().Path += "/absent";
        let (code, text) = refused(host.agent.create_container(ctx(), &absent).await);
        assert_eq!(code, Code::NOT_FOUND);
        assert!(text.contains("web@1/rootfs/absent") && text.contains("ENOENT"), "{text}");
        let mut no_storage = workload("true");
        no_storage.storages[0].options.push("nonsense".into());
        host.agent.create_container(ctx(), &carrier()).await.unwrap();
        refused(host.agent.create_container(ctx(), &no_storage).await);
        assert_eq!(refused(host.agent.create_container(ctx(), &carrier()).await).0, Code::ALREADY_EXISTS);
        assert_eq!(
            refused(host.agent.start_container(ctx(), &start("web")).await).0,
            Code::FAILED_PRECONDITION
        );
        host.agent.remove_container(ctx(), &remove("web")).await.unwrap();
        assert_eq!(left(), (vec![], vec![]));
    });
}

#[test]
fn a_call_that_waits_keeps_no_other_waiting() {
    test(|world| async move {
        let host = world.pod().await;
        host.run("sleep 1000").await;
        // More than a pipe holds, to a process that does not read.
        let much = WriteStreamRequest {
            container_id: "web_ovl".into(),
            data: vec![b'x'; 1 << 20],
            ..Default::default()
        };
        let writer = tokio::spawn({
            let agent = host.agent.clone();
            async move { agent.write_stdin(ctx(), &much).await }
        });
        let wait = WaitProcessRequest { container_id: "web_ovl".into(), ..Default::default() };
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let (agent, wait) = (host.agent.clone(), wait.clone());
                tokio::spawn(async move { agent.wait_process(ctx(), &wait).await })
            })
            .collect();
        let process = oci::Process {
            Args: ["sh", "-c", "exit 5"].map(String::from).into(),
            Env: vec!["PATH=/usr/bin".into()],
            Cwd: "/".into(),
            Capabilities: Some(oci::LinuxCapabilities::new()).into(),
            ..Default::default()
        };
        let exec = ExecProcessRequest {
            container_id: "web_ovl".into(),
            exec_id: "e".into(),
            process: Some(process).into(),
            ..Default::default()
        };
        host.agent.exec_process(ctx(), &exec).await.unwrap();
        let exec_wait = WaitProcessRequest { exec_id: "e".into(), ..wait.clone() };
        assert_eq!(host.agent.wait_process(ctx(), &exec_wait).await.unwrap().status, 5);
        assert!(!writer.is_finished());
        let kill = SignalProcessRequest { container_id: "web_ovl".into(), signal: 9, ..Default::default() };
        host.agent.signal_process(ctx(), &kill).await.unwrap();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap().status, 137);
        }
        refused(timeout(LONG, writer).await.unwrap().unwrap());
    });
}

#[test]
fn last_words_are_read_where_the_container_wrote_them() {
    test(|world| async move {
        let host = world.pod().await;
        let mut request = workload("echo goodbye > /old/words");
        let path = "io.kubernetes.container.terminationMessagePath".to_owned();
        request.OCI.mut_or_insert_default().Annotations.insert(path, "/old/words".into());
        host.agent.create_container(ctx(), &carrier()).await.unwrap();
        host.agent.create_container(ctx(), &request).await.unwrap();
        host.agent.start_container(ctx(), &start("web_ovl")).await.unwrap();
        let wait = WaitProcessRequest { container_id: "web_ovl".into(), ..Default::default() };
        assert_eq!(host.agent.wait_process(ctx(), &wait).await.unwrap().status, 0);
        let mut wanted = GetDiagnosticDataRequest::new();
        (wanted.log_type, wanted.container_id) = ("termination_log".into(), "web_ovl".into());
        assert_eq!(host.agent.get_diagnostic_data(ctx(), &wanted).await.unwrap().data, "goodbye\n");
    });
}
