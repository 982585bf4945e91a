//! What the parts of an object that a node writes may look like: known fields of known types, and nothing
//! else. One status of a wrong type would keep every client that reads typed lists (Kubernetes' controllers)
//! from reading those of the neighbours too.
//!
//! The fields are core/v1's, without those that are not a kubelet's to set.

use serde_json::Value;

use crate::apiserver::validate::quantity;

/// What a value may be. `null` stands for an absent one everywhere, as in Kubernetes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// A string.
    Text,
    /// RFC 3339.
    Time,
    /// True or false.
    Bool,
    /// An integer of 32 bits.
    Int,
    /// An integer of 64 bits.
    Long,
    /// Strings by name.
    Texts,
    /// Quantities by name (Kubernetes: `ResourceList`).
    Quantities,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// Any number of these.
    List(&'static Shape),
    /// An object of these fields at most.
    Fields(&'static [(&'static str, Shape)]),
}

use Shape::{Bool, Fields, Int, List, Long, OneOf, Quantities, Text, Texts, Time};

impl Shape {
    /// True if the value fits. The depth of the walk is the shape's, not the value's.
    pub(super) fn fits(&self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) | (Text, Value::String(_)) | (Bool, Value::Bool(_)) => true,
            (Time, Value::String(text)) => text.parse::<jiff::Timestamp>().is_ok(),
            (Int, Value::Number(number)) => {
                number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
            }
            (Long, Value::Number(number)) => number.as_i64().is_some(),
            (Texts, Value::Object(map)) => map.values().all(Value::is_string),
            (Quantities, Value::Object(map)) => map.values().all(|value| quantity(value).is_some()),
            (OneOf(words), Value::String(text)) => words.contains(&text.as_str()),
            (List(shape), Value::Array(items)) => {
                items.iter().all(|item| !item.is_null() && shape.fits(item))
            }
            (Fields(fields), Value::Object(map)) => map
                .iter()
                .all(|(name, value)| fields.iter().any(|(field, shape)| field == name && shape.fits(value))),
            _ => false,
        }
    }
}

const TRUTH: Shape = OneOf(&["True", "False", "Unknown"]);

const CONDITION: Shape = Fields(&[
    ("type", Text),
    ("status", TRUTH),
    ("reason", Text),
    ("message", Text),
    ("lastProbeTime", Time),
    ("lastHeartbeatTime", Time),
    ("lastTransitionTime", Time),
    ("observedGeneration", Long),
]);

const STATE: Shape = Fields(&[
    ("waiting", Fields(&[("reason", Text), ("message", Text)])),
    ("running", Fields(&[("startedAt", Time)])),
    (
        "terminated",
        Fields(&[
            ("exitCode", Int),
            ("signal", Int),
            ("reason", Text),
            ("message", Text),
            ("startedAt", Time),
            ("finishedAt", Time),
            ("containerID", Text),
        ]),
    ),
]);

const CONTAINERS: Shape = List(&Fields(&[
    ("name", Text),
    ("state", STATE),
    ("lastState", STATE),
    ("ready", Bool),
    ("started", Bool),
    ("restartCount", Int),
    ("image", Text),
    ("imageID", Text),
    ("containerID", Text),
    ("allocatedResources", Quantities),
    ("resources", Fields(&[("limits", Quantities), ("requests", Quantities)])),
]));

const ADDRESSES: Shape = List(&Fields(&[("ip", Text)]));

/// core/v1 `PodStatus`, without what the scheduler (`nominatedNodeName`) and the controllers
/// (`resourceClaimStatuses`) say.
pub(super) const POD_STATUS: Shape = Fields(&[
    ("phase", OneOf(&["Pending", "Running", "Succeeded", "Failed", "Unknown"])),
    ("conditions", List(&CONDITION)),
    ("reason", Text),
    ("message", Text),
    ("hostIP", Text),
    ("hostIPs", ADDRESSES),
    ("podIP", Text),
    ("podIPs", ADDRESSES),
    ("startTime", Time),
    ("qosClass", OneOf(&["Guaranteed", "Burstable", "BestEffort"])),
    ("observedGeneration", Long),
    ("initContainerStatuses", CONTAINERS),
    ("containerStatuses", CONTAINERS),
    ("ephemeralContainerStatuses", CONTAINERS),
]);

/// core/v1 `NodeStatus`, without `daemonEndpoints` (where the API server would connect to), `config` and
/// `volumesAttached` (which are the cloud's to say).
pub(super) const NODE_STATUS: Shape = Fields(&[
    ("capacity", Quantities),
    ("allocatable", Quantities),
    ("conditions", List(&CONDITION)),
    ("addresses", List(&Fields(&[("type", Text), ("address", Text)]))),
    ("phase", Text),
    (
        "nodeInfo",
        Fields(&[
            ("machineID", Text),
            ("systemUUID", Text),
            ("bootID", Text),
            ("kernelVersion", Text),
            ("osImage", Text),
            ("containerRuntimeVersion", Text),
            ("kubeletVersion", Text),
            ("kubeProxyVersion", Text),
            ("operatingSystem", Text),
            ("architecture", Text),
        ]),
    ),
    ("images", List(&Fields(&[("names", List(&Text)), ("sizeBytes", Long)]))),
    ("volumesInUse", List(&Text)),
]);

