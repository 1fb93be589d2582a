//! Detects capabilities of the container runtime from its binary, independent of version numbers.
//!
//! A Go binary keeps the names of its functions even when stripped, and the linker drops functions that nothing calls. So the binary contains
//! the function that reads drop-ins if and only if the runtime reads them, and it contains the name of the capability that it supports.
//! Tested with containerd 1.6.20, 1.7.24 (no drop-ins) and 2.1.9 (drop-ins).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use weir_protocol::entry::CAPABILITY;

use super::file_system::{FileStamp, FileSystem};

/// Function of libcni 1.3 that reads the drop-ins of a network.
const READS_DROP_INS: &str = "libcni.NetworkPluginConfsFromFiles";
/// Bytes read at a time.
const CHUNK: usize = 1 << 20;
/// Largest binary that is scanned; containerd has about 50 MB, the binary of k3s 250 MB.
const MAX_BINARY: u64 = 1 << 30;

/// Capabilities of a container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeCapabilities {
    /// Reads `<conf>/<network>/*.conf`.
    pub drop_ins: bool,
    /// Passes the annotations of pods to plugins.
    pub pod_annotations: bool,
}

/// Scans a binary once, until it changes.
#[derive(Debug, Default)]
pub struct RuntimeScanner {
    last: Option<(PathBuf, FileStamp, RuntimeCapabilities)>,
}

impl RuntimeScanner {
    /// Returns the capabilities of a runtime's binary.
    ///
    /// # Errors
    /// The binary does not exist or cannot be read.
    pub fn inspect(&mut self, file_system: &dyn FileSystem, binary: &Path) -> io::Result<RuntimeCapabilities> {
        let stamp = file_system.stamp(binary)?;
        if let Some((path, seen, capabilities)) = &self.last
            && (path.as_path(), *seen) == (binary, stamp)
        {
            return Ok(*capabilities);
        }
        let capabilities = scan(File::open(binary)?)?;
        self.last = Some((binary.to_owned(), stamp, capabilities));
        Ok(capabilities)
    }
}

fn scan(binary: impl io::Read) -> io::Result<RuntimeCapabilities> {
    let mut binary = binary.take(MAX_BINARY);
    let texts = [READS_DROP_INS.as_bytes(), CAPABILITY.as_bytes()];
    let overlap = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let mut found = [false; 2];
    let mut window = Vec::with_capacity(CHUNK + overlap);
    loop {
        let old = window.len();
        let read = binary.by_ref().take(CHUNK as u64).read_to_end(&mut window)?;
        for (found, text) in found.iter_mut().zip(texts) {
            *found = *found || contains(&window, text);
        }
        if read == 0 || found == [true; 2] {
            return Ok(RuntimeCapabilities { drop_ins: found[0], pod_annotations: found[1] });
        }
        debug_assert!(window.len() == old + read, "read_to_end appends");
        // A text may be split between two reads.
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
    fn texts_are_found_at_any_offset() {
        for before in [0, 10, CHUNK - 20, CHUNK - 1, CHUNK, 2 * CHUNK + 5] {
            let mut binary = vec![b'l'; before];
            binary.extend_from_slice(b"github.com/containernetworking/cni/libcni.NetworkPluginConfsFromFiles\0");
            assert_eq!(
                scan(&binary[..]).unwrap(),
                RuntimeCapabilities { drop_ins: true, pod_annotations: false },
                "{before}"
            );
            binary.extend_from_slice(CAPABILITY.as_bytes());
            assert_eq!(
                scan(&binary[..]).unwrap(),
                RuntimeCapabilities { drop_ins: true, pod_annotations: true },
                "{before}"
            );
        }
        assert_eq!(scan(&b""[..]).unwrap(), RuntimeCapabilities { drop_ins: false, pod_annotations: false });
    }
}
