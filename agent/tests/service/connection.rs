//! Hosts that go away in the middle of something.

use agent_proto::agent::{WaitProcessRequest, WriteStreamRequest};
use agent_proto::microvm::DialRequest;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;
use ttrpc::Code;

use crate::world::{Host, LONG, carrier, ctx, read, refused, remove, start, test, workload};

/// Ends a connection and whatever it still had to say.
fn leave(host: Host) {
    drop(host);
}

#[test]
fn what_a_lost_host_began_is_finished_for_the_next_one() {
    test(|world| async move {
        let host = world.pod().await;
        host.agent.create_container(ctx(), &carrier()).await.unwrap();
        let create = tokio::spawn({
            let agent = host.agent.clone();
            async move { agent.create_container(ctx(), &workload("echo alive; read line")).await }
        });
        // Until the agent has begun: the id is taken.
        let next = world.connect();
        while refused(next.agent.start_container(ctx(), &start("web_ovl")).await).0 == Code::NOT_FOUND {}
        create.abort();
        // It may have been answered just before.
        _ = create.await;
        leave(host);
        let started = async {
            // Being created (FAILED_PRECONDITION) until the lost call is done.
            while next.agent.start_container(ctx(), &start("web_ovl")).await.is_err() {}
        };
        timeout(LONG, started).await.unwrap();
        assert_eq!(next.read_until("\n").await, "alive\n");
        next.agent.remove_container(ctx(), &remove("web_ovl")).await.unwrap();
    });
}

#[test]
fn output_is_kept_for_the_next_host() {
    test(|world| async move {
        let host = world.pod().await;
        host.run("read line; echo got $line; read line").await;
        let reader = tokio::spawn({
            let agent = host.agent.clone();
            async move { agent.read_stdout(ctx(), &read()).await }
        });
        let waiter = tokio::spawn({
            let agent = host.agent.clone();
            let wait = WaitProcessRequest { container_id: "web_ovl".into(), ..Default::default() };
            async move { agent.wait_process(ctx(), &wait).await }
        });
        // Both wait in the agent once it has answered a call that came after them.
        host.agent.list_routes(ctx(), &Default::default()).await.unwrap();
        // A forwarded connection tells when the agent has let go of the host, its waiting calls included.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        host.guest.dial(ctx(), &DialRequest { port, ..Default::default() }).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        reader.abort();
        waiter.abort();
        assert!(reader.await.is_err() && waiter.await.is_err());
        leave(host);
        assert_eq!(timeout(LONG, peer.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        let next = world.connect();
        let line =
            WriteStreamRequest { container_id: "web_ovl".into(), data: b"it\n".into(), ..Default::default() };
        next.agent.write_stdin(ctx(), &line).await.unwrap();
        assert_eq!(next.read_until("\n").await, "got it\n");
    });
}

#[test]
fn forwarded_connections_close_with_the_host_that_opened_them() {
    test(|world| async move {
        let (host, other) = (world.connect(), world.connect());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        let dial = DialRequest { port, ..Default::default() };
        let stream = host.guest.dial(ctx(), &dial).await.unwrap().stream;
        let (mut peer, _) = listener.accept().await.unwrap();
        let wanted = agent_proto::microvm::ReadRequest { stream, len: 1, ..Default::default() };
        let foreign = refused(other.guest.read_stream(ctx(), &wanted).await);
        assert_eq!(foreign.0, Code::NOT_FOUND, "a stream is its own connection's");
        leave(host);
        let end = timeout(LONG, peer.read(&mut [0; 1])).await.unwrap();
        assert_eq!(end.unwrap(), 0);
    });
}
