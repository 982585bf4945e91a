use super::*;
use crate::object::{Key, Origin, Revision};
use serde_json::json;

/// A pod object from its spec.
pub fn object(name: &str, spec: Value) -> Object {
    let value = json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec });
    Object {
        key: Key {
            group: String::new(),
            resource: "pods".into(),
            namespace: "default".into(),
            name: name.into(),
        },
        uid: Uid(format!("uid-of-{name}")),
        revision: Revision(1),
        origin: Origin::Cloud,
        value,
    }
}

#[test]
fn a_pod_reads_with_defaults_nulls_and_unknown_fields() {
    let pod = Pod::of(&object(
        "web",
        json!({
            "containers": [{ "name": "c", "image": "a/b:1", "args": null, "future": { "x": 1 },
                             "ports": [{ "containerPort": 80, "hostPort": 8080 }] }],
            "restartPolicy": "OnFailure",
            "nodeSelector": null,
        }),
    ))
    .unwrap();
    assert_eq!(pod.metadata.uid, "uid-of-web");
    assert_eq!(pod.spec.restart_policy, RestartPolicy::OnFailure);
    assert_eq!(pod.spec.containers[0].ports[0].host_port, 8080);
    assert_eq!(pod.grace(), DEFAULT_GRACE);
    assert_eq!(pod.hostname(), "web");
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let refused = |spec| Pod::of(&object("p", spec)).unwrap_err().to_string();
    let with = |more: Value| {
        let mut container = json!({ "name": "c", "image": "i" });
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "containers": [container], "volumes": [{ "name": "v", "emptyDir": {} }] })
    };
    assert!(refused(json!({ "containers": [] })).contains("spec.containers"));
    let mount = json!([{ "name": "v", "mountPath": "/x", "subPath": "a" }]);
    assert!(refused(with(json!({ "volumeMounts": mount }))).contains("subPath"));
    let mount = json!([{ "name": "w", "mountPath": "/x" }]);
    assert!(refused(with(json!({ "volumeMounts": mount }))).contains("\"w\""));
    let limits = json!({ "limits": { "memory": "many" } });
    assert!(refused(with(json!({ "resources": limits }))).contains("limits.memory"));
    assert!(refused(with(json!({ "name": "../c" }))).contains("../c"));
    let claim = json!({ "containers": [{ "name": "c", "image": "i" }],
                        "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "x" } }] });
    assert!(refused(claim).contains("persistentVolumeClaim"));
    assert!(refused(json!({ "containers": [{ "name": 7 }] })).contains("default/p"));
}

#[test]
fn pull_policies_default_by_tag() {
    let policy = |image: &str| Container { image: image.into(), ..Default::default() }.pull_policy();
    assert_eq!(policy("nginx"), PullPolicy::Always);
    assert_eq!(policy("host:5000/nginx"), PullPolicy::Always);
    assert_eq!(policy("host:5000/nginx:latest"), PullPolicy::Always);
    assert_eq!(policy("host:5000/nginx:1"), PullPolicy::IfNotPresent);
    assert_eq!(policy("nginx@sha256:00"), PullPolicy::IfNotPresent);
}

#[test]
fn grace_follows_the_deletion() {
    let mut object = object(
        "p",
        json!({ "containers": [{ "name": "c", "image": "i" }], "terminationGracePeriodSeconds": 5 }),
    );
    assert_eq!(Pod::of(&object).unwrap().grace().as_secs(), 5);
    object.value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    object.value["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    assert_eq!(Pod::of(&object).unwrap().grace().as_secs(), 0);
}
