//! What a request asks for: its path and its query, taken apart.

use super::registry::{self, Row};
use super::status::ApiError;

/// The part of the API that a path names.
#[derive(Clone, Debug)]
pub enum Route {
    /// A path outside of the resources: `/version`, `/api`, `/openapi/v3`, …
    Other(String),
    /// Objects.
    Resource(Target),
}

/// The objects that a path names.
#[derive(Clone, Debug)]
pub struct Target {
    /// Their kind.
    pub row: &'static Row,
    /// The namespace in the path.
    pub namespace: Option<String>,
    /// The name in the path.
    pub name: Option<String>,
    /// `status`, `binding`, …
    pub subresource: Option<String>,
}

impl Target {
    /// The namespace of one object's key: empty for an object of the cluster.
    pub fn key_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

/// Takes a path apart; 404 if it is under a group and version but names no
/// resource of it.
pub fn route(path: &str) -> Result<Route, ApiError> {
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        parts.push(decode(part).ok_or_else(|| ApiError::bad_request("the path is not UTF-8"))?);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Route::Other(format!("/{}", parts.join("/")))),
    };
    let find = |resource: &str| registry::find(group, version, resource).ok_or_else(ApiError::no_such_path);
    let (namespace, row, rest) = match rest {
        // Anything below a namespace but its own subresources is in it.
        ["namespaces", namespace, resource, rest @ ..] if !is_part_of_namespace(resource) => {
            let row = find(resource)?;
            if !row.namespaced {
                return Err(ApiError::no_such_path());
            }
            (Some((*namespace).to_owned()), row, rest)
        }
        [resource, rest @ ..] => (None, find(resource)?, rest),
        [] => return Err(ApiError::no_such_path()),
    };
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some(*name), None),
        [name, subresource] => (Some(*name), Some(*subresource)),
        _ => return Err(ApiError::no_such_path()),
    };
    // One object of a namespaced kind has a namespace.
    if row.namespaced && namespace.is_none() && name.is_some() {
        return Err(ApiError::no_such_path());
    }
    if subresource.is_some_and(|wanted| !row.has_subresource(wanted)) {
        return Err(ApiError::no_such_path());
    }
    Ok(Route::Resource(Target {
        row,
        namespace,
        name: name.map(Into::into),
        subresource: subresource.map(Into::into),
    }))
}

fn is_part_of_namespace(part: &str) -> bool {
    part == "status" || part == "finalize"
}

/// The parameters behind `?`, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes a query string apart; what is not UTF-8 is left out.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        Query(pairs.collect())
    }

    /// A parameter that is there and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// A parameter that says yes.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True" | "t"))
    }

    /// A number; 400 if it is something else.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let parse = |text: &str| {
            text.parse().map_err(|_| ApiError::bad_request(format!("{name}: {text:?} is not a number")))
        };
        self.get(name).map(parse).transpose()
    }
}

/// Percent-decoding (RFC 3986, section 2.1).
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let high = digit(bytes.next())?;
        let low = digit(bytes.next())?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(path: &str) -> Target {
        match route(path).unwrap() {
            Route::Resource(target) => target,
            Route::Other(other) => panic!("{other} is no resource"),
        }
    }

    #[test]
    fn paths_name_objects() {
        let pods = target("/api/v1/pods");
        assert_eq!((pods.row.kind, pods.namespace, pods.name), ("Pod", None, None));
        let pod = target("/api/v1/namespaces/a/pods/b/status");
        assert_eq!(pod.namespace.as_deref(), Some("a"));
        assert_eq!(pod.name.as_deref(), Some("b"));
        assert_eq!(pod.subresource.as_deref(), Some("status"));
        let space = target("/api/v1/namespaces/a/finalize");
        assert_eq!((space.row.kind, space.name.as_deref()), ("Namespace", Some("a")));
        let lease = target("/apis/coordination.k8s.io/v1/namespaces/x/leases/y");
        assert_eq!(lease.row.kind, "Lease");
        assert_eq!(target("/api/v1/namespaces/a%2db/pods/x").namespace.as_deref(), Some("a-b"));
    }

    #[test]
    fn what_is_not_served_is_not_found() {
        for path in [
            "/api/v1/nothing",
            "/api/v2/pods",
            "/apis/apps.example/v1/pods",
            "/api/v1/pods/a",
            "/api/v1/namespaces/a/nodes/b",
            "/api/v1/namespaces/a/pods/b/nothing",
            "/api/v1/namespaces/a/pods/b/status/c",
        ] {
            assert_eq!(route(path).unwrap_err().code, 404, "{path}");
        }
        assert!(matches!(route("/apis/").unwrap(), Route::Other(path) if path == "/apis"));
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=true&limit=5&x&bad=%zz&plus=a+b");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("plus"), Some("a b"));
        assert!(query.flag("watch") && !query.flag("x"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert_eq!(query.number("plus").unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn nothing_in_a_path_or_query_panics(text in ".{0,80}") {
            let _ = route(&text);
            let _ = route(&format!("/api/v1/{text}"));
            let _ = Query::parse(&text);
        }
    }
}