/// core/v1 `Event` as a node tells it: the cloud gives it its name and nothing of its metadata is taken but
/// the namespace.
pub(super) const EVENT: Shape = Fields(&[
    ("apiVersion", OneOf(&["v1"])),
    ("kind", OneOf(&["Event"])),
    ("metadata", Fields(&[("namespace", Text), ("name", Text), ("creationTimestamp", Time)])),
    ("type", OneOf(&["Normal", "Warning"])),
    ("reason", Text),
    ("message", Text),
    (
        "involvedObject",
        Fields(&[
            ("apiVersion", OneOf(&["v1"])),
            ("kind", OneOf(&["Pod", "Node"])),
            ("namespace", Text),
            ("name", Text),
            ("uid", Text),
            ("resourceVersion", Text),
            ("fieldPath", Text),
        ]),
    ),
    ("source", Fields(&[("component", Text), ("host", Text)])),
    ("reportingComponent", Text),
    ("reportingInstance", Text),
    ("action", Text),
    ("eventTime", Time),
    ("firstTimestamp", Time),
    ("lastTimestamp", Time),
    ("count", Int),
]);

/// core/v1 `Node` as far as a board may register it: no `spec` (taints are the cluster's), no owners, no
/// finalizers, no annotations.
pub(super) const NODE: Shape = Fields(&[
    ("apiVersion", OneOf(&["v1"])),
    ("kind", OneOf(&["Node"])),
    ("metadata", Fields(&[("name", Text), ("creationTimestamp", Time), ("labels", Texts)])),
]);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn types_are_looked_at_on_every_level() {
        let status = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "startTime": null,
            "containerStatuses": [{"name": "c", "restartCount": 2, "ready": true, "lastState": {},
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]});
        assert!(POD_STATUS.fits(&status));
        for (pointer, wrong) in [
            ("/phase", json!("Dancing")),
            ("/podIPs", json!({"ip": "10.0.0.1"})),
            ("/podIPs/0", Value::Null),
            ("/podIPs/0/ip", json!(7)),
            ("/containerStatuses/0/restartCount", json!(3_000_000_000_u32)),
            ("/containerStatuses/0/restartCount", json!(1.5)),
            ("/containerStatuses/0/ready", json!("true")),
            ("/containerStatuses/0/state/running/startedAt", json!("yesterday")),
            ("/containerStatuses/0/state", json!({"sleeping": {}})),
        ] {
            let mut status = status.clone();
            *status.pointer_mut(pointer).unwrap() = wrong.clone();
            assert!(!POD_STATUS.fits(&status), "{pointer} = {wrong}");
        }
        assert!(!POD_STATUS.fits(&json!({"nominatedNodeName": "barn-2"})));
        assert!(!NODE_STATUS.fits(&json!({"daemonEndpoints": {"kubeletEndpoint": {"Port": 22}}})));
        assert!(NODE_STATUS.fits(&json!({"capacity": {"cpu": "4", "memory": "1Gi"}})));
        assert!(!NODE_STATUS.fits(&json!({"capacity": {"cpu": "lots"}})));
    }

    /// A value that has the shape.
    fn of(shape: &Shape) -> BoxedStrategy<Value> {
        match *shape {
            Text => ".{0,9}".prop_map(Value::from).boxed(),
            Time => (0i64..4_000_000_000)
                .prop_map(|at| jiff::Timestamp::from_second(at).unwrap().to_string().into())
                .boxed(),
            Bool => any::<bool>().prop_map(Value::from).boxed(),
            Int => any::<i32>().prop_map(Value::from).boxed(),
            Long => any::<i64>().prop_map(Value::from).boxed(),
            Texts => prop::collection::btree_map(".{0,5}", ".{0,5}", 0..3).prop_map(|map| json!(map)).boxed(),
            Quantities => prop::collection::btree_map("[a-z]{1,5}", "[0-9]{1,5}(m|Ki|Gi|)", 0..3)
                .prop_map(|map| json!(map))
                .boxed(),
            OneOf(words) => prop::sample::select(words).prop_map(Value::from).boxed(),
            List(shape) => prop::collection::vec(of(shape), 0..3).prop_map(Value::Array).boxed(),
            Fields(fields) => {
                let fields: Vec<_> =
                    fields.iter().map(|(name, shape)| (Just(*name), prop::option::of(of(shape)))).collect();
                fields
                    .prop_map(|fields| {
                        let fields = fields
                            .into_iter()
                            .map(|(name, value)| (name.to_owned(), value.unwrap_or_default()));
                        Value::Object(fields.collect::<Map<_, _>>())
                    })
                    .boxed()
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// What fits is what Kubernetes' own types read, and a field that is not listed never fits.
        #[test]
        fn what_fits_is_what_kubernetes_reads(
            pod in of(&POD_STATUS), node in of(&NODE_STATUS), event in of(&EVENT), name in "[a-z]{12}",
        ) {
            use k8s_openapi::api::core::v1;
            for (shape, value) in [(&POD_STATUS, &pod), (&NODE_STATUS, &node), (&EVENT, &event)] {
                prop_assert!(shape.fits(value));
                let mut more = value.clone();
                more[&name] = Value::Null;
                prop_assert!(!shape.fits(&more));
            }
            let bare = |value: &Value| without_nulls(value.clone());
            prop_assert!(serde_json::from_value::<v1::PodStatus>(bare(&pod)).is_ok());
            prop_assert!(serde_json::from_value::<v1::NodeStatus>(bare(&node)).is_ok());
            prop_assert!(serde_json::from_value::<v1::Event>(bare(&event)).is_ok());
        }
    }

    fn without_nulls(value: Value) -> Value {
        match value {
            Value::Object(map) => {
                let map = map.into_iter().filter(|(_, value)| !value.is_null());
                Value::Object(map.map(|(name, value)| (name, without_nulls(value))).collect())
            }
            Value::Array(items) => items.into_iter().map(without_nulls).collect(),
            value => value,
        }
    }
}
