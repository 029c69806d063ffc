//! Names from outside in a trace: as text where they are text, in base64 where not.
//!
//! Refuses to lose a byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written<'a> {
    Text(std::borrow::Cow<'a, str>),
    Raw { b64: String },
}

fn written(bytes: &[u8]) -> Written<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Written::Text(text.into()),
        Err(_) => Written::Raw { b64: STANDARD.encode(bytes) },
    }
}

fn read<E: serde::de::Error>(written: Written<'_>) -> Result<Box<[u8]>, E> {
    match written {
        Written::Text(text) => Ok(text.as_bytes().into()),
        Written::Raw { b64 } => STANDARD.decode(b64).map(Vec::into).map_err(E::custom),
    }
}

pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    written(bytes).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Box<[u8]>, D::Error> {
    let written = Written::deserialize(from)
        .map_err(|_| D::Error::custom("neither text nor an object with b64"))?;
    read(written)
}

/// The same for names that may be unknown.
pub(super) mod optional {
    use std::ops::Deref;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Written;

    pub(in crate::engine) fn serialize<S: Serializer>(
        bytes: &Option<impl Deref<Target = [u8]>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_deref().map(super::written).serialize(serializer)
    }

    pub(in crate::engine) fn deserialize<'de, D, B>(from: D) -> Result<Option<B>, D::Error>
    where
        D: Deserializer<'de>,
        B: From<Box<[u8]>>,
    {
        let bytes = Option::<Written<'_>>::deserialize(from)?.map(super::read).transpose()?;
        Ok(bytes.map(B::from))
    }
}
