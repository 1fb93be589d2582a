use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::super::file_system::OsFileSystem;
use super::*;

fn names(dir: &Path) -> Vec<String> {
    OsFileSystem.list(dir).unwrap().into_iter().map(|name| name.name).collect()
}

#[test]
fn binary_is_installed_updated_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("bridge"), "other").unwrap();
    let mut versions = Vec::new();
    for content in ["cni111", "cni222"] {
        let source = dir.path().join(content);
        fs::write(&source, content).unwrap();
        let mut binary = PluginBinary::default();
        binary.load(&OsFileSystem, &source).unwrap();
        assert!(!binary.is_installed(&OsFileSystem, &bin));
        binary.install(&OsFileSystem, &bin, "x").unwrap();
        assert!(binary.is_installed(&OsFileSystem, &bin));
        assert_eq!(fs::read_to_string(bin.join(PLUGIN_TYPE)).unwrap(), content);
        let now = names(&bin);
        assert_eq!(now.len(), 3, "{now:?}");
        versions.push(now[2].clone());
        // Installing it again changes nothing.
        let mut again = PluginBinary::default();
        again.load(&OsFileSystem, &source).unwrap();
        assert!(again.is_installed(&OsFileSystem, &bin));
        again.install(&OsFileSystem, &bin, "y").unwrap();
        assert_eq!(names(&bin), now);
    }
    assert_ne!(versions[0], versions[1]);
    for there in [true, false] {
        assert_eq!(is_present(&OsFileSystem, &bin), there);
        uninstall(&OsFileSystem, &bin).unwrap();
    }
    assert_eq!(names(&bin), ["bridge"]);
}

#[test]
fn a_changed_binary_is_installed_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, "plugin").unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let mut binary = PluginBinary::default();
    binary.load(&OsFileSystem, &source).unwrap();
    let spoil: [&dyn Fn(&Path); 4] = [
        &|path| fs::remove_file(path).unwrap(),
        &|path| fs::write(path, "plug").unwrap(),
        &|path| fs::write(path, "").unwrap(),
        &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
    ];
    for spoil in spoil {
        binary.install(&OsFileSystem, &bin, "x").unwrap();
        spoil(&bin.join(PLUGIN_TYPE));
        assert!(!binary.is_installed(&OsFileSystem, &bin));
        binary.install(&OsFileSystem, &bin, "x").unwrap();
        assert!(binary.is_installed(&OsFileSystem, &bin));
    }
}

#[test]
fn a_missing_source_names_its_flag() {
    let mut binary = PluginBinary::default();
    let error = binary.load(&OsFileSystem, Path::new("/nowhere/weir-cni")).unwrap_err();
    assert!(error.to_string().contains("--plugin-source"), "{error}");
}
