//! Refusals, as the Kubernetes API words them: a `Status` object with a code,
//! a reason that programs read, and a message that people read.

use serde_json::{Value, json};

use super::registry::Row;
use crate::object::Key;
use crate::store::{StoreError, WriteError};

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Kubernetes: `StatusReason`.
    pub reason: &'static str,
    /// One line for a person.
    pub message: String,
    /// Kubernetes: `StatusDetails`.
    pub details: Option<Value>,
}

impl ApiError {
    /// A refusal without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: None }
    }

    /// The request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    /// The user may not do this.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(403, "Forbidden", message)
    }

    /// Nothing is served at this path.
    pub fn no_such_path() -> ApiError {
        ApiError::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// There is no object of this name.
    pub fn not_found(row: &Row, name: &str) -> ApiError {
        let message = format!("{} {name:?} not found", row.qualified());
        ApiError { details: Some(about(row, name)), ..ApiError::new(404, "NotFound", message) }
    }

    /// There is an object of this name already.
    pub fn already_exists(row: &Row, name: &str) -> ApiError {
        let message = format!("{} {name:?} already exists", row.qualified());
        ApiError { details: Some(about(row, name)), ..ApiError::new(409, "AlreadyExists", message) }
    }

    /// The object is not in the state that the request is about.
    pub fn conflict(row: &Row, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", row.qualified());
        ApiError { details: Some(about(row, name)), ..ApiError::new(409, "Conflict", message) }
    }

    /// The verb is not served for this resource.
    pub fn not_allowed() -> ApiError {
        ApiError::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// The revision asked for is no longer (or not yet) known.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }

    /// The object breaks rules, each named with its field.
    pub fn invalid(row: &Row, name: &str, causes: &[Cause]) -> ApiError {
        let lines: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let text = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut details = about(row, name);
        if let Some(map) = details.as_object_mut() {
            // Upstream names the kind here and the resource everywhere else.
            map.insert("kind".into(), row.kind.into());
            map.insert(
                "causes".into(),
                causes
                    .iter()
                    .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
                    .collect(),
            );
        }
        ApiError {
            details: Some(details),
            ..ApiError::new(422, "Invalid", format!("{} {name:?} is invalid: {text}", row.qualified_kind()))
        }
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let (Some(map), Some(details)) = (status.as_object_mut(), &self.details) {
            map.insert("details".into(), details.clone());
        }
        status
    }

    /// What a refused write means to the client.
    pub fn from_write(row: &Row, error: WriteError) -> ApiError {
        match error {
            WriteError::Exists(key) => ApiError::already_exists(row, &key.name),
            WriteError::Missing(key) => ApiError::not_found(row, &key.name),
            WriteError::Conflict { key, .. } => changed(row, &key),
            WriteError::TooLarge(key, why) => {
                ApiError::new(413, "RequestEntityTooLarge", format!("{key}: {why}"))
            }
            WriteError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        match &error {
            // Kubernetes: `StatusReasonServiceUnavailable`; RFC 4918, 11.5.
            StoreError::Full { .. } => ApiError::new(507, "InsufficientStorage", error.to_string()),
            StoreError::Damaged { .. } => ApiError::new(
                500,
                "InternalError",
                format!(
                    "{error}: stop the cloud and bring a backup back with: holm cloud restore FILE; a board heals when it is started again"
                ),
            ),
            _ => ApiError::new(500, "InternalError", error.to_string()),
        }
    }
}

fn changed(row: &Row, key: &Key) -> ApiError {
    let why = "the object has been modified; please apply your changes to the latest version and try again";
    ApiError::conflict(row, &key.name, why)
}

fn about(row: &Row, name: &str) -> Value {
    let mut details = json!({"name": name, "kind": row.resource});
    if let Some(map) = details.as_object_mut()
        && !row.group.is_empty()
    {
        map.insert("group".into(), row.group.into());
    }
    details
}

/// One broken rule (Kubernetes: `StatusCause`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field: `spec.containers[0].image`.
    pub field: String,
    /// Kubernetes: `CauseType`.
    pub reason: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// The broken rules found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Causes(pub Vec<Cause>);

impl Causes {
    /// More than these say nothing new; a hostile object must not make a long answer.
    const MOST: usize = 32;

    fn push(&mut self, field: &str, reason: &'static str, message: String) {
        if self.0.len() < Self::MOST {
            self.0.push(Cause { field: field.into(), reason, message });
        }
    }

    /// The field must be there.
    pub fn required(&mut self, field: &str) {
        self.push(field, "FieldValueRequired", "Required value".into());
    }

    /// The value does not do, and why.
    pub fn invalid(&mut self, field: &str, value: &Value, why: &str) {
        let text: String = value.to_string().chars().take(200).collect();
        self.push(field, "FieldValueInvalid", format!("Invalid value: {text}: {why}"));
    }

    /// The value is of another type than the field.
    pub fn mistyped(&mut self, field: &str, wanted: &str) {
        self.push(field, "FieldValueTypeInvalid", format!("Invalid type: must be {wanted}"));
    }

    /// The value may be there only once.
    pub fn duplicate(&mut self, field: &str, value: &str) {
        self.push(field, "FieldValueDuplicate", format!("Duplicate value: {value:?}"));
    }

    /// The value names something that is not there.
    pub fn not_found(&mut self, field: &str, value: &str) {
        self.push(field, "FieldValueNotFound", format!("Not found: {value:?}"));
    }

    /// The value is none of the known ones.
    pub fn unsupported(&mut self, field: &str, value: &str, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
        let message = format!("Unsupported value: {value:?}: supported values: {}", known.join(", "));
        self.push(field, "FieldValueNotSupported", message);
    }

    /// The field may not be set or changed.
    pub fn forbidden(&mut self, field: &str, why: &str) {
        self.push(field, "FieldValueForbidden", format!("Forbidden: {why}"));
    }
}
