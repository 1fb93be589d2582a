//! `kubectl`, as a person would run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The tool with a kubeconfig and a folder for what it keeps.
#[derive(Debug)]
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    /// `None` where it is not installed; outside of CI that is no failure.
    pub(crate) fn or_skip(kubeconfig: &Path) -> Option<Self> {
        let found = Command::new("kubectl").args(["version", "--client"]).stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("CI").is_none(), "kubectl is missing");
            eprintln!("SKIPPED: kubectl is missing");
            return None;
        }
        Some(Self { kubeconfig: kubeconfig.to_owned(), home: tempfile::tempdir().unwrap() })
    }

    /// Runs it with an input.
    pub(crate) fn run(&self, args: &[&str], input: &str) -> Output {
        let file = self.home.path().join("input");
        std::fs::write(&file, input).unwrap();
        Command::new("kubectl")
            .args(args)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .env("HOME", self.home.path())
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap()
    }

    /// What it prints; it must end well.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(output.status.success(), "kubectl {args:?}: {err}");
        out
    }

    /// What it complains about; it must fail.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        assert!(!output.status.success(), "kubectl {args:?} went well");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
