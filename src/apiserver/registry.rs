//! The kinds that are served. A kind is one row.

use serde_json::Value;

use super::status::Causes;
use super::table::{self, Column};
use super::{defaults, validate};

/// Where a kind's objects are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// On the flash.
    Durable,
    /// In memory: they can be observed again.
    Volatile,
    /// On the flash, except for a change of nothing but heartbeat times.
    DurableButHeartbeats,
}

/// One kind.
#[derive(Debug)]
pub struct Row {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// The only version.
    pub version: &'static str,
    /// Plural name, as in paths.
    pub resource: &'static str,
    /// `Pod`, …
    pub kind: &'static str,
    /// `pod`, …
    pub singular: &'static str,
    /// `po`, …
    pub short_names: &'static [&'static str],
    /// What `kubectl get all` and the like mean.
    pub categories: &'static [&'static str],
    /// False for objects of the cluster.
    pub namespaced: bool,
    /// True if status is written through `/status` only.
    pub status: bool,
    /// Other subresources with the kind each takes.
    pub subresources: &'static [(&'static str, &'static str)],
    /// Field paths that a field selector may name, besides name and namespace.
    pub fields: &'static [&'static str],
    /// Where it is kept.
    pub kept: Kept,
    /// Kubernetes' own rule for names: 253 characters with dots, or 63 without.
    pub short_name_rule: bool,
    /// Sets what a client left out.
    pub default: fn(&mut Value),
    /// Finds broken rules.
    pub validate: fn(&Value, &mut Causes),
    /// Finds forbidden changes (old, new).
    pub validate_update: fn(&Value, &Value, &mut Causes),
    /// What `kubectl get` shows besides the name and the age.
    pub columns: &'static [Column],
    /// The cells of one object, in the order of `columns`.
    pub cells: fn(&Value, table::Now) -> Vec<Value>,
}

impl Row {
    /// `pods`, `leases.coordination.k8s.io`.
    pub fn qualified(&self) -> String {
        qualify(self.resource, self.group)
    }

    /// `Pod`, `Lease.coordination.k8s.io`.
    pub fn qualified_kind(&self) -> String {
        qualify(self.kind, self.group)
    }

    /// `v1`, `coordination.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.into(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// True if paths may end in `/{name}`.
    pub fn has_subresource(&self, name: &str) -> bool {
        (self.status && name == "status") || self.subresources.iter().any(|(known, _)| *known == name)
    }
}

fn qualify(name: &str, group: &str) -> String {
    match group {
        "" => name.into(),
        group => format!("{name}.{group}"),
    }
}

/// A kind without anything of its own.
const PLAIN: Row = Row {
    group: "",
    version: "v1",
    resource: "",
    kind: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    subresources: &[],
    fields: &[],
    kept: Kept::Durable,
    short_name_rule: false,
    default: |_| (),
    validate: |_, _| (),
    validate_update: |_, _, _| (),
    columns: &[],
    cells: |_, _| Vec::new(),
};

/// All kinds, by group and then by name.
pub static ROWS: &[Row] = &[
    Row {
        resource: "configmaps",
        kind: "ConfigMap",
        singular: "configmap",
        short_names: &["cm"],
        validate: validate::config_map,
        validate_update: validate::config_map_update,
        columns: table::CONFIG_MAP,
        cells: table::config_map,
        ..PLAIN
    },
    Row {
        resource: "events",
        kind: "Event",
        singular: "event",
        short_names: &["ev"],
        kept: Kept::Volatile,
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        columns: table::EVENT,
        cells: table::event,
        ..PLAIN
    },
    Row {
        resource: "namespaces",
        kind: "Namespace",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        status: true,
        subresources: &[("finalize", "Namespace")],
        fields: &["status.phase"],
        short_name_rule: true,
        default: defaults::namespace,
        columns: table::NAMESPACE,
        cells: table::namespace,
        ..PLAIN
    },
    Row {
        resource: "nodes",
        kind: "Node",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        status: true,
        fields: &["spec.unschedulable"],
        kept: Kept::DurableButHeartbeats,
        default: defaults::node,
        columns: table::NODE,
        cells: table::node,
        ..PLAIN
    },
    Row {
        resource: "pods",
        kind: "Pod",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        status: true,
        subresources: &[("binding", "Binding")],
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        default: defaults::pod,
        validate: validate::pod,
        validate_update: validate::pod_update,
        columns: table::POD,
        cells: table::pod,
        ..PLAIN
    },
    Row {
        resource: "secrets",
        kind: "Secret",
        singular: "secret",
        fields: &["type"],
        default: defaults::secret,
        validate: validate::secret,
        validate_update: validate::secret_update,
        columns: table::SECRET,
        cells: table::secret,
        ..PLAIN
    },
    Row {
        resource: "serviceaccounts",
        kind: "ServiceAccount",
        singular: "serviceaccount",
        short_names: &["sa"],
        columns: table::SERVICE_ACCOUNT,
        cells: table::service_account,
        ..PLAIN
    },
    Row {
        group: "coordination.k8s.io",
        resource: "leases",
        kind: "Lease",
        singular: "lease",
        kept: Kept::Volatile,
        columns: table::LEASE,
        cells: table::lease,
        ..PLAIN
    },
];

/// The kind that a path names.
pub fn find(group: &str, version: &str, resource: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.group == group && row.version == version && row.resource == resource)
}

/// Group and version of each API, the core group first.
pub fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<_> = ROWS.iter().map(|row| (row.group, row.version)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}
