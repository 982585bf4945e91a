//! What is between HTTP and the API: media types, bodies, answers.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::FutureExt;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

use super::protobuf;
use super::status::ApiError;

/// The body of an answer: whole, or a watch.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request's body may have this many bytes (as upstream).
pub const MOST_BYTES: usize = 3 << 20;
/// A body arrives within this time.
const BODY_TIME: Duration = Duration::from_secs(60);

/// In which form the client wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Objects as they are.
    Whole,
    /// `as=Table`.
    Table,
    /// `as=PartialObjectMetadata` or its list.
    Partial,
    /// `as=APIGroupDiscoveryList`, version 2.
    Discovery,
}

/// The first form of `Accept` that can be given; 406 if there is none.
pub fn accepted(headers: &HeaderMap) -> Result<Form, ApiError> {
    let mut asked = false;
    for value in headers.get_all(header::ACCEPT) {
        for part in value.to_str().unwrap_or_default().split(',').filter(|part| !part.trim().is_empty()) {
            asked = true;
            if let Some(form) = form_of(part) {
                return Ok(form);
            }
        }
    }
    match asked {
        false => Ok(Form::Whole),
        true => Err(ApiError::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/json;as=Table;v=v1;g=meta.k8s.io",
        )),
    }
}

fn form_of(part: &str) -> Option<Form> {
    let mut parameters = part.split(';').map(str::trim);
    if !matches!(parameters.next()?, "application/json" | "application/*" | "*/*") {
        return None;
    }
    let (mut form, mut version) = ("", "");
    for parameter in parameters {
        match parameter.split_once('=') {
            Some(("as", value)) => form = value,
            Some(("v", value)) => version = value,
            _ => (),
        }
    }
    match (form, version) {
        ("", _) => Some(Form::Whole),
        ("Table", "v1") => Some(Form::Table),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "v1") => Some(Form::Partial),
        ("APIGroupDiscoveryList", "v2") => Some(Form::Discovery),
        _ => None,
    }
}

/// The media type of the body, without parameters, in lower case.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a body of bounded length in bounded time.
pub async fn read_body(headers: &HeaderMap, body: hyper::body::Incoming) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!("the body of a request is limited to {MOST_BYTES} bytes"),
        )
    };
    let said = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said > MOST_BYTES as u64) {
        return Err(too_large());
    }
    let collect = async {
        match Limited::new(body, MOST_BYTES).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Err(error) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
        }
    };
    let late = async {
        smol::Timer::after(BODY_TIME).await;
        Err(ApiError::new(408, "Timeout", "the body of the request did not arrive in time"))
    };
    collect.or(late).await
}

/// The body as a value: JSON, or YAML where the content type says so.
pub fn parse(content_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let refuse =
        |error: String| ApiError::bad_request(format!("the object provided is unrecognized: {error}"));
    match content_type {
        "application/json" | "" => serde_json::from_slice(body).map_err(|error| refuse(error.to_string())),
        "application/yaml" | "application/apply-patch+yaml" => parse_yaml(body).map_err(refuse),
        protobuf::MEDIA_TYPE => protobuf::parse(body),
        other if other.ends_with("+json") => {
            serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))
        }
        other => Err(ApiError::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format {other:?} - accepted media types include: application/json, application/yaml"
            ),
        )),
    }
}

/// One YAML document of bounded depth. With all its aliases written out it has
/// about as many bytes as a body may have.
pub fn parse_yaml(body: &[u8]) -> Result<Value, String> {
    // JSON is YAML, and its own parser is faster.
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_total_scalar_bytes: MOST_BYTES },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
    };
    serde_saphyr::from_slice_with_options(body, options).map_err(|error| error.to_string())
}

/// An answer of one value.
pub fn answer(code: u16, content_type: &'static str, value: &Value) -> Response<Body> {
    let mut bytes = value.to_string().into_bytes();
    bytes.push(b'\n');
    respond(code, content_type, full(bytes))
}

/// Bytes of some other type.
pub fn whole(content_type: &'static str, bytes: Vec<u8>) -> Response<Body> {
    respond(200, content_type, full(bytes))
}

/// A plain text.
pub fn plain(code: u16, text: String) -> Response<Body> {
    respond(code, "text/plain; charset=utf-8", full(text.into_bytes()))
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).boxed_unsync()
}

/// An answer with a body.
pub fn respond(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &'static str) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        accepted(&headers).map_err(|error| error.code)
    }

    #[test]
    fn the_first_form_that_is_known_is_given() {
        assert_eq!(
            form(
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
            ),
            Ok(Form::Table)
        );
        assert_eq!(form("application/vnd.kubernetes.protobuf, */*"), Ok(Form::Whole));
        assert_eq!(
            form("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"),
            Ok(Form::Discovery)
        );
        assert_eq!(form("text/html"), Err(406));
        assert_eq!(accepted(&HeaderMap::new()).unwrap(), Form::Whole);
    }

    #[test]
    fn aliases_do_not_make_a_small_body_large() {
        let many = |text: &str, count: usize| format!("a: &a {text}\nb:\n{}", "- *a\n".repeat(count));
        for body in [many(&"x".repeat(1 << 20), 9), many(&format!("[{}]", "x,".repeat(10_000)), 99)] {
            let size = parse_yaml(body.as_bytes()).map_or(0, |value| value.to_string().len());
            assert!(size <= MOST_BYTES, "{size} bytes");
        }
        assert_eq!(parse_yaml(many("x", 2).as_bytes()).unwrap()["b"][1], "x");
    }

    #[test]
    fn bodies_are_json_or_yaml() {
        assert_eq!(parse("application/json", b"{\"a\": 1}").unwrap()["a"], 1);
        assert_eq!(parse("application/yaml", b"a: 1\nb:\n- x: \"2\"\n").unwrap()["b"][0]["x"], "2");
        assert_eq!(parse("application/json", b"{").unwrap_err().code, 400);
        assert_eq!(parse("application/vnd.kubernetes.protobuf", b"k8s").unwrap_err().code, 400);
        assert_eq!(parse("text/plain", b"x").unwrap_err().code, 415);
        let deep = "[".repeat(100_000);
        assert_eq!(parse("application/json", deep.as_bytes()).unwrap_err().code, 400);
        assert_eq!(parse("application/yaml", deep.as_bytes()).unwrap_err().code, 400);
    }
}
