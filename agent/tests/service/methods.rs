//! Every method of every service is there.

use ttrpc::proto::{Code, Request};

use crate::world::{LONG, test};

const PROTOS: [(&str, &str); 3] = [
    ("grpc.AgentService", include_str!("../../../agent-proto/proto/agent.proto")),
    ("grpc.Health", include_str!("../../../agent-proto/proto/health.proto")),
    ("microvm.Guest", include_str!("../../../agent-proto/proto/microvm.proto")),
];

/// Waits for what does not come in this test.
const ENDLESS: &str = "GetOOMEvent";

/// The generated default answers "not supported" as NOT_FOUND, which a runtime takes for a container that is gone.
#[test]
fn each_is_carried_out_or_refused_by_name() {
    test(|world| async move {
        let host = world.connect();
        let mut count = 0;
        for (service, proto) in PROTOS {
            let names = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
            for method in names.filter(|name| *name != ENDLESS) {
                count += 1;
                let request = Request {
                    service: service.into(),
                    method: method.into(),
                    timeout_nano: i64::try_from(LONG.as_nanos()).unwrap(),
                    ..Default::default()
                };
                let Err(error) = host.client.request(request).await else { continue };
                let ttrpc::Error::RpcStatus(status) = error else { panic!("{method}: {error}") };
                assert!(!status.message.contains("is not supported"), "{method}: {}", status.message);
                assert!(status.code() != Code::UNKNOWN && !status.message.is_empty(), "{method}: {status:?}");
                let is_named = status.message.contains(method);
                assert!(status.code() != Code::UNIMPLEMENTED || is_named, "{method}: {}", status.message);
            }
        }
        assert!(count > 45, "{count} methods");
    });
}
