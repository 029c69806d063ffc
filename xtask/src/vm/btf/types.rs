//! BTF as a list of types: read from bytes, written to bytes.
//!
//! Keeps every kind of type as it is and gives none a meaning beyond which of its words are
//! types and which are names. Reads no split BTF (that of modules).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

/// A type's kind, by the numbers of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int = 1,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    Forward,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Function,
    Prototype,
    Variable,
    Section,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

use Kind::*;

const KINDS: [Kind; 19] = [
    Int, Pointer, Array, Struct, Union, Enum, Forward, Typedef, Volatile, Const, Restrict,
    Function, Prototype, Variable, Section, Float, DeclTag, TypeTag, Enum64,
];

/// One type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The top bit: bit fields in a struct, signed values in an enum, a union in a forward.
    pub(super) flag: bool,
    /// Members, values or parameters; a function's linkage.
    pub(super) count: u32,
    /// A size or a type, which the kind decides.
    pub(super) size_or_type: u32,
    pub(super) words: Vec<Word>,
}

/// A word that follows a type's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Name(String),
    Type(u32),
    Number(u32),
}

impl Type {
    /// The type that the head refers to.
    pub(super) fn target(&self) -> Option<u32> {
        let refers = matches!(
            self.kind,
            Pointer
                | Typedef
                | Volatile
                | Const
                | Restrict
                | Function
                | Prototype
                | Variable
                | DeclTag
                | TypeTag
        );
        refers.then_some(self.size_or_type)
    }

    /// (name, type, offset in bits, width of a bit field or 0) of each member.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, u32, u32, u32)> {
        let composite = matches!(self.kind, Struct | Union);
        self.words.chunks_exact(3).filter(move |_| composite).filter_map(|words| match words {
            [Word::Name(name), Word::Type(ty), Word::Number(at)] if self.flag => {
                Some((name.as_str(), *ty, at & 0xff_ffff, at >> 24))
            }
            [Word::Name(name), Word::Type(ty), Word::Number(at)] => {
                Some((name.as_str(), *ty, *at, 0))
            }
            _ => None,
        })
    }

    /// (name, type) of each parameter.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&str, u32)> {
        let prototype = self.kind == Prototype;
        self.words.chunks_exact(2).filter(move |_| prototype).filter_map(|words| match words {
            [Word::Name(name), Word::Type(ty)] => Some((name.as_str(), *ty)),
            _ => None,
        })
    }

    /// (element, number of elements) of an array.
    pub(super) fn elements(&self) -> Option<(u32, u32)> {
        match self.words.as_slice() {
            [Word::Type(element), Word::Type(_), Word::Number(count)] if self.kind == Array => {
                Some((*element, *count))
            }
            _ => None,
        }
    }
}

/// The shape of the words after a head: n is a name, t a type, # a number.
fn shape(kind: Kind, count: u32) -> (&'static str, u32) {
    match kind {
        Int | Variable | DeclTag => ("#", 1),
        Array => ("tt#", 1),
        Struct | Union => ("nt#", count),
        Enum => ("n#", count),
        Enum64 => ("n##", count),
        Prototype => ("nt", count),
        Section => ("t##", count),
        Pointer | Forward | Typedef | Volatile | Const | Restrict | Function | Float | TypeTag => {
            ("", 0)
        }
    }
}

/// All types of a kernel. The number of a type is its place in the list and one; 0 is void.
#[derive(Debug, Default)]
pub(super) struct Types(pub(super) Vec<Type>);

