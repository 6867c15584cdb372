//! Bytes that both sides can make: what is downloaded is known before, and what is uploaded is hashed on both sides.

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

/// Hex digits of the SHA-256 of bytes that arrive in pieces.
#[derive(Default)]
pub struct Hash(Sha256);

impl Hash {
    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digits.
    pub fn finish(self) -> String {
        self.0
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Hex digits of the SHA-256 of `data`.
pub fn hash(data: &[u8]) -> String {
    let mut hash = Hash::default();
    hash.update(data);
    hash.finish()
}

/// `length` bytes that do not compress and in which a lost, doubled or moved piece shows (xorshift, Marsaglia 2003).
pub fn pattern(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = BytesMut::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.freeze()
}
