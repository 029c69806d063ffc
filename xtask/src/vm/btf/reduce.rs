//! Makes a small BTF of a whole kernel's: the wanted types, and of the others only as much as
//! keeps it valid. Pure.
//!
//! A wanted struct keeps all its members and their offsets. What it embeds but nobody wants is
//! kept without members, for its size; what it points to but nobody wants becomes a forward
//! declaration, and functions become void.

use std::collections::{BTreeMap, BTreeSet};

use super::types::Kind::{Array, Forward, Function, Pointer, Prototype, Struct, Typedef, Union};
use super::types::{Type, Types, Word};
use super::wanted::{FUNCTIONS, STRUCTS, TRACEPOINTS, trace_typedef};

/// The wanted part of `whole`.
pub(super) fn reduced(whole: &Types) -> Types {
    let structs = STRUCTS.iter().filter_map(|name| whole.find(Struct, name));
    let functions = FUNCTIONS.iter().filter_map(|name| whole.find(Function, name));
    let traces = TRACEPOINTS.iter().filter_map(|name| whole.find(Typedef, &trace_typedef(name)));
    let mut reduction = Reduction {
        whole,
        wanted: structs.collect(),
        types: Types::default(),
        known: BTreeMap::new(),
        pointees: BTreeMap::new(),
        forwards: BTreeMap::new(),
    };
    for number in reduction.wanted.clone() {
        reduction.keep(number);
    }
    for number in functions.chain(traces) {
        reduction.prototype(number);
    }
    reduction.types
}

struct Reduction<'a> {
    whole: &'a Types,
    wanted: BTreeSet<u32>,
    types: Types,
    /// Old number to new.
    known: BTreeMap<u32, u32>,
    /// The same for typedefs and modifiers that are only pointed to: used by value, such a one
    /// needs the size of its target.
    pointees: BTreeMap<u32, u32>,
    /// (name, whether it is a union) to the new number.
    forwards: BTreeMap<(String, bool), u32>,
}

impl Reduction<'_> {
    /// The new number of a type that is used by value, or pointed to and simple.
    fn keep(&mut self, number: u32) -> u32 {
        if let Some(new) = self.known.get(&number) {
            return *new;
        }
        let Some(old) = self.whole.get(number) else { return 0 };
        let mut ty = old.clone();
        // The number is taken before the members are kept: structs point to each other.
        let new = self.push(old.clone());
        self.known.insert(number, new);
        match ty.kind {
            Struct | Union if !old.name.is_empty() && !self.wanted.contains(&number) => {
                ty.count = 0;
                ty.words.clear();
            }
            Pointer => ty.size_or_type = self.pointee(old.size_or_type),
            // Only pointers lead to functions, and those are cut; see `prototype`.
            _ => {
                if let Some(target) = old.target() {
                    ty.size_or_type = self.keep(target);
                }
                for word in &mut ty.words {
                    if let Word::Type(target) = word {
                        *target = self.keep(*target);
                    }
                }
            }
        }
        self.replace(new, ty);
        new
    }

    /// The new number of what a pointer points to.
    fn pointee(&mut self, number: u32) -> u32 {
        let Some(ty) = self.whole.get(number) else { return 0 };
        match ty.kind {
            Prototype => 0,
            Struct | Union if !ty.name.is_empty() && !self.wanted.contains(&number) => {
                self.forward(&ty.name, ty.kind == Union)
            }
            Forward => self.forward(&ty.name, ty.flag),
            // A modifier or a typedef may hide a struct that nobody wants.
            Array | Struct | Union | Pointer => self.keep(number),
            _ => match ty.target() {
                Some(target) => {
                    if let Some(new) = self.pointees.get(&number) {
                        return *new;
                    }
                    let target = self.pointee(target);
                    let new = self.push(Type { size_or_type: target, ..ty.clone() });
                    self.pointees.insert(number, new);
                    new
                }
                None => self.keep(number),
            },
        }
    }

    /// A function or a tracepoint's typedef, with the whole of its prototype.
    fn prototype(&mut self, number: u32) -> u32 {
        let Some(old) = self.whole.get(number) else { return 0 };
        if !matches!(old.kind, Function | Typedef | Pointer | Prototype) {
            return self.keep(number);
        }
        let mut ty = old.clone();
        if old.kind == Prototype {
            ty.size_or_type = self.keep(old.size_or_type);
            for word in &mut ty.words {
                if let Word::Type(target) = word {
                    *target = self.keep(*target);
                }
            }
        } else {
            ty.size_or_type = self.prototype(old.size_or_type);
        }
        self.push(ty)
    }

    fn forward(&mut self, name: &str, is_union: bool) -> u32 {
        let key = (name.to_owned(), is_union);
        if let Some(new) = self.forwards.get(&key) {
            return *new;
        }
        let new = self.push(Type {
            name: name.to_owned(),
            kind: Forward,
            flag: is_union,
            count: 0,
            size_or_type: 0,
            words: Vec::new(),
        });
        self.forwards.insert(key, new);
        new
    }

    fn push(&mut self, ty: Type) -> u32 {
        self.types.0.push(ty);
        self.types.0.len() as u32
    }

    fn replace(&mut self, number: u32, ty: Type) {
        self.types.0[number as usize - 1] = ty;
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::Kind;
    use super::*;

    fn ty(name: &str, kind: Kind, size_or_type: u32, words: Vec<Word>) -> Type {
        let count = if matches!(kind, Struct | Union) { words.len() as u32 / 3 } else { 0 };
        Type { name: name.into(), kind, flag: false, count, size_or_type, words }
    }

    fn member(name: &str, number: u32, offset: u32) -> [Word; 3] {
        [Word::Name(name.into()), Word::Type(number), Word::Number(offset)]
    }

    #[test]
    fn keeps_offsets_and_cuts_what_nobody_wants() {
        let whole = Types(vec![
            ty("int", Kind::Int, 4, vec![Word::Number(32)]), // 1
            ty("secret", Struct, 4, member("x", 1, 0).to_vec()), // 2
            ty("", Pointer, 2, vec![]),                      // 3
            ty("", Union, 8, member("deep", 3, 0).to_vec()), // 4
            ty("", Prototype, 0, vec![]),                    // 5
            ty("", Pointer, 5, vec![]),                      // 6
            ty("", Pointer, 8, vec![]),                      // 7
            ty(
                "file",
                Struct,
                32,
                [member("s", 2, 0), member("", 4, 64), member("f", 6, 128), member("me", 7, 192)]
                    .concat(),
            ), // 8
        ]);
        let small = reduced(&whole);
        let file = small.get(small.find(Struct, "file").unwrap()).unwrap();
        let members: Vec<_> = file.members().collect();
        let offsets: Vec<_> = members.iter().map(|m| m.2).collect();
        assert_eq!(offsets, [0, 64, 128, 192]);
        let secret = small.get(members[0].1).unwrap();
        assert_eq!((secret.size_or_type, secret.count), (4, 0));
        let union = small.get(members[1].1).unwrap();
        let deep = small.get(union.members().next().unwrap().1).unwrap();
        assert_eq!(small.get(deep.size_or_type).unwrap().kind, Forward);
        assert_eq!(small.get(members[2].1).unwrap().size_or_type, 0);
        let me = small.get(members[3].1).unwrap();
        assert_eq!(Some(me.size_or_type), small.find(Struct, "file"));
    }
}
