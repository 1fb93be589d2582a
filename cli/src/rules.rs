//! `weir rules`: the capture rules that a pod gets, without a cluster and without touching the kernel.
//!
//! ```text
//! manifest ─▶ pods ─┐ (not injected yet: injected first)
//! annotations ──────┴▶ subject: CaptureConfig ──plan──▶ RuleSet ──print──▶ iptables | nft | json
//! ```

pub(crate) mod json;
pub(crate) mod print;
pub(crate) mod subject;

use std::process::ExitCode;

use clap::{ArgGroup, Args, ValueEnum};
use weir_injector::settings::Settings;

use crate::failure::{Failure, both};
use crate::files::{self, Source};
use crate::manifest::{pods, proxy_configs, stream};
use crate::settings::InjectorArgs;
use print::Planned;
use subject::Subject;

/// Options of `weir rules`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("input").required(true)), after_long_help = "\
A pod that carries `weir.dev/capture` (and is injected) gets the rules that this annotation says; one that was injected by Istio,
those of its annotations and its istio-proxy container; any other is injected first, with the settings given. Which of these it
was is said on standard error. Nothing is printed unless every pod is fine.

Examples:
  weir rules -f deployment.yaml
  kubectl get pod web-0 -o yaml | weir rules -f - --format nft
  weir rules --annotations annotations.yaml --format json

Exit status: 0 done, 1 something in the input was refused, 2 wrong usage or a file cannot be read.")]
pub(crate) struct RulesArgs {
    /// Manifests with pods, or with workloads that have a pod template; `-` for standard input
    #[arg(short, long, value_name = "FILE", group = "input")]
    filename: Option<String>,

    /// Annotations alone: a map of names to values, or an object with `metadata.annotations`; `-` for standard input
    #[arg(long, value_name = "FILE", group = "input")]
    annotations: Option<String>,

    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Iptables)]
    format: Format,

    #[command(flatten)]
    injector: InjectorArgs,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Input of `iptables-restore` and `ip6tables-restore`, one after the other
    Iptables,
    /// Input of `nft -f`: the table that the plugin programs
    Nft,
    /// One JSON document with the rules as data
    Json,
}

/// Carries `weir rules` out.
///
/// # Errors
/// Everything that is wrong with the command line and the input.
pub(crate) fn run(args: &RulesArgs) -> Result<ExitCode, Failure> {
    let Named { name, planned } = load(args.filename.as_deref(), args.annotations.as_deref(), &args.injector)?;
    for subject in &planned {
        eprintln!("weir: {subject}");
    }
    if planned.is_empty() {
        eprintln!("weir: {name}: no pod in it");
    }
    let text = match args.format {
        Format::Iptables => print::iptables(&planned),
        Format::Nft => print::nft(&planned).map_err(|messages| Failure::refused_in(&name, &messages))?,
        Format::Json => json::print(&planned),
    };
    files::write(None, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Planned rules, and what messages call the file they come from.
#[derive(Debug)]
pub(crate) struct Named {
    /// Name of the file.
    pub(crate) name: String,
    /// The pods in it, or the annotations.
    pub(crate) planned: Vec<Planned>,
}

/// Reads a manifest, or annotations where such a file is named, and plans the rules of everything in it.
///
/// # Errors
/// Everything that is wrong with the file and the settings.
pub(crate) fn load(
    manifest: Option<&str>,
    annotations: Option<&str>,
    injector: &InjectorArgs,
) -> Result<Named, Failure> {
    let (source, subjects) = match (manifest, annotations) {
        (_, Some(file)) => {
            if injector.any() {
                return Err(Failure::usage("--annotations takes no injector settings: nothing is injected"));
            }
            let source = Source::from(file);
            let text = source.read()?;
            let subject = subject::from_annotations(&source.name(), &text);
            (source, subject.map(|subject| vec![subject]))
        }
        (file, None) => {
            let source = Source::from(file.unwrap_or("-"));
            let (mut settings, text) = both(injector.load(), source.read().map_err(Failure::from))?;
            let subjects = proxy_configs::in_stream(&text, None).and_then(|resources| {
                settings.proxy_configs = resources;
                of_manifests(&text, &settings)
            });
            (source, subjects)
        }
    };
    let name = source.name();
    let planned = subjects.and_then(print::plan_all).map_err(|messages| Failure::refused_in(&name, &messages))?;
    Ok(Named { name, planned })
}

/// All pods of a stream; or everything that is wrong with it.
fn of_manifests(text: &str, settings: &Settings) -> Result<Vec<Subject>, Vec<String>> {
    let documents = stream::split(text).map_err(|strays| strays.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut subjects = Vec::new();
    let mut findings = Vec::new();
    for document in documents {
        let mut value = match document.parse() {
            Ok(value) => value,
            Err(error) => {
                findings.push(format!("{document}: {error}"));
                continue;
            }
        };
        match pods::find(&mut value) {
            Ok(holders) => {
                for holder in holders {
                    match subject::from_holder(&holder, settings) {
                        Ok(subject) => subjects.push(subject),
                        Err(errors) => {
                            let place = holder.place(&document);
                            findings.extend(errors.iter().map(|error| format!("{place}: {error}")));
                        }
                    }
                }
            }
            Err(errors) => findings.extend(errors.iter().map(|error| format!("{document}: {error}"))),
        }
    }
    if findings.is_empty() { Ok(subjects) } else { Err(findings) }
}
