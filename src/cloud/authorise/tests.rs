use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::link::frame::*;
use crate::object::{Key, Origin, Revision, Uid, codec};

const NODE: &str = "barn-1";

fn pod(node: &str, terminating: bool) -> Object {
    let mut value = json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
    if terminating {
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    let key = Key::core("pods", "default", "p").unwrap();
    Object { key, uid: Uid("u".into()), revision: Revision(1), origin: Origin::Local, value }
}

fn key(resource: &str, name: &str) -> WireKey {
    let namespace = if resource == "nodes" { "" } else { "default" };
    WireKey { group: "".into(), resource: resource.into(), namespace: namespace.into(), name: name.into() }
}

fn status(resource: &str, name: &str, uid: &str) -> Body {
    Body::Status(Status { key: key(resource, name), uid: uid.into(), status: vec![] })
}

fn gone(uid: &str) -> Body {
    Body::Gone(Gone { key: key("pods", "p"), uid: uid.into() })
}

fn event(namespace: &str, kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"namespace": namespace}, "reason": "Started", "count": 1,
        "involvedObject": {"apiVersion": "v1", "kind": kind, "namespace": "default", "name": name, "uid": "u"},
        "source": {"component": "holm-edge", "host": NODE}, "reportingInstance": NODE,
    })
}

fn registration(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}})
}

#[track_caller]
fn check(body: Body, target: Option<&Object>, content: impl Into<Option<Value>>, expected: Result<(), &str>) {
    let node: NodeName = NODE.parse().unwrap();
    assert_eq!(authorise(&node, &body, target, content.into().as_ref()), expected);
}

#[test]
fn a_node_speaks_for_itself_and_its_pods() {
    let mine = pod(NODE, false);
    check(status("nodes", NODE, ""), None, json!({"capacity": {"cpu": "4"}}), Ok(()));
    check(status("pods", "p", "u"), Some(&mine), json!({"phase": "Running"}), Ok(()));
    check(gone("u"), Some(&pod(NODE, true)), None, Ok(()));
    check(gone("u"), None, None, Ok(()));
    let labels = json!({"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", "team": "x"});
    check(Body::Register(Register::default()), None, registration(labels), Ok(()));
    check(Body::Event(Happening::default()), Some(&mine), event("default", "Pod", "p"), Ok(()));
    check(Body::Event(Happening::default()), None, event("default", "Node", NODE), Ok(()));
    check(Body::Renew(Renew::default()), None, None, Ok(()));
}

#[test]
fn and_for_nobody_else() {
    let (mine, others) = (pod(NODE, false), pod("barn-2", false));
    let running = json!({"phase": "Running"});
    check(status("nodes", "barn-2", ""), None, json!({}), Err("the status of another node"));
    let elsewhere = WireKey { namespace: "default".into(), ..key("nodes", NODE) };
    let body = Body::Status(Status { key: elsewhere, ..Status::default() });
    check(body, None, json!({}), Err("the status of another node"));
    for resource in ["secrets", "leases", "configmaps", "events", "namespaces"] {
        let reason = "the status of something that is neither a pod nor itself";
        check(status(resource, "p", "u"), None, running.clone(), Err(reason));
    }
    let lease = WireKey { group: "coordination.k8s.io".into(), ..key("leases", NODE) };
    check(
        Body::Status(Status { key: lease, ..Status::default() }),
        None,
        json!({}),
        Err("the status of something that is neither a pod nor itself"),
    );
    check(status("pods", "p", "u"), Some(&others), running.clone(), Err("a pod of another node"));
    let replaced = "a pod that was replaced by another of its name";
    check(status("pods", "p", "v"), Some(&mine), running, Err(replaced));
    check(gone("u"), Some(&mine), None, Err("the end of a pod that nobody deleted"));
    check(gone("u"), Some(&pod("barn-2", true)), None, Err("a pod of another node"));
    let itself = Body::Gone(Gone { key: key("nodes", NODE), uid: "u".into() });
    check(itself, None, None, Err("the end of something that is not a pod"));
    let other = json!({"metadata": {"name": "barn-2"}});
    let another = Err("the registration of another node");
    check(Body::Register(Register::default()), None, other, another);
    check(Body::Register(Register::default()), None, None, another);
    check(Body::Synced, None, None, Err("something that only the cloud says"));
    let happening = || Body::Event(Happening::default());
    check(
        happening(),
        Some(&others),
        event("default", "Pod", "p"),
        Err("an event about a pod of another node"),
    );
    check(happening(), None, event("default", "Pod", "p"), Err("an event about a pod that is not there"));
    let elsewhere = Err("an event in a namespace that is not its object's");
    check(happening(), Some(&mine), event("kube-system", "Pod", "p"), elsewhere);
    check(happening(), None, event("kube-system", "Node", NODE), elsewhere);
    let reason = "an event about something that is not the node's";
    check(happening(), None, event("default", "Node", "barn-2"), Err(reason));
    let mut forged = event("default", "Pod", "p");
    forged["source"]["host"] = json!("barn-2");
    check(happening(), Some(&mine), forged, Err("an event in the name of another node"));
}

