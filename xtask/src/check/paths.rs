//! The paths that Rust source names, with `{…}` groups multiplied out, and the macros it calls.
//!
//! A reader of tokens, not of Rust: comments and literals are skipped, nothing is resolved.

/// A path as written: `std::fs::File`, or `println!`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) segments: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Step,
    Other(char),
}

/// Every path and macro in the text, in order. A macro is one segment that ends with `!`.
pub(super) fn named(text: &str) -> Vec<Named> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at].1 {
            Token::Word(_) | Token::Step => at = path(&tokens, at, &[], &mut found),
            Token::Other(_) => at += 1,
        }
    }
    found
}

/// Reads one path after `prefix`, adds what it names, and answers where it ends.
fn path(
    tokens: &[(usize, Token)],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Named>,
) -> usize {
    let start = at;
    let mut segments = prefix.to_vec();
    let mut line = tokens.get(at).map_or(0, |(line, _)| *line);
    loop {
        match tokens.get(at) {
            Some((_, Token::Step)) => at += 1,
            Some((here, Token::Word(word))) => {
                line = *here;
                segments.push(word.clone());
                at += 1;
                match tokens.get(at) {
                    Some((_, Token::Step)) => {}
                    Some((_, Token::Other('!'))) => {
                        if let Some(last) = segments.last_mut() {
                            last.push('!');
                        }
                        break;
                    }
                    _ => break,
                }
            }
            Some((here, Token::Other('*'))) if after_step(tokens, at, start, prefix) => {
                segments.push("*".to_owned());
                line = *here;
                at += 1;
                break;
            }
            Some((_, Token::Other('{'))) if after_step(tokens, at, start, prefix) => {
                return group(tokens, at + 1, &segments, found);
            }
            _ => break,
        }
    }
    found.push(Named { line, segments });
    at.max(start + 1)
}

fn after_step(tokens: &[(usize, Token)], at: usize, start: usize, prefix: &[String]) -> bool {
    if at == start { !prefix.is_empty() } else { tokens[at - 1].1 == Token::Step }
}

/// Reads `a, b::c}` after its opening brace.
fn group(
    tokens: &[(usize, Token)],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<Named>,
) -> usize {
    while let Some((_, token)) = tokens.get(at) {
        match token {
            Token::Other('}') => return at + 1,
            Token::Word(word) if word == "as" => at += 2,
            Token::Word(_) | Token::Step | Token::Other('*' | '{') => {
                at = path(tokens, at, prefix, found);
            }
            Token::Other(_) => at += 1,
        }
    }
    at
}

fn tokens(text: &str) -> Vec<(usize, Token)> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(&c) = chars.get(at) {
        let end = match c {
            '/' if chars.get(at + 1) == Some(&'/') => until(&chars, at, |c| c == '\n'),
            '/' if chars.get(at + 1) == Some(&'*') => after_comment(&chars, at),
            '"' => after_string(&chars, at),
            'r' | 'b' | 'c' if raw_string(&chars, at).is_some() => {
                raw_string(&chars, at).unwrap_or(at + 1)
            }
            '\'' => after_quote(&chars, at),
            c if c.is_alphabetic() || c == '_' => {
                let end = until(&chars, at, |c| !c.is_alphanumeric() && c != '_');
                tokens.push((line, Token::Word(chars[at..end].iter().collect())));
                end
            }
            c if c.is_ascii_digit() => until(&chars, at, |c| !c.is_alphanumeric() && c != '_'),
            ':' if chars.get(at + 1) == Some(&':') => {
                tokens.push((line, Token::Step));
                at + 2
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((line, Token::Other(c)));
                }
                at + 1
            }
        };
        line += chars[at..end].iter().filter(|c| **c == '\n').count();
        at = end;
    }
    tokens
}

fn until(chars: &[char], from: usize, stop: impl Fn(char) -> bool) -> usize {
    chars.iter().skip(from).position(|c| stop(*c)).map_or(chars.len(), |length| from + length)
}

fn after_comment(chars: &[char], from: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = from;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn after_string(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// The end of `r"…"`, `r#"…"#`, `br"…"`, `b"…"` or `c"…"`, if that is what begins here.
fn raw_string(chars: &[char], from: usize) -> Option<usize> {
    let mut at = from;
    while matches!(chars.get(at), Some('b' | 'c')) && at < from + 1 {
        at += 1;
    }
    let raw = chars.get(at) == Some(&'r');
    if !raw {
        return (at > from && chars.get(at) == Some(&'"')).then(|| after_string(chars, at));
    }
    at += 1;
    let open = until(chars, at, |c| c != '#');
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let hashes = open - at;
    let mut at = open + 1;
    while at < chars.len() {
        if chars[at] == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(chars.len())
}

/// The end of a character literal, or of the quote of a lifetime.
fn after_quote(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => (until(chars, from + 3, |c| c == '\'') + 1).min(chars.len()),
        (Some(_), Some('\'')) => from + 3,
        _ => from + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        named(text).iter().map(|n| format!("{} {}", n.line, n.segments.join("::"))).collect()
    }

    #[test]
    fn groups_are_multiplied_out() {
        assert_eq!(
            shown("use std::{fs, time::{Duration, Instant as Now}};\nuse a::*;"),
            [
                "1 use",
                "1 std::fs",
                "1 std::time::Duration",
                "1 std::time::Instant",
                "2 use",
                "2 a::*"
            ]
        );
    }

    #[test]
    fn a_group_over_several_lines_keeps_its_lines() {
        assert_eq!(shown("use std::{\n  fs,\n  net,\n};")[1..], ["2 std::fs", "3 std::net"]);
    }

    #[test]
    fn macros_and_expressions_are_named() {
        assert_eq!(
            shown("println!(\"{}\", std::env::var(x)) { y * z }"),
            ["1 println!", "1 std::env::var", "1 x", "1 y", "1 z"]
        );
    }

    #[test]
    fn comments_and_literals_are_not_read() {
        let text = "// std::fs\n/* std::net /* */ std::env */ \"std::fs\" r#\"\"std::fs\"# b'x' '\\'' \
                    'a' b\"std::fs\" fn";
        assert_eq!(shown(text), ["2 b", "2 fn"]);
        assert_eq!(shown("fn f<'a>(x: &'a str)"), ["1 fn", "1 f", "1 a", "1 x", "1 a", "1 str"]);
    }

    #[test]
    fn any_text_comes_to_an_end() {
        for text in ["", "\"", "/*", "'", "'\\", "r#\"", "a::", "::", "{", "a::{", "a::{b", "\\"] {
            named(text);
        }
    }
}
