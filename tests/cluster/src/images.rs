//! Images of the cluster that are not Weir's, as archives.

use std::fs;
use std::path::{Path, PathBuf};

use weir_tests::image::Image;

use crate::plan::Tools;

/// The image of sandboxes.
pub const PAUSE: &str = "weir.test/pause:1";
/// The image of CoreDNS.
pub const COREDNS: &str = "weir.test/coredns:1";
/// The server and client of the tests.
pub const APP: &str = "weir.test/app:1";
/// Where Istio's charts find the images `pilot` and `proxyv2`.
pub const ISTIO_HUB: &str = "weir.test/istio";
/// Their tag.
pub const ISTIO_TAG: &str = "dev";

const COMMANDS: [&str; 12] = [
    "bin/sh",
    "bin/cat",
    "bin/sleep",
    "bin/wget",
    "bin/nc",
    "bin/ls",
    "bin/id",
    "bin/ps",
    "bin/ip",
    "bin/netstat",
    "bin/nslookup",
    "bin/env",
];

/// Writes the archive of istio-cni into a directory, and returns it.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write_istio_cni(tools: &Tools, to: &Path) -> anyhow::Result<PathBuf> {
    let path = to.join("install-cni.tar");
    Image::default()
        // For the ambient mode.
        .program(Path::new("/usr/sbin/nft"), "/usr/local/bin/nft")?
        .file(tools.path("istio/install-cni"), "/usr/local/bin/install-cni")
        .file(tools.path("istio/istio-cni"), "/opt/cni/bin/istio-cni")
        .entrypoint(&["/usr/local/bin/install-cni"])
        .write(&format!("{ISTIO_HUB}/install-cni:{ISTIO_TAG}"), &path)?;
    Ok(path)
}

/// Writes the archives into a directory. `app` is the program of [`APP`].
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(tools: &Tools, app: &Path, to: &Path) -> anyhow::Result<Vec<PathBuf>> {
    const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
    fs::create_dir_all(to)?;
    let shell = || {
        let resolver = Image::default().text("/etc/nsswitch.conf", "hosts: files dns\n");
        resolver.file("/bin/busybox", "/bin/busybox").links(&COMMANDS, "/bin/busybox")
    };
    let istio = |program: &str, image: Image| {
        let path = format!("/usr/local/bin/{program}");
        let home = image.dir("/home", 0o755).dir("/home/istio-proxy", 0o777).dir("/var", 0o755).dir("/var/lib", 0o755);
        home.dir("/var/lib/istio", 0o777)
            .file(CERTIFICATES, CERTIFICATES)
            .file(tools.path("istio").join(program), &path)
            .user("1337:1337")
            .entrypoint(&[&path])
    };
    let proxy = istio("pilot-agent", shell())
        .dir("/var/lib/istio/data", 0o777)
        .file(tools.path("istio/envoy_bootstrap.json"), "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json")
        .program(&tools.path("envoy"), "/usr/local/bin/envoy")?;
    let images = [
        ("pause", PAUSE.to_owned(), Image::default().file(app, "/bin/app").entrypoint(&["/bin/app", "pause"])),
        (
            "coredns",
            COREDNS.to_owned(),
            Image::default().file(tools.path("coredns/coredns"), "/coredns").entrypoint(&["/coredns"]),
        ),
        ("app", APP.to_owned(), shell().file(app, "/bin/app").user("1000:1000").entrypoint(&["/bin/app"])),
        ("pilot", format!("{ISTIO_HUB}/pilot:{ISTIO_TAG}"), istio("pilot-discovery", Image::default())),
        ("proxyv2", format!("{ISTIO_HUB}/proxyv2:{ISTIO_TAG}"), proxy),
    ];
    let write = |(name, reference, image): (&str, String, Image)| {
        let path = to.join(format!("{name}.tar"));
        image.write(&reference, &path)?;
        Ok(path)
    };
    images.into_iter().map(write).collect()
}
