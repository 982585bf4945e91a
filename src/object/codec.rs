//! Objects as CBOR (RFC 8949): the form in which they are stored and sent.
//!
//! The decoder is for bytes from outside. It bounds depth before it recurses
//! and length before it allocates, takes definite lengths only, and refuses
//! what JSON cannot say as well as trailing bytes.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use serde_json::{Map, Number, Value};

/// Maps and arrays may nest this deep. The deepest Kubernetes schemas (CRD
/// validation) stay under half of it.
pub const MAX_DEPTH: usize = 64;

/// The largest object in its encoded form, in bytes: above what a Kubernetes
/// API accepts (etcd's 1.5 MiB request limit).
pub const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Why bytes are not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More than [`MAX_BYTES`].
    #[error("an object of {0} bytes is over the limit of {MAX_BYTES}")]
    TooLong(usize),
    /// More than [`MAX_DEPTH`] levels.
    #[error("an object nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Bytes behind the object.
    #[error("{0} bytes follow the object")]
    Trailing(usize),
    /// Truncated, malformed, or a CBOR type that JSON does not have.
    #[error("not an object in CBOR: {0}")]
    Malformed(String),
}

impl From<minicbor::decode::Error> for CodecError {
    fn from(error: minicbor::decode::Error) -> Self {
        CodecError::Malformed(error.to_string())
    }
}

/// Encodes a value. Maps come out sorted by key, so equal values give equal bytes.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::with_capacity(512));
    write(&mut encoder, value);
    encoder.into_writer()
}

/// Encodes what both ends of a link agree on: what
/// [`super::content_hash`] is over. A board holds and a cloud sends exactly
/// these bytes, so that a change can be sent against them.
pub fn encode_content(value: &Value) -> Vec<u8> {
    let mut value = match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(field, _)| *field != "status");
            Value::Object(kept.map(|(field, item)| (field.clone(), item.clone())).collect())
        }
        other => other.clone(),
    };
    super::strip_server_fields(&mut value);
    encode(&value)
}

/// Encodes a value that [`decode`] will read again.
///
/// # Errors
/// It is too long or nests too deep.
pub fn encode_bounded(value: &Value) -> Result<Vec<u8>, CodecError> {
    if !is_within(value, MAX_DEPTH) {
        return Err(CodecError::TooDeep);
    }
    let bytes = encode(value);
    match bytes.len() > MAX_BYTES {
        true => Err(CodecError::TooLong(bytes.len())),
        false => Ok(bytes),
    }
}

fn is_within(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => {
            depth > 0 && items.iter().all(|item| is_within(item, depth - 1)) || items.is_empty()
        }
        Value::Object(map) => {
            depth > 0 && map.values().all(|item| is_within(item, depth - 1)) || map.is_empty()
        }
        _ => true,
    }
}

