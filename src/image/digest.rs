//! Digests in few bytes: 40 in place of 96, and without an allocation. Pure.

/// The algorithm of nearly all digests, with the colon.
const SHA256: &str = "sha256:";

/// A digest in few bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Digest {
    /// The bytes of a digest with this algorithm.
    Sha256([u8; 32]),
    /// Any other text.
    Other(Box<str>),
}

impl Digest {
    pub(crate) fn of(text: &str) -> Self {
        match text.strip_prefix(SHA256).and_then(bytes_of) {
            Some(bytes) => Self::Sha256(bytes),
            None => Self::Other(text.into()),
        }
    }

    /// Returns a text that is not a sha256 digest.
    pub(crate) fn other(&self) -> Option<&str> {
        match self {
            Self::Sha256(_) => None,
            Self::Other(text) => Some(text),
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::Sha256(bytes) => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let mut text = String::with_capacity(SHA256.len() + 2 * bytes.len());
                text.push_str(SHA256);
                for byte in bytes {
                    text.push(char::from(HEX[usize::from(byte >> 4)]));
                    text.push(char::from(HEX[usize::from(byte & 15)]));
                }
                text
            }
            Self::Other(text) => text.to_string(),
        }
    }

    /// Returns the bytes of a text that is kept as it is, or 32 bytes after a zero, which no digest begins with.
    pub(super) fn pack(text: &str) -> Vec<u8> {
        match Self::of(text) {
            Self::Sha256(bytes) => [&[0], &bytes[..]].concat(),
            Self::Other(text) => text.as_bytes().to_vec(),
        }
    }

    pub(super) fn unpack(packed: &[u8]) -> Option<String> {
        match packed.split_first() {
            Some((0, bytes)) => Some(Self::Sha256(bytes.try_into().ok()?).text()),
            _ => String::from_utf8(packed.to_vec()).ok(),
        }
    }
}

/// Reads 64 lower-case hex digits.
fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_keep_their_text() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, is_short) in [
            (format!("sha256:{hex}"), true),
            (format!("sha256:{}", hex.to_uppercase()), false),
            (format!("sha256:{}", &hex[1..]), false),
            (format!("sha512:{hex}{hex}"), false),
            ("sha256:".to_owned(), false),
            (String::new(), false),
        ] {
            let digest = Digest::of(&text);
            assert_eq!(matches!(digest, Digest::Sha256(_)), is_short, "{text}");
            assert_eq!(digest.text(), text);
            assert_eq!(Digest::unpack(&Digest::pack(&text)), Some(text));
        }
    }
}
