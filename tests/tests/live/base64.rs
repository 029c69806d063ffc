//! RFC 4648, for what JSON text cannot hold. Written here because it is all that the tests need.

/// Encodes, with padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (word >> (18 - 6 * place)) & 63;
            let used = place <= chunk.len();
            text.push(if used { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}
