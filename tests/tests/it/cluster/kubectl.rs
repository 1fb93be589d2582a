//! Runs `kubectl`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `kubectl` with a kubeconfig and a home directory.
#[derive(Debug)]
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    /// Returns `None` where kubectl is not installed; the test is then [skipped](weir_lab::skip_or_fail).
    pub(crate) fn new_or_skip(kubeconfig: &Path) -> Option<Self> {
        let found = Command::new("kubectl").args(["version", "--client"]).stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            weir_lab::skip_or_fail("kubectl is not installed");
            return None;
        }
        Some(Self { kubeconfig: kubeconfig.to_owned(), home: tempfile::tempdir().unwrap() })
    }

    /// Runs it with `input` on standard input.
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

    /// Runs it and returns its standard output; it must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(output.status.success(), "kubectl {args:?}: {err}");
        out
    }

    /// Runs it and returns its standard error; it must fail.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        assert!(!output.status.success(), "kubectl {args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
