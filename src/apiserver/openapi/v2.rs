//! `/openapi/v2` in the protobuf that kubectl asks for: the same operations as
//! in version 3, for what kubectl still looks up here (a `List`, and all of it
//! before 1.28). The messages are those of gnostic's `openapi.v2` package, as
//! far as they are needed.

use prost::Message;

use super::super::registry::{ROWS, Row};
use super::{WRITING, collection_path};

/// The media type of this form. Clients also ask for it with an `@` after
/// `v2`, which no media type may have (RFC 6838 section 4.2).
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What both ways of asking begin with.
pub const ASKED: &str = "application/com.github.proto-openapi.spec.v2";

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Definitions>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Definitions {}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "2")]
    non_body_parameter: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query_parameter_sub_schema: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// The document.
pub fn document(version: &str) -> Vec<u8> {
    let path = ROWS.iter().map(|row| NamedPathItem {
        name: format!("{}/{{name}}", collection_path(row)),
        value: Some(PathItem { patch: Some(patch(row)) }),
    });
    let document = Document {
        swagger: "2.0".into(),
        info: Some(Info { title: "Kubernetes".into(), version: version.into() }),
        paths: Some(Paths { path: path.collect() }),
        definitions: Some(Definitions {}),
    };
    document.encode_to_vec()
}

fn patch(row: &Row) -> Operation {
    let parameters = WRITING.iter().map(|name| {
        let query = QueryParameter { place: "query".into(), name: (*name).into(), kind: "string".into() };
        let non_body_parameter = Some(NonBodyParameter { query_parameter_sub_schema: Some(query) });
        ParametersItem { parameter: Some(Parameter { non_body_parameter }) }
    });
    let extension = |name: &str, yaml: String| NamedAny { name: name.into(), value: Some(Any { yaml }) };
    Operation {
        operation_id: format!("patch{}{}", row.group.replace('.', ""), row.kind),
        parameters: parameters.collect(),
        vendor_extension: vec![
            extension("x-kubernetes-action", "patch\n".into()),
            extension(
                "x-kubernetes-group-version-kind",
                format!("group: {:?}\nkind: {}\nversion: {}\n", row.group, row.kind, row.version),
            ),
        ],
    }
}
