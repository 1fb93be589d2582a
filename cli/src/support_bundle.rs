//! `weir support-bundle`: an archive of what somebody needs who helps from afar, without secrets.
//!
//! ```text
//! cluster ─▶ collect: check, versions, objects of Weir, names of Secrets, logs ─▶ redact ─▶ tar.gz
//! ```

mod collect;
mod redact;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use weir_check::{CheckScope, InstallNamespaces};

use crate::cluster::ConnectArgs;
use crate::console::{Spinner, print_line};
use crate::duration;
use crate::failure::Failure;
use crate::files;
use collect::Collector;

/// Options of `weir support-bundle`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The archive has the result of weir check, the versions of the cluster, of its nodes and of Weir, the objects of Weir, the events and the \
last lines of the logs of its pods. Secrets are never read: of each, only the name, labels and times are asked for. Private keys, tokens, \
and values of fields and variables whose name sounds like a secret are replaced by REDACTED. Look through the archive before you pass \
it on all the same: names of namespaces, pods and images are in it. What cannot be read is listed in errors.txt.

Examples:
  weir support-bundle
  weir support-bundle --context prod --output-file prod.tar.gz

Exit status: 0 done, 2 wrong usage, the cluster is unreachable, or the file cannot be written.")]
pub(crate) struct SupportBundleArgs {
    /// Write to this file; `-` is standard output [default: weir-support-TIME.tar.gz]
    #[arg(short = 'w', long, value_name = "FILE")]
    output_file: Option<PathBuf>,

    /// Namespace of the webhook
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-system")]
    weir_namespace: String,

    /// Namespace of the node agents
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-node")]
    node_namespace: String,

    /// Namespace of Istio's control plane
    #[arg(short = 'i', long = "istioNamespace", value_name = "NAMESPACE", default_value = "istio-system")]
    istio_namespace: String,

    /// Last lines of the log of each container
    #[arg(long, value_name = "LINES", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    log_lines: u32,

    #[command(flatten)]
    connect: ConnectArgs,

    /// Wait at most DURATION for everything
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
}

/// A file of the bundle.
#[derive(Debug, PartialEq, Eq)]
struct BundleFile {
    path: String,
    content: String,
}

/// Runs `weir support-bundle`.
///
/// # Errors
/// The cluster is unreachable, or the file cannot be written.
pub(crate) fn run(args: &SupportBundleArgs) -> Result<ExitCode, Failure> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("weir-support-{}", humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)));
    let name = name.replace(':', "");
    let scope = CheckScope {
        namespaces: InstallNamespaces {
            webhook: args.weir_namespace.clone(),
            agent: args.node_namespace.clone(),
            istio: args.istio_namespace.clone(),
        },
        namespace: None,
        pre_install_revision: None,
        // A bundle changes nothing and calls no webhook.
        dry_run_namespace: None,
        pod_report_timeout: args.timeout / 4,
    };
    let spinner = Spinner::start("reading the cluster");
    let files = args.connect.run_unretried(args.timeout, async |cluster| {
        Ok(Collector::new(&cluster, args.log_lines).collect(&scope).await)
    });
    drop(spinner);
    let files: Vec<BundleFile> =
        files?.into_iter().map(|file| BundleFile { content: redact::text(&file.content), ..file }).collect();
    let archive = archive(&name, &files, seconds).context("cannot pack the bundle")?;
    let target = args.output_file.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    if target.as_os_str() == "-" {
        files::write_bytes(None, &archive)?;
    } else {
        files::write_bytes(Some(&target), &archive)?;
        print_line(&format!("{}: {} files, {} KiB", target.display(), files.len(), archive.len().div_ceil(1024)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn archive(name: &str, files: &[BundleFile], seconds: u64) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(file.content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("{name}/{}", file.path), file.content.as_bytes())?;
    }
    archive.into_inner()?.finish()
}
