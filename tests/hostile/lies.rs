//! What a node says of what is not its own.

use super::host::{
    self,
    liar::{Cloud, cbor},
};
use super::{key, node, register, run, settled, status};
use holm::link::Body;
use holm::link::frame::*;
use holm::trust::CertificateDer;
use holm::trust::certificate::peer_node;
use serde_json::{Value, json};

const TAINTS: &str = "a registration with taints, owners or other things that are not a node's to set";

/// How often each lie is told.
const TIMES: usize = 20;

fn event(sequence: u64, kind: &str, namespace: &str, name: &str) -> Body {
    let event = json!({"metadata": {"namespace": namespace}, "reason": "Lie", "message": "m",
        "involvedObject": {"apiVersion": "v1", "kind": kind, "namespace": "default", "name": name}});
    Body::Event(Happening { id: ItemId { generation: 7, sequence }, event: cbor(event) })
}

/// Everything that a liar might want to change, with its resourceVersion.
async fn everything(cloud: &Cloud) -> Vec<Value> {
    let mut all = Vec::new();
    for path in ["pods", "secrets", "configmaps", "nodes", "events", "namespaces"] {
        let list = cloud.api("GET", &format!("/api/v1/{path}"), None).await;
        all.extend(list["items"].as_array().unwrap().clone());
    }
    all
}

#[test]
fn a_liar_touches_nothing_of_its_neighbour_s() {
    run(async {
        let cloud = Cloud::start("hostile-liar").await;
        let (_neighbour, mut honest, theirs) = settled(&cloud, "neighbour").await;
        let (_liar, mut talk, mine) = settled(&cloud, "liar").await;

        // Of objects it got its own and what they name.
        let mut got: Vec<&str> = talk.puts.iter().map(|put| put.key.name.as_str()).collect();
        got.sort_unstable();
        assert_eq!(got, ["liar-pod", "liar-secret"]);

        let before = everything(&cloud).await;
        let nested = (0..10_000).fold(vec![0xf6], |inner, _| [&[0x81][..], &inner].concat());
        let lease = WireKey {
            group: "coordination.k8s.io".into(),
            namespace: "kube-node-lease".into(),
            ..key("leases", "neighbour")
        };
        let own_lease = WireKey { name: "liar".into(), ..lease.clone() };
        let running = json!({"phase": "Running"});
        let with = |more: Value| {
            let mut node = node("liar");
            json_patch::merge(&mut node, &more);
            register(node)
        };
        let neighbour_pod = key("pods", "neighbour-pod");
        let lies: Vec<(&str, Body)> = vec![
            ("a pod of another node", status(neighbour_pod.clone(), &theirs, running.clone())),
            ("a pod of another node", Body::Gone(Gone { key: neighbour_pod.clone(), uid: theirs.clone() })),
            (
                "a pod that was replaced by another of its name",
                status(key("pods", "liar-pod"), &theirs, running.clone()),
            ),
            (
                "the end of a pod that nobody deleted",
                Body::Gone(Gone { key: key("pods", "liar-pod"), uid: mine.clone() }),
            ),
            (
                "the end of something that is not a pod",
                Body::Gone(Gone { key: key("secrets", "neighbour-secret"), uid: theirs.clone() }),
            ),
            ("the status of another node", status(key("nodes", "neighbour"), "", json!({"addresses": []}))),
            ("the status of something that is neither a pod nor itself", status(lease, "", json!({}))),
            ("the status of something that is neither a pod nor itself", status(own_lease, "", json!({}))),
            (
                "the status of something that is neither a pod nor itself",
                status(key("secrets", "neighbour-secret"), "", json!({})),
            ),
            (
                "a node's status with what a node does not say",
                status(key("nodes", "liar"), "", json!({"daemonEndpoints": {}})),
            ),
            ("a node's status with what a node does not say", status(key("nodes", "liar"), "", json!("x"))),
            (
                "a pod's status with what a node does not say",
                status(key("pods", "liar-pod"), &mine, json!({"phase": ["x"]})),
            ),
            (
                "a status that is too long",
                status(key("pods", "liar-pod"), &mine, json!({"message": "x".repeat(300_000)})),
            ),
            (
                "an object that cannot be read",
                Body::Status(Status { key: key("pods", "liar-pod"), uid: mine.clone(), status: nested }),
            ),
            ("an object that cannot be read", Body::Register(Register { node: b"garbage".to_vec() })),
            ("a name that cannot be", status(key("pods", "../../neighbour-pod"), &theirs, running.clone())),
            ("the registration of another node", register(node("neighbour"))),
            ("the registration of another node", register(node("Liar"))),
            ("the registration of another node", register(node("liar/../neighbour"))),
            (
                "a registration under the host name of another node",
                with(json!({"metadata": {"labels": {"kubernetes.io/hostname": "neighbour"}}})),
            ),
            (
                "a registration with labels that others decide by",
                with(json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}})),
            ),
            (
                "a registration with labels that others decide by",
                with(json!({"metadata": {"labels": {"holm.dev/managed-by": "me"}}})),
            ),
            (TAINTS, with(json!({"spec": {"taints": []}}))),
            (TAINTS, with(json!({"metadata": {"annotations": {"holm.dev/key": "x"}}}))),
            (TAINTS, with(json!({"metadata": {"finalizers": ["a/b"]}}))),
            ("an event about a pod of another node", event(1, "Pod", "default", "neighbour-pod")),
            ("an event in a namespace that is not its object's", event(2, "Pod", "kube-system", "liar-pod")),
            ("an event in a namespace that is not its object's", event(3, "Node", "nowhere", "liar")),
            ("an event about something that is not the node's", event(4, "Node", "default", "neighbour")),
            ("an event with what a node does not say", event(5, "Secret", "default", "neighbour-secret")),
            (
                "something that only the cloud says",
                Body::Put(Put { key: key("secrets", "neighbour-secret"), ..Put::default() }),
            ),
            (
                "something that only the cloud says",
                Body::Drop(Gone { key: neighbour_pod, uid: theirs.clone() }),
            ),
            ("a join code, on a connection that has an identity", Body::Join(Join::default())),
            ("a second Hello", Body::Hello(Hello::default())),
        ];
        for (reason, lie) in &lies {
            for _ in 0..TIMES {
                talk.send(lie.clone()).await;
            }
            assert!(talk.settle().await, "hung up after {reason}; {}", cloud.log());
        }
        // A wish for an object that was never sent gets none.
        let puts = talk.puts.len();
        talk.send(Body::NeedFull(NeedFull {
            key: key("secrets", "neighbour-secret"),
            ..NeedFull::default()
        }))
        .await;
        talk.settle().await;
        assert_eq!(talk.puts.len(), puts);
        assert_eq!(everything(&cloud).await, before);

        // What it says of its own is still heard, if it is still there; and the neighbour's.
        if !talk.closed {
            talk.send(status(key("pods", "liar-pod"), &mine, running.clone())).await;
            assert!(talk.settle().await);
            let pod = cloud.api("GET", "/api/v1/namespaces/default/pods/liar-pod", None).await;
            assert_eq!(pod["status"]["phase"], "Running");
        }
        honest.send(status(key("pods", "neighbour-pod"), &theirs, running)).await;
        assert!(honest.settle().await);
        let pod = cloud.api("GET", "/api/v1/namespaces/default/pods/neighbour-pod", None).await;
        assert_eq!(pod["status"]["phase"], "Running");

        // Each reason was said once, and counted at the end.
        drop(talk);
        host::until("the word of the end", async || cloud.log().contains("liar disconnected").then_some(()))
            .await;
        let log = cloud.log();
        for (reason, _) in &lies {
            let said = log
                .lines()
                .filter(|line| line.ends_with(&format!("liar was refused: it sent {reason}")))
                .count();
            assert_eq!(said, 1, "{reason}\n{log}");
            let told = lies.iter().filter(|(other, _)| other == reason).count() * TIMES;
            assert!(log.contains(&format!("{told} times {reason}")), "{told} times {reason}\n{log}");
        }
    });
}

