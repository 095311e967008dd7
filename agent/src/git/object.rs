//! Object names. Pure.

use std::fmt;

/// The hash function that names a repository's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectFormat {
    /// 20 bytes, git's default.
    Sha1,
    /// 32 bytes.
    Sha256,
}

impl ObjectFormat {
    /// The name git uses for it in `object-format=` and `--object-format=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// The format git calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha1" => Some(Self::Sha1),
            "sha256" => Some(Self::Sha256),
            _ => None,
        }
    }

    /// How many bytes its names have.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
}

/// The name of an object: its hash, 20 or 32 bytes long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Oid {
    // A shorter hash leaves the rest zero, so that derived comparison is right within one format.
    hash: [u8; 32],
    len: u8,
}

impl Oid {
    /// Parses 40 or 64 lower-case hexadecimal digits; `None` for anything else.
    pub fn from_hex(hex: &[u8]) -> Option<Self> {
        let len = match hex.len() {
            40 => 20_u8,
            64 => 32,
            _ => return None,
        };
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Some(Self { hash, len })
    }

    /// Takes 20 or 32 bytes, as trees have them; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let len = u8::try_from(bytes.len()).ok().filter(|len| matches!(len, 20 | 32))?;
        let mut hash = [0; 32];
        hash.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { hash, len })
    }

    /// Its 20 or 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.hash.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The hash function it was made with.
    pub fn format(&self) -> ObjectFormat {
        if usize::from(self.len) == ObjectFormat::Sha1.bytes() {
            ObjectFormat::Sha1
        } else {
            ObjectFormat::Sha256
        }
    }

    /// Whether it is all zeros: git's word for "no object".
    pub fn is_null(&self) -> bool {
        self.hash == [0; 32]
    }

    /// Its hexadecimal form, in lower case.
    pub fn to_hex(&self) -> String {
        self.to_string()
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0_u8; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.hash) {
            if let [high, low] = pair {
                *high = *DIGITS.get(usize::from(byte >> 4)).unwrap_or(&b'0');
                *low = *DIGITS.get(usize::from(byte & 15)).unwrap_or(&b'0');
            }
        }
        let text = hex.get(..usize::from(self.len) * 2).unwrap_or_default();
        f.write_str(std::str::from_utf8(text).unwrap_or_default())
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_survive_a_round_trip() {
        for hex in ["99f1ac04c1d2b3a4958677685940312233445566".to_owned(), "a0".repeat(32)] {
            let oid = Oid::from_hex(hex.as_bytes()).unwrap();
            assert_eq!(oid.to_string(), hex);
            assert_eq!(Oid::from_bytes(&oid.hash[..usize::from(oid.len)]), Some(oid));
        }
        assert_eq!(Oid::from_bytes(&[1; 21]), None);
        assert_eq!(Oid::from_hex(&[b'0'; 40]).unwrap().format(), ObjectFormat::Sha1);
        assert_eq!(Oid::from_hex(&[b'0'; 64]).unwrap().format(), ObjectFormat::Sha256);
    }

    #[test]
    fn anything_else_is_no_object_name() {
        for bad in ["", "99f1", &"g".repeat(40), &"A".repeat(40), &"0".repeat(41)] {
            assert_eq!(Oid::from_hex(bad.as_bytes()), None, "{bad}");
        }
    }
}
