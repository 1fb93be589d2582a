//! Container images made from files of this machine: OCI archives, as `ctr images import` reads them.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// An image that is being built.
#[derive(Debug, Clone, Default)]
pub struct Image {
    files: Vec<(PathBuf, PathBuf)>,
    texts: Vec<(PathBuf, String)>,
    dirs: Vec<(PathBuf, u32)>,
    links: Vec<(PathBuf, PathBuf)>,
    entrypoint: Vec<String>,
    user: String,
}

impl Image {
    /// Adds a file of this machine under a path of the image.
    #[must_use]
    pub fn file(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.files.push((from.into(), to.into()));
        self
    }

    /// Adds a file with this content.
    #[must_use]
    pub fn text(mut self, path: impl Into<PathBuf>, content: impl Into<String>) -> Self {
        self.texts.push((path.into(), content.into()));
        self
    }

    /// Adds an empty directory with a mode.
    #[must_use]
    pub fn dir(mut self, path: impl Into<PathBuf>, mode: u32) -> Self {
        self.dirs.push((path.into(), mode));
        self
    }

    /// Sets the program that containers run. Without one, they sleep.
    #[must_use]
    pub fn entrypoint(mut self, command: &[&str]) -> Self {
        self.entrypoint = command.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// Sets the user of containers, as in `1337:1337`. Without one, it is root.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Adds symbolic links to a target.
    #[must_use]
    pub fn links(mut self, names: &[&str], target: &str) -> Self {
        self.links.extend(names.iter().map(|name| (PathBuf::from(name), PathBuf::from(target))));
        self
    }

    /// Adds a dynamically linked program; its loader and libraries get the paths they have on this machine.
    ///
    /// # Errors
    /// When the program or one of its libraries cannot be found.
    pub fn program(mut self, from: &Path, to: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let output = Command::new("ldd").arg(from).output().context("ldd")?;
        ensure!(output.status.success(), "ldd {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // "\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)" or "\t/lib64/ld-linux-x86-64.so.2 (0x...)"
            let path = line.split("=>").last().unwrap_or_default().split_whitespace().next().unwrap_or_default();
            if path.starts_with('/') {
                self.files.push((path.into(), path.into()));
            }
        }
        self.files.push((from.to_owned(), to.into()));
        Ok(self)
    }

    /// Writes the image under the name `reference` as an archive at `path`.
    ///
    /// # Errors
    /// When a file cannot be read, or the archive cannot be written.
    pub fn write(&self, reference: &str, path: &Path) -> anyhow::Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let sleep = ["/bin/busybox", "sleep", "1000000"].map(str::to_owned);
        let entrypoint = if self.entrypoint.is_empty() { &sleep[..] } else { &self.entrypoint };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Env": ["PATH=/usr/local/bin:/bin"], "WorkingDir": "/", "Entrypoint": entrypoint, "User": self.user },
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len() }],
        })
        .to_string()
        .into_bytes();
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len(),
                "platform": { "architecture": architecture, "os": "linux" },
                "annotations": { "io.containerd.image.name": reference },
            }],
        })
        .to_string()
        .into_bytes();

        let mut tar = tar::Builder::new(File::create(path).with_context(|| path.display().to_string())?);
        append(&mut tar, Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, Path::new("index.json"), &index)?;
        for blob in [&config, &manifest, &layer] {
            append(&mut tar, &Path::new("blobs").join(digest(blob).replace(':', "/")), blob)?;
        }
        tar.finish()?;
        Ok(())
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let always = [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)];
        let dirs = self.dirs.iter().map(|(dir, mode)| (dir.strip_prefix("/").unwrap_or(dir), *mode));
        for (dir, mode) in always.map(|(dir, mode)| (Path::new(dir), mode)).into_iter().chain(dirs) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(mode);
            header.set_size(0);
            tar.append_data(&mut header, dir, std::io::empty())?;
        }
        for (path, content) in &self.texts {
            append(&mut tar, path.strip_prefix("/").unwrap_or(path), content.as_bytes())?;
        }
        let passwd = b"root:x:0:0:root:/:/bin/sh\nistio-proxy:x:1337:1337::/home/istio-proxy:/bin/sh\n";
        append(&mut tar, Path::new("etc/passwd"), passwd)?;
        for (from, to) in &self.files {
            let mut content = Vec::new();
            File::open(from)
                .and_then(|mut file| file.read_to_end(&mut content))
                .with_context(|| from.display().to_string())?;
            append(&mut tar, to.strip_prefix("/").unwrap_or(to), &content)?;
        }
        for (name, target) in &self.links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            tar.append_link(&mut header, name.strip_prefix("/").unwrap_or(name), target)?;
        }
        Ok(tar.into_inner()?)
    }
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len())?);
    header.set_mode(0o755);
    tar.append_data(&mut header, path, content)?;
    Ok(())
}

fn digest(content: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(content).iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_sha256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