#[test]
fn a_certificate_is_renewed_for_a_key_that_is_there() {
    run(async {
        let cloud = Cloud::start("hostile-renew").await;
        let (mut neighbour, mut honest, theirs) = settled(&cloud, "neighbour").await;
        let (_liar, mut talk, _) = settled(&cloud, "liar").await;
        let request = neighbour.identity.request().unwrap();
        let mut forged = request.clone();
        *forged.last_mut().unwrap() ^= 1;
        // A request that the neighbour's key did not sign, and one that it did: the subject is the
        // connection's node whatever it says, and the neighbour stays who it is.
        for request in [forged.clone(), b"garbage".to_vec(), vec![0x30; 100_000]] {
            talk.send(Body::Renew(Renew { request })).await;
            loop {
                match talk.next_body().await.unwrap() {
                    Body::Renewed(renewed) => {
                        assert!(renewed.certificate.is_empty());
                        break;
                    }
                    _ => continue,
                }
            }
        }
        talk.send(Body::Renew(Renew { request })).await;
        if let Some(Body::Renewed(Renewed { certificate, .. })) = talk.next_body().await
            && !certificate.is_empty()
        {
            let chain = [CertificateDer::from(certificate)];
            assert_eq!(peer_node(&chain).unwrap().node.as_str(), "liar");
        }
        // However often it asks, it is neither answered nor logged as often.
        let before = cloud.peak_memory();
        for _ in 0..2000 {
            talk.send(Body::Renew(Renew { request: forged.clone() })).await;
        }
        honest.send(status(key("pods", "neighbour-pod"), &theirs, json!({"phase": "Running"}))).await;
        assert!(honest.settle().await);
        drop(talk);
        host::until("the word of the end", async || cloud.log().contains("liar disconnected").then_some(()))
            .await;
        let log = cloud.log();
        let said = log.lines().filter(|line| line.contains("liar") && line.contains("certificate")).count();
        assert!(said < 20, "{said} lines\n{log}");
        assert!(cloud.peak_memory().saturating_sub(before) < 8 << 20);
        let mut again = neighbour.greet().await;
        again.send(status(key("pods", "neighbour-pod"), &theirs, json!({"phase": "Failed"}))).await;
        assert!(again.settle().await);
    });
}
