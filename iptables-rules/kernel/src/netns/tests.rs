use super::*;
use crate::testing::in_namespace;

fn current() -> std::path::PathBuf {
    std::fs::read_link("/proc/thread-self/ns/net").unwrap()
}

#[test]
fn run_in_leaves_the_calling_thread() {
    in_namespace(|| {
        let here = current();
        // /proc/self is the namespace of the first thread.
        let path = Path::new("/proc/self/ns/net");
        let there = std::fs::read_link(path).unwrap();
        assert_ne!(here, there);
        assert_eq!(run_in(path, current).unwrap(), there);
        assert_eq!(current(), here);
    });
}

#[test]
fn enter_moves_the_calling_thread() {
    in_namespace(|| {
        let there = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_ne!(current(), there);
        enter(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(current(), there);
        assert!(enter(Path::new("/proc/self/ns/uts")).is_err());
        assert_eq!(current(), there);
    });
}

#[test]
fn error_names_missing_path() {
    let error = run_in(Path::new("/run/netns/no-such"), || ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot open network namespace /run/netns/no-such: No such file or directory (os error 2)"
    );
}

#[test]
fn rejects_plain_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = run_in(file.path(), || ()).unwrap_err().to_string();
    assert!(error.contains("a plain file or directory, not a namespace"), "{error}");
}

#[test]
fn does_not_wait_for_the_writer_of_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = run_in(&path, || ()).unwrap_err().to_string();
    assert!(error.contains("not a namespace"), "{error}");
}

#[test]
fn rejects_other_kinds_of_namespaces() {
    in_namespace(|| {
        let error = run_in(Path::new("/proc/self/ns/uts"), || ()).unwrap_err().to_string();
        assert!(error.ends_with("a namespace, but not a network namespace"), "{error}");
        let error = run_in(Path::new("/proc/self/status"), || ()).unwrap_err().to_string();
        assert!(error.ends_with("a namespace, but not a network namespace"), "{error}");
    });
}

#[test]
fn panic_is_an_error() {
    in_namespace(|| {
        let error = run_in(Path::new("/proc/self/ns/net"), || panic!("out of {}", "tune")).unwrap_err();
        assert_eq!(error.to_string(), "cannot work in network namespace /proc/self/ns/net: panicked: out of tune");
    });
}