impl Types {
    pub(super) fn get(&self, number: u32) -> Option<&Type> {
        self.0.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    /// The first type of that kind and name.
    pub(super) fn find(&self, kind: Kind, name: &str) -> Option<u32> {
        let at = self.0.iter().position(|ty| ty.kind == kind && ty.name == name)?;
        u32::try_from(at + 1).ok()
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let header = bytes.get(..HEADER).context("BTF without a header")?;
        ensure!(header[..2] == MAGIC.to_le_bytes(), "not BTF, or of the other byte order");
        let field = |at| word(header, at).unwrap_or(0) as usize;
        let part = |offset: usize, size: usize| {
            let start = field(4).checked_add(offset)?;
            bytes.get(start..start.checked_add(size)?)
        };
        let mut types = part(field(8), field(12)).context("BTF is cut short in its types")?;
        let strings = part(field(16), field(20)).context("BTF is cut short in its strings")?;
        let name = |offset: u32| -> Result<String> {
            let rest = strings.get(offset as usize..).context("BTF names what it does not hold")?;
            let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        let mut all = Vec::new();
        while !types.is_empty() {
            let mut next = || -> Result<u32> {
                let value = word(types, 0).context("BTF is cut short in a type")?;
                types = &types[4..];
                Ok(value)
            };
            let (own_name, info, size_or_type) = (next()?, next()?, next()?);
            let number = (info >> 24) & 0x1f;
            let Some(kind) = KINDS.into_iter().find(|kind| *kind as u32 == number) else {
                bail!("BTF has a type of the unknown kind {number}");
            };
            let count = info & 0xffff;
            let (shape, times) = shape(kind, count);
            let mut words = Vec::new();
            for part in (0..times).flat_map(|_| shape.bytes()) {
                let value = next()?;
                words.push(match part {
                    b'n' => Word::Name(name(value)?),
                    b't' => Word::Type(value),
                    _ => Word::Number(value),
                });
            }
            let (name, flag) = (name(own_name)?, info >> 31 == 1);
            all.push(Type { name, kind, flag, count, size_or_type, words });
        }
        Ok(Self(all))
    }

    pub(super) fn write(&self) -> Result<Vec<u8>> {
        let mut strings = Strings::default();
        strings.offset("");
        let mut types = Vec::new();
        for ty in &self.0 {
            let info = ty.count | (ty.kind as u32) << 24 | u32::from(ty.flag) << 31;
            types.extend([strings.offset(&ty.name), info, ty.size_or_type]);
            types.extend(ty.words.iter().map(|word| match word {
                Word::Name(name) => strings.offset(name),
                Word::Type(value) | Word::Number(value) => *value,
            }));
        }
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_le_bytes).collect();
        let size = u32::try_from(types.len())?;
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        let fields = [HEADER as u32, 0, size, size, u32::try_from(strings.bytes.len())?];
        bytes.extend(fields.into_iter().flat_map(u32::to_le_bytes));
        bytes.extend(types);
        bytes.extend(strings.bytes);
        Ok(bytes)
    }
}

/// Each name once.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    known: BTreeMap<String, u32>,
}

impl Strings {
    fn offset(&mut self, name: &str) -> u32 {
        if let Some(offset) = self.known.get(name) {
            return *offset;
        }
        let offset = self.bytes.len() as u32;
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.known.insert(name.to_owned(), offset);
        offset
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Types {
        let name = |name: &str| Word::Name(name.into());
        Types(vec![
            Type {
                name: "int".into(),
                kind: Int,
                flag: false,
                count: 0,
                size_or_type: 4,
                words: vec![Word::Number(0x0100_0020)],
            },
            Type {
                name: "file".into(),
                kind: Struct,
                flag: true,
                count: 2,
                size_or_type: 8,
                words: vec![
                    name("a"),
                    Word::Type(1),
                    Word::Number(0),
                    name("b"),
                    Word::Type(1),
                    Word::Number(3 << 24 | 32),
                ],
            },
        ])
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let bytes = sample().write().unwrap();
        let read = Types::read(&bytes).unwrap();
        assert_eq!(read.0, sample().0);
        assert_eq!(read.find(Struct, "file"), Some(2));
        let members: Vec<_> = read.0[1].members().collect();
        assert_eq!(members, [("a", 1, 0, 0), ("b", 1, 32, 3)]);
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = sample().write().unwrap();
        for size in 0..bytes.len() {
            assert!(Types::read(&bytes[..size]).is_err(), "cut at {size}");
        }
        let mut other = bytes.clone();
        other[0] ^= 1;
        assert!(Types::read(&other).is_err());
    }
}
