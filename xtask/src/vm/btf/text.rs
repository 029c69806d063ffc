//! The wanted types as text: every member with its offset in bits, one a line. Pure.
//!
//! Made to be compared: two kernels by `diff`, and a reduced BTF with the whole.

use std::fmt::Write as _;

use super::types::Kind::{
    Array, Const, Forward, Function, Pointer, Prototype, Restrict, Struct, TypeTag, Typedef, Union,
    Volatile,
};
use super::types::{Type, Types};
use super::wanted::{FUNCTIONS, STRUCTS, TRACEPOINTS, trace_typedef};

/// All that is wanted of `types`, what is absent included.
pub(super) fn layouts(types: &Types) -> String {
    let mut text = String::new();
    for name in STRUCTS {
        match types.find(Struct, name).and_then(|number| types.get(number)) {
            Some(ty) => {
                let _ = writeln!(text, "struct {name}: {} bytes", ty.size_or_type);
                members(types, ty, 0, 1, &mut text);
            }
            None => {
                let _ = writeln!(text, "struct {name}: absent");
            }
        }
    }
    for name in FUNCTIONS {
        let prototype = types.find(Function, name);
        signature(types, &format!("function {name}"), prototype, &mut text);
    }
    for name in TRACEPOINTS {
        let prototype = types.find(Typedef, &trace_typedef(name));
        signature(types, &format!("tracepoint {name}"), prototype, &mut text);
    }
    text
}

fn members(types: &Types, ty: &Type, base: u32, depth: usize, text: &mut String) {
    for (name, number, offset, width) in ty.members() {
        let (indent, at) = ("  ".repeat(depth), base + offset);
        let width = if width > 0 { format!(":{width}") } else { String::new() };
        let name = if name.is_empty() { "(anonymous)" } else { name };
        let _ = writeln!(text, "{indent}{at} {name}{width} {}", type_name(types, number, 0));
        let nested = types.get(number);
        if let Some(nested) =
            nested.filter(|n| matches!(n.kind, Struct | Union) && n.name.is_empty())
        {
            members(types, nested, at, depth + 1, text);
        }
    }
}

/// `what: present (type name, …)`, through the pointer that a tracepoint's typedef has.
fn signature(types: &Types, what: &str, number: Option<u32>, text: &mut String) {
    let mut current = number.and_then(|number| types.get(number));
    while let Some(ty) = current.filter(|ty| matches!(ty.kind, Function | Typedef | Pointer)) {
        current = types.get(ty.size_or_type);
    }
    let _ = match current.filter(|ty| ty.kind == Prototype) {
        Some(prototype) => {
            let parameters: Vec<_> = prototype
                .parameters()
                .map(|(name, number)| {
                    format!("{} {name}", type_name(types, number, 0)).trim_end().to_owned()
                })
                .collect();
            writeln!(text, "{what}: present ({})", parameters.join(", "))
        }
        None => writeln!(text, "{what}: absent"),
    };
}

/// A type as C would nearly write it. A pointer to a function is `void *`, because the
/// fixtures keep no more of it.
fn type_name(types: &Types, number: u32, depth: u32) -> String {
    let Some(ty) = types.get(number) else { return "void".to_owned() };
    if depth > 16 {
        return "...".to_owned();
    }
    let target = || type_name(types, ty.size_or_type, depth + 1);
    let named = |word: &str| {
        let name = if ty.name.is_empty() { "(anonymous)" } else { &ty.name };
        format!("{word} {name}")
    };
    match ty.kind {
        Pointer => match types.get(ty.size_or_type) {
            Some(function) if function.kind == Prototype => "void *".to_owned(),
            _ => format!("{} *", target()),
        },
        Array => ty.elements().map_or_else(String::new, |(element, count)| {
            format!("{}[{count}]", type_name(types, element, depth + 1))
        }),
        Struct => named("struct"),
        Union => named("union"),
        Forward => named(if ty.flag { "union" } else { "struct" }),
        Const => format!("const {}", target()),
        Volatile => format!("volatile {}", target()),
        Restrict | TypeTag => target(),
        _ if ty.name.is_empty() => named("enum"),
        _ => ty.name.clone(),
    }
}