#[test]
fn a_node_cannot_promote_itself() {
    let register = || Body::Register(Register::default());
    for label in
        ["node-restriction.kubernetes.io/pci", "node-role.kubernetes.io/control-plane", "holm.dev/managed-by"]
    {
        let reason = Err("a registration with labels that others decide by");
        check(register(), None, registration(json!({label: "x"})), reason);
    }
    for label in ["kubernetes.io/os/linux", "a b", ""] {
        let reason = Err("a registration with labels that cannot be");
        check(register(), None, registration(json!({label: "x"})), reason);
    }
    check(
        register(),
        None,
        registration(json!({"kubernetes.io/hostname": "barn-2"})),
        Err("a registration under the host name of another node"),
    );
    for (pointer, value) in [
        ("/spec", json!({"taints": []})),
        ("/spec", json!({"podCIDR": "10.0.0.0/8"})),
        ("/status", json!({})),
        ("/metadata/annotations", json!({"holm.dev/key": "f"})),
        ("/metadata/ownerReferences", json!([])),
        ("/metadata/finalizers", json!(["x/y"])),
        ("/metadata/uid", json!("u")),
    ] {
        let mut node = registration(json!({}));
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        node.pointer_mut(parent).unwrap()[field] = value;
        let reason = "a registration with taints, owners or other things that are not a node's to set";
        check(register(), None, node, Err(reason));
    }
}

#[test]
fn what_is_said_has_bounds() {
    let long = |limit: usize| vec![0; limit + 1];
    let mine = pod(NODE, false);
    let too_long = Err("a status that is too long");
    for (key, uid) in [(key("pods", "p"), "u"), (key("nodes", NODE), "")] {
        let body = Status { key, uid: uid.into(), status: long(STATUS_MAX) };
        check(Body::Status(body), Some(&mine), json!({}), too_long);
    }
    let body = Body::Register(Register { node: long(NODE_MAX) });
    check(body, None, registration(json!({})), Err("a registration that is too long"));
    let body = Body::Event(Happening { event: long(EVENT_MAX), ..Happening::default() });
    check(body, Some(&mine), event("default", "Pod", "p"), Err("an event that is too long"));
    for odd in [Value::Null, json!("x"), json!([]), json!({"phase": 7}), json!({"phases": []})] {
        let reason = Err("a pod's status with what a node does not say");
        check(status("pods", "p", "u"), Some(&mine), odd, reason);
    }
    check(status("pods", "p", "u"), Some(&mine), None, Err("a pod's status with what a node does not say"));
    check(status("nodes", NODE, ""), None, json!([]), Err("a node's status with what a node does not say"));
}

fn any_key() -> impl Strategy<Value = WireKey> {
    let pick = |words: &'static [&'static str]| prop::sample::select(words).prop_map(str::to_owned);
    (
        pick(&["", "", "", "apps", "coordination.k8s.io"]),
        pick(&["pods", "pods", "nodes", "secrets", "leases", "Pods", ""]),
        pick(&["", "default", "kube-system", ".."]),
        pick(&[NODE, "barn-2", "p", "", "barn-1/x", "BARN-1"]),
    )
        .prop_map(|(group, resource, namespace, name)| WireKey { group, resource, namespace, name })
}

fn any_content() -> impl Strategy<Value = Option<Value>> {
    let name = prop::sample::select(&[NODE, "barn-2", "p"][..]);
    prop_oneof![
        Just(None),
        Just(Some(json!({}))),
        Just(Some(json!("text"))),
        Just(Some(json!({"phase": "Running"}))),
        Just(Some(json!({"capacity": {"cpu": "4"}}))),
        Just(Some(json!({"daemonEndpoints": {}}))),
        name.clone().prop_map(|name| Some(json!({"metadata": {"name": name}}))),
        (
            prop::sample::select(&["default", "other"][..]),
            prop::sample::select(&["Pod", "Node", "Secret"][..]),
            name
        )
            .prop_map(|(namespace, kind, name)| Some(event(namespace, kind, name))),
    ]
}