fn write(encoder: &mut Encoder<Vec<u8>>, value: &Value) {
    // Writing to a Vec cannot fail (its error type is Infallible).
    let _ = match value {
        Value::Null => encoder.null(),
        Value::Bool(bool) => encoder.bool(*bool),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => encoder.u64(number),
            (_, Some(number)) => encoder.i64(number),
            _ => encoder.f64(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => encoder.str(text),
        Value::Array(items) => {
            let _ = encoder.array(items.len() as u64);
            for item in items {
                write(encoder, item);
            }
            Ok(encoder)
        }
        Value::Object(map) => {
            let _ = encoder.map(map.len() as u64);
            for (key, item) in map {
                let _ = encoder.str(key);
                write(encoder, item);
            }
            Ok(encoder)
        }
    };
}

/// Decodes exactly one value.
pub fn decode(bytes: &[u8]) -> Result<Value, CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let mut decoder = Decoder::new(bytes);
    let value = read(&mut decoder, 0)?;
    match bytes.len() - decoder.position() {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}

fn read(decoder: &mut Decoder<'_>, depth: usize) -> Result<Value, CodecError> {
    if depth > MAX_DEPTH {
        return Err(CodecError::TooDeep);
    }
    Ok(match decoder.datatype()? {
        Type::Null => {
            decoder.null()?;
            Value::Null
        }
        Type::Bool => Value::Bool(decoder.bool()?),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => Value::from(decoder.u64()?),
        Type::I8 | Type::I16 | Type::I32 | Type::I64 => Value::from(decoder.i64()?),
        Type::F16 | Type::F32 | Type::F64 => {
            let number = decoder.f64()?;
            Value::Number(
                Number::from_f64(number)
                    .ok_or_else(|| CodecError::Malformed(format!("{number} is not a JSON number")))?,
            )
        }
        Type::String => Value::String(decoder.str()?.into()),
        Type::Array => {
            let count = counted(decoder.array()?, decoder, 1)?;
            let mut items = Vec::with_capacity(count.min(1024));
            for _ in 0..count {
                items.push(read(decoder, depth + 1)?);
            }
            Value::Array(items)
        }
        Type::Map => {
            let count = counted(decoder.map()?, decoder, 2)?;
            let mut map = Map::new();
            for _ in 0..count {
                let key: String = decoder.str()?.into();
                if map.insert(key, read(decoder, depth + 1)?).is_some() {
                    return Err(CodecError::Malformed("a key twice in one map".into()));
                }
            }
            Value::Object(map)
        }
        other => return Err(CodecError::Malformed(format!("type {other} has no place in JSON"))),
    })
}

/// The announced count, if the bytes that are left could hold it.
fn counted(count: Option<u64>, decoder: &Decoder<'_>, bytes_each: u64) -> Result<usize, CodecError> {
    let count = count.ok_or_else(|| CodecError::Malformed("indefinite length".into()))?;
    let left = decoder.input().len().saturating_sub(decoder.position()) as u64;
    if count.checked_mul(bytes_each).is_none_or(|least| least > left) {
        return Err(CodecError::Malformed(format!("{count} items announced, {left} bytes left")));
    }
    usize::try_from(count).map_err(|_| CodecError::Malformed(format!("{count} items announced")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(value in any_value()) {
            prop_assert_eq!(decode(&encode(&value)).unwrap(), value);
        }

        #[test]
        fn garbage_is_an_error_or_a_value_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_cut_is_noticed(value in any_value(), cut in 1usize..20) {
            let bytes = encode(&value);
            prop_assume!(cut <= bytes.len());
            prop_assert!(decode(&bytes[..bytes.len() - cut]).is_err());
        }
    }

    #[test]
    fn null_stays_null() {
        let value = json!({"lastProbeTime": null, "list": [null, {}]});
        assert_eq!(decode(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn nesting_is_bounded_before_the_stack_is() {
        assert_eq!(decode(&vec![0x81; 100_000]), Err(CodecError::TooDeep));
    }

    #[test]
    fn an_announced_length_is_not_believed() {
        // An array of 2^32 - 1 items, and a map of 2^63, with nothing behind.
        assert!(matches!(decode(&[0x9a, 0xff, 0xff, 0xff, 0xff]), Err(CodecError::Malformed(_))));
        assert!(matches!(decode(&[0xbb, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        for levels in [1, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, MAX_DEPTH + 2] {
            let value = nested(levels);
            let is_readable = decode(&encode(&value)).is_ok();
            assert_eq!(encode_bounded(&value).is_ok(), is_readable, "{levels} levels");
        }
        assert!(matches!(encode_bounded(&json!("x".repeat(MAX_BYTES))), Err(CodecError::TooLong(_))));
    }

    #[test]
    fn trailing_bytes_and_doubled_keys_are_refused() {
        assert_eq!(decode(&[0xf6, 0xf6]), Err(CodecError::Trailing(1)));
        assert!(decode(&[0xa2, 0x61, b'a', 0x01, 0x61, b'a', 0x02]).is_err());
        assert!(decode(&[0x9f, 0xff]).is_err(), "indefinite length");
    }
}
