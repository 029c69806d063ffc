//! Names from outside, made safe for a terminal.
//!
//! Refuses to lose anything: every byte that is not shown as itself is shown as an escape, and no
//! escape can be mistaken for a name's own characters.

use std::fmt::{self, Write as _};

/// Bytes as a terminal may see them.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    c if is_invisible(c) && u32::from(c) < 0x100 => {
                        write!(f, "\\x{:02x}", u32::from(c))?;
                    }
                    c if is_invisible(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Controls, and the characters that turn text round or hide in it.
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(bytes: &[u8]) -> String {
        Escaped(bytes).to_string()
    }

    #[test]
    fn printable_text_stays_and_the_rest_becomes_escapes() {
        assert_eq!(escaped("/srv/aim/änderung.conf".as_bytes()), "/srv/aim/änderung.conf");
        assert_eq!(escaped(b"a\nb\x1b[31mc"), "a\\nb\\x1b[31mc");
        assert_eq!(escaped(b"a\xffb"), "a\\xffb");
        assert_eq!(escaped("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn an_escape_cannot_be_forged() {
        assert_ne!(escaped(b"a\\nb"), escaped(b"a\nb"));
    }

    proptest! {
        #[test]
        fn no_control_reaches_the_terminal_and_no_two_names_look_alike(
            a in proptest::collection::vec(any::<u8>(), 0..40),
            b in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            prop_assert!(!escaped(&a).chars().any(char::is_control));
            prop_assert_eq!(a == b, escaped(&a) == escaped(&b));
        }
    }
}
