//! What the container runtime can do, told from its own binary: neither a version number nor the API server is asked.
//!
//! A Go binary keeps the names of its functions, also when it is stripped, and the linker drops those that nothing calls. So the function that
//! reads drop-ins is in the binary if and only if the runtime reads them; and a text constant that it compares with is there as well. Checked with
//! containerd 1.6.20, 1.7.24 (no drop-ins) and 2.1.9 (drop-ins).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use weir_protocol::entry::CAPABILITY;

use super::disk::{Disk, Stamp};

/// The function of libcni 1.3 that reads the plugins in a network's folder.
const READS_DROP_INS: &str = "libcni.NetworkPluginConfsFromFiles";
/// Read at a time.
const CHUNK: usize = 1 << 20;
/// Runtimes have some 50 MB, k3s' binary with everything in it some 250.
const MAX_BINARY: u64 = 1 << 30;

/// What a runtime's binary shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Reads `<conf>/<network>/*.conf`.
    pub drop_ins: bool,
    /// Hands the annotations of pods to plugins.
    pub annotations: bool,
}

/// Looks at a binary once for as long as it stays the same.
#[derive(Debug, Default)]
pub struct Scanner {
    seen: Option<(PathBuf, Stamp, Abilities)>,
}

impl Scanner {
    /// What the binary shows.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn look(&mut self, disk: &dyn Disk, binary: &Path) -> io::Result<Abilities> {
        let stamp = disk.stamp(binary)?;
        if let Some((path, seen, abilities)) = &self.seen
            && (path.as_path(), *seen) == (binary, stamp)
        {
            return Ok(*abilities);
        }
        let abilities = scan(File::open(binary)?)?;
        self.seen = Some((binary.to_owned(), stamp, abilities));
        Ok(abilities)
    }
}

fn scan(binary: impl io::Read) -> io::Result<Abilities> {
    let mut binary = binary.take(MAX_BINARY);
    let wanted = [READS_DROP_INS.as_bytes(), CAPABILITY.as_bytes()];
    let overlap = wanted.iter().map(|text| text.len()).max().unwrap_or(0);
    let mut found = [false; 2];
    let mut window = Vec::with_capacity(CHUNK + overlap);
    loop {
        let old = window.len();
        let read = binary.by_ref().take(CHUNK as u64).read_to_end(&mut window)?;
        for (found, text) in found.iter_mut().zip(wanted) {
            *found = *found || contains(&window, text);
        }
        if read == 0 || found == [true; 2] {
            return Ok(Abilities { drop_ins: found[0], annotations: found[1] });
        }
        debug_assert!(window.len() == old + read, "read_to_end appends");
        // A text may lie across two reads.
        window.drain(..window.len().saturating_sub(overlap));
    }
}

fn contains(window: &[u8], text: &[u8]) -> bool {
    let Some(first) = text.first() else { return true };
    let mut rest = window;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(text) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_texts_wherever_they_lie() {
        for before in [0, 10, CHUNK - 20, CHUNK - 1, CHUNK, 2 * CHUNK + 5] {
            let mut binary = vec![b'l'; before];
            binary.extend_from_slice(b"github.com/containernetworking/cni/libcni.NetworkPluginConfsFromFiles\0");
            assert_eq!(scan(&binary[..]).unwrap(), Abilities { drop_ins: true, annotations: false }, "{before}");
            binary.extend_from_slice(CAPABILITY.as_bytes());
            assert_eq!(scan(&binary[..]).unwrap(), Abilities { drop_ins: true, annotations: true }, "{before}");
        }
        assert_eq!(scan(&b""[..]).unwrap(), Abilities { drop_ins: false, annotations: false });
    }
}
