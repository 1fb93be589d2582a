//! The file that a command writes manifests to.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::failure::Failure;

/// Options of commands that write manifests.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OutputFileArgs {
    /// Write to this file [default: standard output]
    #[arg(short = 'w', long, value_name = "FILE")]
    output_file: Option<PathBuf>,

    /// Output format, which is yaml. The name of a file is taken for --output-file, as by `istioctl kube-inject`
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
}

impl OutputFileArgs {
    /// Returns the file to write; `None` for standard output.
    ///
    /// # Errors
    /// Another format is asked for, or two files.
    pub(crate) fn target(&self) -> Result<Option<&Path>, Failure> {
        let file = self.output_file.as_deref();
        match (self.output.as_deref(), file) {
            (None | Some("yaml"), file) => Ok(file),
            (Some("json"), _) => Err(Failure::usage("--output json: this command writes yaml only")),
            (Some(name), None) => {
                eprintln!(
                    "weir: note: -o {name} is taken for a file; -o is the output format, --output-file (-w) the file"
                );
                Ok(Some(Path::new(name)))
            }
            (Some(name), Some(file)) => Err(Failure::usage(format!(
                "--output {name}: not a format, and --output-file {} is given",
                file.display()
            ))),
        }
    }
}
