//! A reader for the kernel's type information (BTF), as far as member offsets need it.
//!
//! Refuses to keep what it does not need: one pass over the types, no copies of names. Total: any
//! bytes in, a table or an error that names the offset out. The format is that of
//! `Documentation/bpf/btf.rst`.

use hashbrown::HashMap; // not iterated

/// Why bytes are not BTF.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The header is missing, of a foreign byte order or contradicts the length.
    #[error("BTF header: {0}")]
    Header(&'static str),
    /// A type record is cut off or of no known kind.
    #[error("BTF type {id} at byte {at}: {what}")]
    Type {
        /// Number of the type.
        id: u32,
        /// Offset in the type section, bytes.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

const MAGIC: u16 = 0xeb9f;

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// How deep anonymous members and typedefs may nest before a table is taken for broken.
const MAX_DEPTH: u32 = 16;

/// The types of one kernel.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; index 0 is `void`.
    at: Vec<u32>,
    structures: HashMap<&'a [u8], u32>, // not iterated
    /// Numbers of the functions, rising.
    functions: Vec<u32>,
}

impl<'a> Btf<'a> {
    /// Reads the tables of `bytes`.
    ///
    /// # Errors
    /// Where the bytes are not BTF of this machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let header = |at| word(bytes, at).ok_or(BtfError::Header("cut off"));
        let magic = header(0)? & 0xffff;
        if magic != u32::from(MAGIC) {
            return Err(BtfError::Header("wrong magic number"));
        }
        let section = |offset: u32, len: u32| {
            let start = (header(4)? as usize).checked_add(offset as usize);
            start
                .and_then(|start| bytes.get(start..start.checked_add(len as usize)?))
                .ok_or(BtfError::Header("a section lies outside"))
        };
        let types = section(header(8)?, header(12)?)?;
        let strings = section(header(16)?, header(20)?)?;
        let mut btf = Self {
            types,
            strings,
            at: Vec::with_capacity(types.len() / 24),
            structures: HashMap::new(),
            functions: Vec::new(),
        };
        btf.at.push(0);
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let mut at = 0usize;
        while at < self.types.len() {
            let id = self.at.len() as u32;
            let broken = |what| BtfError::Type { id, at, what };
            let (Some(name), Some(info), Some(_)) =
                (word(self.types, at), word(self.types, at + 4), word(self.types, at + 8))
            else {
                return Err(broken("cut off"));
            };
            let (kind, count) = (kind(info), (info & 0xffff) as usize);
            let rest = match kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
                ENUM | FUNC_PROTO => 8 * count,
                POINTER | FWD..=FUNC | 16 | TYPE_TAG => 0,
                _ => return Err(broken("unknown kind")),
            };
            let next = at + 12 + rest;
            if next > self.types.len() {
                return Err(broken("cut off"));
            }
            self.at.push(at as u32);
            if (kind == STRUCT || kind == UNION) && name != 0 {
                let name = string(self.strings, name);
                self.structures.entry(name).or_insert(id);
            }
            if kind == FUNC {
                self.functions.push(id);
            }
            at = next;
        }
        Ok(())
    }

    /// Number of the function `name`.
    pub fn function(&self, name: &str) -> Option<u32> {
        let mut functions = self.functions.iter().copied();
        functions.find(|&id| is_string(self.strings, self.head(id).0, name.as_bytes()))
    }

    /// A table in which those of `names` that are functions here alone are any, and have the numbers
    /// that they have here.
    ///
    /// A program is attached by that number. A loader that is given this small table does not
    /// spend 20 ms on reading the kernel's whole one.
    pub fn only_functions(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<u8> {
        let mut strings = vec![0];
        // Number here, and where in the strings its name is.
        let mut named: Vec<(u32, u32)> = Vec::new();
        for name in names {
            let name = name.as_ref();
            let Some(number) = self.function(name) else { continue };
            named.push((number, strings.len() as u32));
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        named.sort_unstable();
        let last = named.last().map_or(0, |&(number, _)| number);
        let types = last as usize * 12;
        let mut table = Vec::with_capacity(24 + types + strings.len());
        let mut word = |word: u32| table.extend_from_slice(&word.to_ne_bytes());
        for value in [1 << 16 | u32::from(MAGIC), 24, 0, types as u32, types as u32] {
            word(value);
        }
        word(strings.len() as u32);
        let mut named = named.into_iter().peekable();
        for id in 1..=last {
            let name = named.next_if(|&(number, _)| number == id).map(|(_, name)| name);
            word(name.unwrap_or(0));
            word(if name.is_some() { FUNC } else { FWD } << 24);
            word(0);
        }
        table.extend(strings);
        table
    }

    /// True where `bpf_d_path` may surely be called from an iterator. It may since 5.12, which
    /// BTF does not tell; the helper that is looked for instead came with 5.14.
    pub fn allows_d_path(&self) -> bool {
        self.function("bpf_sys_bpf").is_some()
    }

    /// True where the structure or union exists in full.
    pub fn has_structure(&self, name: &str) -> bool {
        self.structures.contains_key(name.as_bytes())
    }

    /// Size of a structure, bytes.
    pub fn size_of(&self, structure: &str) -> Option<u32> {
        let &id = self.structures.get(structure.as_bytes())?;
        Some(self.head(id).2)
    }

    /// Offset of a member, bytes from the beginning of `structure`.
    ///
    /// `path` may go through members by name (`"d_hash.pprev"`); anonymous structures and unions
    /// on the way are looked through, as C does. A bit field has no offset in bytes.
    pub fn offset_of(&self, structure: &str, path: &str) -> Option<u32> {
        let &id = self.structures.get(structure.as_bytes())?;
        let (mut id, mut bits) = (id, 0u32);
        for name in path.split('.') {
            let (offset, member) = self.member(id, name.as_bytes(), 0)?;
            bits = bits.checked_add(offset)?;
            id = member;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// How many pointers lead from a member of `structure` to what it is about: 1 for `T *`.
    pub fn pointers_of(&self, structure: &str, member: &str) -> Option<u32> {
        let &id = self.structures.get(structure.as_bytes())?;
        let (_, mut id) = self.member(id, member.as_bytes(), 0)?;
        for depth in 0..MAX_DEPTH {
            let stripped = self.strip(id).filter(|&id| id != 0);
            match stripped.map(|id| self.head(id)) {
                Some((_, info, target)) if kind(info) == POINTER => id = target,
                _ => return Some(depth),
            }
        }
        None
    }

    fn member(&self, structure: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let structure = self.strip(structure)?;
        let (_, info, _) = self.head(structure);
        if depth > MAX_DEPTH || !matches!(kind(info), STRUCT | UNION) {
            return None;
        }
        let bit_fields = info >> 31 == 1;
        let members = self.at[structure as usize] as usize + 12;
        for index in 0..(info & 0xffff) as usize {
            let at = members + 12 * index;
            let (member_name, id, offset) =
                (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let (offset, width) =
                if bit_fields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if member_name == 0 {
                if let Some((inner, id)) = self.member(id, name, depth + 1) {
                    return Some((offset.checked_add(inner)?, id));
                }
            } else if width == 0 && is_string(self.strings, member_name, name) {
                return Some((offset, id));
            }
        }
        None
    }

    /// Looks through typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            if id == 0 || id as usize >= self.at.len() {
                return None;
            }
            let (_, info, target) = self.head(id);
            match kind(info) {
                TYPEDEF | VOLATILE | CONST | 11 | TYPE_TAG => id = target,
                _ => return Some(id),
            }
        }
        None
    }

    /// Name, info and size or type of a type that `index` has seen.
    fn head(&self, id: u32) -> (u32, u32, u32) {
        let at = self.at[id as usize] as usize;
        let word = |at| word(self.types, at).unwrap_or(0);
        (word(at), word(at + 4), word(at + 8))
    }
}

fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// True where the string at `at` is `text`, without a look for its end.
fn is_string(strings: &[u8], at: u32, text: &[u8]) -> bool {
    let rest = strings.get(at as usize..).unwrap_or(&[]);
    rest.starts_with(text) && rest.get(text.len()).is_none_or(|&byte| byte == 0)
}

fn string(strings: &[u8], at: u32) -> &[u8] {
    let rest = strings.get(at as usize..).unwrap_or(&[]);
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Builds a table: `struct outer { int a; union { int b; struct inner c; }; int d:3; }` and
    /// `struct inner { int x; int y; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0inner\0c\0x\0y\0d\0tick\0";
        let name = |text: &str| {
            let needle = format!("\0{text}\0");
            let found = strings.windows(needle.len()).position(|w| w == needle.as_bytes());
            found.expect("a name of the sample") as u32 + 1
        };
        let info = |kind: u32, count: u32| (kind << 24) | count;
        let types: Vec<u32> = [
            vec![name("int"), info(INT, 0), 4, 32],
            vec![name("inner"), info(STRUCT, 2), 8, name("x"), 1, 0, name("y"), 1, 32],
            vec![0, info(UNION, 2), 8, name("b"), 1, 0, name("c"), 2, 0],
            vec![name("outer"), info(STRUCT, 3) | 1 << 31, 16]
                .into_iter()
                .chain([name("a"), 1, 0, 0, 3, 32, name("d"), 1, (3 << 24) | 96])
                .collect(),
            vec![0, info(FUNC_PROTO, 0), 0],
            vec![name("tick"), info(FUNC, 0), 5],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let header =
            [0x1_eb9f, 24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        header
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .chain(types)
            .chain(*strings)
            .collect()
    }

    #[test]
    fn members_are_found_by_name_also_inside_anonymous_ones_and_by_path() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("the sample is valid");
        assert_eq!(btf.size_of("outer"), Some(16));
        assert_eq!(btf.offset_of("outer", "a"), Some(0));
        assert_eq!(btf.offset_of("outer", "b"), Some(4));
        assert_eq!(btf.offset_of("outer", "c.y"), Some(8));
        assert_eq!(btf.offset_of("inner", "y"), Some(4));
        assert_eq!(btf.function("tick"), Some(6));
        assert_eq!(btf.function("tic"), None);
    }

    #[test]
    fn a_table_of_some_functions_has_them_under_their_numbers_and_nothing_else() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("the sample is valid");
        let small = btf.only_functions(["absent", "tick"]);
        let small = Btf::parse(&small).expect("what is made is valid");
        assert_eq!(small.function("tick"), Some(6));
        assert_eq!(small.functions, [6]);
        assert!(!small.has_structure("outer"));
        assert_eq!(btf.only_functions(["absent"]).len(), 24 + 1);
    }

    #[test]
    fn what_is_absent_or_has_no_offset_in_bytes_is_none() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("the sample is valid");
        assert_eq!(btf.offset_of("outer", "d"), None, "a bit field");
        assert_eq!(btf.offset_of("outer", "a.x"), None, "an int has no members");
        assert_eq!(btf.offset_of("nowhere", "a"), None);
        assert_eq!(btf.function("int"), None);
        assert!(!btf.has_structure("tick"));
    }

    #[test]
    fn a_table_that_is_cut_off_names_the_type() {
        let bytes = sample();
        let mut short = bytes.clone();
        short[12..16].copy_from_slice(&60u32.to_ne_bytes());
        let error = Btf::parse(&short).err().expect("type 3 is cut off");
        assert_eq!(error, BtfError::Type { id: 3, at: 52, what: "cut off" });
        assert_eq!(Btf::parse(&bytes[..10]).err(), Some(BtfError::Header("cut off")));
        assert_eq!(Btf::parse(&[0; 64]).err(), Some(BtfError::Header("wrong magic number")));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_table_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..512),
            flips in proptest::collection::vec((0usize..400, any::<u8>()), 0..8),
        ) {
            let mut mutated = sample();
            for (at, value) in flips {
                let len = mutated.len();
                mutated[at % len] = value;
            }
            for bytes in [bytes, mutated] {
                if let Ok(btf) = Btf::parse(&bytes) {
                    let _ = btf.offset_of("outer", "c.y");
                    let _ = btf.function("tick");
                    let _ = btf.size_of("inner");
                }
            }
        }
    }
}
