use std::fmt;

/// A kind of object, as a path of the Kubernetes API spells it: group and
/// plural resource name. The core group is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// `""`, `apps`, `coordination.k8s.io`, …
    pub group: String,
    /// `pods`, `deployments`, …
    pub resource: String,
}

impl Kind {
    /// The kind named by group and plural resource.
    pub fn new(group: &str, resource: &str) -> Kind {
        Kind { group: group.into(), resource: resource.into() }
    }

    /// The key of one object of this kind; `namespace` is empty for an object
    /// of the cluster.
    pub fn key(&self, namespace: &str, name: &str) -> Result<Key, KeyError> {
        Key::new(&self.group, &self.resource, namespace, name)
    }
}

/// Where an object is: group, plural resource, namespace, name.
///
/// Ordered as the store orders it, so that one kind, and one namespace of it,
/// are ranges.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// API group; empty for the core group.
    pub group: String,
    /// Plural resource name in lower case.
    pub resource: String,
    /// Namespace; empty for an object of the cluster.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// Why a key cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A part is empty, longer than 253 bytes, or would not fit a URL path
    /// segment (Kubernetes: path segment names).
    #[error(
        "{part} {text:?} is not valid: 1 to 253 bytes without '/', '%' or control characters, and neither '.' nor '..'"
    )]
    Part {
        /// `group`, `resource`, `namespace` or `name`.
        part: &'static str,
        /// What was given, shortened.
        text: String,
    },
}

fn check(part: &'static str, text: &str, may_be_empty: bool) -> Result<(), KeyError> {
    let fits = if text.is_empty() {
        may_be_empty
    } else {
        text.len() <= 253
            && text != "."
            && text != ".."
            && !text.chars().any(|c| c == '/' || c == '%' || c.is_control())
    };
    if fits {
        return Ok(());
    }
    Err(KeyError::Part { part, text: text.chars().take(64).collect() })
}

impl Key {
    /// Makes a key after checking each part.
    pub fn new(group: &str, resource: &str, namespace: &str, name: &str) -> Result<Key, KeyError> {
        check("group", group, true)?;
        check("resource", resource, false)?;
        check("namespace", namespace, true)?;
        check("name", name, false)?;
        Ok(Key {
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    /// A key of the core group.
    pub fn core(resource: &str, namespace: &str, name: &str) -> Result<Key, KeyError> {
        Key::new("", resource, namespace, name)
    }

    /// The kind this key is of.
    pub fn kind(&self) -> Kind {
        Kind::new(&self.group, &self.resource)
    }

    /// True if the key is of this group and resource.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.group == group && self.resource == resource
    }
}

/// `pods/default/hello`, `deployments.apps/default/web`, `nodes/barn-1`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)?;
        }
        write!(f, "/{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_as_a_person_would_write_it() {
        assert_eq!(Key::core("pods", "default", "hello").unwrap().to_string(), "pods/default/hello");
        assert_eq!(
            Key::new("apps", "deployments", "a", "web").unwrap().to_string(),
            "deployments.apps/a/web"
        );
        assert_eq!(Key::core("nodes", "", "barn-1").unwrap().to_string(), "nodes/barn-1");
    }

    #[test]
    fn parts_that_do_not_fit_a_path_are_refused() {
        for name in ["", ".", "..", "a/b", "a%2fb", "a\nb", &"x".repeat(254)] {
            let error = Key::core("pods", "default", name).unwrap_err();
            assert!(error.to_string().starts_with("name "), "{error}");
        }
        assert!(Key::core("", "default", "a").is_err());
        assert!(Key::new("rbac.authorization.k8s.io", "clusterroles", "", "system:node").is_ok());
    }
}
