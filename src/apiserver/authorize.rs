//! Who may do what: one place, one pure function.

use super::status::ApiError;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `system:admin`, `system:node:barn-1`, …
    pub name: String,
    /// `system:masters`, `system:nodes`, …
    pub groups: Vec<String>,
}

impl User {
    /// Nobody known.
    pub fn anonymous() -> User {
        User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] }
    }

    /// The operator: may do all.
    pub fn admin() -> User {
        User { name: "holm:admin".into(), groups: vec!["system:masters".into()] }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes<'a> {
    /// A path outside of the resources.
    Path(&'a str),
    /// Objects.
    Resource {
        /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
        verb: &'a str,
        /// API group.
        group: &'a str,
        /// `pods`, `pods/status`.
        resource: &'a str,
        /// Empty: all namespaces, or an object of the cluster.
        namespace: &'a str,
        /// Empty: no single object.
        name: &'a str,
    },
}

/// Paths that say only that the server is there and what it is.
const PUBLIC: &[&str] = &["/version", "/healthz", "/livez", "/readyz"];

/// Ok if the user may do it, 403 naming both otherwise.
pub fn authorize(user: &User, wanted: Attributes<'_>) -> Result<(), ApiError> {
    if user.groups.iter().any(|group| group == "system:masters") {
        return Ok(());
    }
    match wanted {
        Attributes::Path(path) if PUBLIC.contains(&path) => Ok(()),
        Attributes::Path(path) => {
            Err(ApiError::forbidden(format!("forbidden: User {:?} cannot get path {path:?}", user.name)))
        }
        Attributes::Resource { verb, group, resource, namespace, name } => {
            let qualified = match group {
                "" => resource.to_owned(),
                group => format!("{resource}.{group}"),
            };
            let object = if name.is_empty() { String::new() } else { format!(" {name:?}") };
            let place = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            Err(ApiError::forbidden(format!(
                "{qualified}{object} is forbidden: User {:?} cannot {verb} resource {resource:?} in API group {group:?} {place}",
                user.name
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Attributes<'_> =
        Attributes::Resource { verb: "list", group: "", resource: "pods", namespace: "a", name: "" };

    #[test]
    fn masters_may_do_all_and_others_only_see_that_it_is_there() {
        assert!(authorize(&User::admin(), PODS).is_ok());
        let node = User { name: "system:node:a".into(), groups: vec!["system:nodes".into()] };
        for user in [&User::anonymous(), &node] {
            assert_eq!(authorize(user, PODS).unwrap_err().code, 403);
            assert!(authorize(user, Attributes::Path("/readyz")).is_ok());
            assert!(authorize(user, Attributes::Path("/readyz/../api")).is_err());
            assert!(authorize(user, Attributes::Path("/api")).is_err());
        }
    }

    #[test]
    fn a_refusal_names_the_user_and_the_thing() {
        let message = authorize(&User::anonymous(), PODS).unwrap_err().message;
        assert!(message.contains("system:anonymous") && message.contains("cannot list resource \"pods\""));
    }
}
