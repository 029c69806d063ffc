//! The escapes in which the kernel writes paths into tables of blank-separated fields.
//!
//! Refuses nothing: what is no escape stands for itself.

/// `\\040` and the like, which the kernel writes for blanks.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_become_bytes_and_all_else_stays() {
        assert_eq!(unescape(br"/a\040b\134\377"), b"/a b\\\xff");
        assert_eq!(unescape(br"\04\9\"), br"\04\9\");
    }
}