fn any_body() -> impl Strategy<Value = Body> {
    let uid = || prop::sample::select(&["u", "v", ""][..]).prop_map(str::to_owned);
    prop_oneof![
        (any_key(), uid()).prop_map(|(key, uid)| Body::Status(Status { key, uid, status: vec![] })),
        (any_key(), uid()).prop_map(|(key, uid)| Body::Gone(Gone { key, uid })),
        (any_key(), uid()).prop_map(|(key, uid)| Body::Drop(Gone { key, uid })),
        any_key().prop_map(|key| Body::NeedFull(NeedFull { key, uid: String::new() })),
        any_key().prop_map(|key| Body::Put(Put { key, ..Put::default() })),
        Just(Body::Register(Register::default())),
        Just(Body::Event(Happening::default())),
        prop::sample::select(vec![
            Body::Hello(Hello::default()),
            Body::Welcome(Welcome::default()),
            Body::Refused(Refused::default()),
            Body::Inventory(Inventory::default()),
            Body::Synced,
            Body::Ping,
            Body::Unsupported(1),
            Body::Join(Join::default()),
            Body::Joined(Joined::default()),
            Body::Renew(Renew::default()),
            Body::Renewed(Renewed::default()),
            Body::Trust(Trust::default()),
            Body::Open(Open::default()),
            Body::Data(Data::default()),
            Body::Credit(Credit::default()),
            Body::End(End::default()),
            Body::Call(Call::default()),
            Body::Answer(Answer::default()),
            Body::Cancel(1),
        ]),
    ]
}

/// All that a node may do, written down a second time and in other words.
fn is_listed(body: &Body, target: Option<&Object>, content: Option<&Value>) -> bool {
    let bound_here = |object: &Object| object.value["spec"]["nodeName"] == NODE;
    let meant = |uid: &str| target.is_none_or(|object| bound_here(object) && object.uid.0 == uid);
    let is_pod = |key: &WireKey| (key.group.as_str(), key.resource.as_str()) == ("", "pods");
    let named = |pointer| content.and_then(|content| content.pointer(pointer)).and_then(Value::as_str);
    match body {
        Body::Status(status) => {
            content.is_some_and(Value::is_object)
                && (status.key == key("nodes", NODE) || is_pod(&status.key) && meant(&status.uid))
        }
        Body::Gone(gone) => {
            is_pod(&gone.key) && meant(&gone.uid) && target.is_none_or(|object| object.is_terminating())
        }
        Body::Register(_) => named("/metadata/name") == Some(NODE),
        Body::Event(_) => match named("/involvedObject/kind") {
            Some("Node") => named("/involvedObject/name") == Some(NODE),
            Some("Pod") => target.is_some_and(bound_here),
            _ => false,
        },
        Body::Renew(_) | Body::Inventory(_) | Body::NeedFull(_) | Body::Ping | Body::Unsupported(_) => true,
        Body::Data(_) | Body::Credit(_) | Body::End(_) | Body::Answer(_) | Body::Cancel(_) => true,
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn what_is_not_listed_is_refused(
        body in any_body(),
        target in prop::option::of((prop::sample::select(&[NODE, "barn-2", ""][..]), any::<bool>())),
        content in any_content(),
    ) {
        let target = target.map(|(node, terminating)| pod(node, terminating));
        let node: NodeName = NODE.parse().unwrap();
        if authorise(&node, &body, target.as_ref(), content.as_ref()).is_ok() {
            prop_assert!(is_listed(&body, target.as_ref(), content.as_ref()), "{:?} {:?} {:?}", body, target, content);
        }
    }

    #[test]
    fn no_garbage_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let node: NodeName = NODE.parse().unwrap();
        let content = codec::decode(&bytes).ok();
        for body in [status("nodes", NODE, ""), Body::Register(Register::default()), Body::Event(Happening::default())] {
            let outcome = authorise(&node, &body, None, content.as_ref());
            prop_assert!(outcome.is_err() || content.as_ref().is_some_and(Value::is_object));
        }
    }
}
