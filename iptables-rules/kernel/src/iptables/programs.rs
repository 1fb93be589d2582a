//! Chooses the programs of iptables: the legacy or the nft variant.
//!
//! The choice depends only on which programs are installed and which tables the namespace has. Adding a rule to see what works would create
//! tables, and so change the choice of the next caller.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::process::{self, IptablesError, TIMEOUT};
use iptables_rules::restore::RestoreFamily;

/// A variant of iptables. Both use the same text, but different parts of the kernel, and do not see each other's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IptablesVariant {
    /// x_tables.
    Legacy,
    /// nf_tables.
    Nft,
}

impl IptablesVariant {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 2] = ["legacy", "nft"];

    /// Parses the name of a variant.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Legacy, Self::Nft].into_iter().find(|variant| Self::NAMES[*variant as usize] == name)
    }
}

/// Infixes of program names, and their variants; the empty infix is the default of the host.
const INFIXES: [(&str, Option<IptablesVariant>); 3] =
    [("-legacy", Some(IptablesVariant::Legacy)), ("-nft", Some(IptablesVariant::Nft)), ("", None)];

/// The programs of one variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IptablesPrograms {
    infix: &'static str,
}

impl IptablesPrograms {
    /// Returns the programs of the wanted variant, or of the one that fits the namespace of the calling thread.
    pub(super) fn find(variant: Option<IptablesVariant>) -> Result<Self, IptablesError> {
        let machine = Installed {
            exists: &|name| path_of(name).is_some(),
            default: &default_variant,
            legacy_in_use: crate::legacy::has_tables(RestoreFamily::V4),
            nf_tables: crate::nft::is_available(),
        };
        choose_infix(variant, &machine).map(|infix| Self { infix })
    }

    /// Returns the variant of the programs.
    pub(super) fn variant(&self) -> IptablesVariant {
        let of_name = INFIXES.iter().find(|(infix, _)| *infix == self.infix).and_then(|(_, variant)| *variant);
        of_name.or_else(default_variant).unwrap_or(IptablesVariant::Legacy)
    }

    /// Runs the save program.
    pub(super) fn save(&self, family: RestoreFamily) -> Result<String, IptablesError> {
        self.run(family, "save", &[], String::new())
    }

    /// Runs the restore program, which adds to the rules in the kernel.
    pub(super) fn restore(&self, family: RestoreFamily, text: String) -> Result<(), IptablesError> {
        self.run(family, "restore", &["--noflush", LOCK_WAIT], text).map(drop)
    }

    fn run(
        &self,
        family: RestoreFamily,
        verb: &str,
        arguments: &[&str],
        input: String,
    ) -> Result<String, IptablesError> {
        let name = format!("{}{}-{verb}", family.tool(), self.infix);
        let path = path_of(&name);
        process::run(&name, path.as_deref().unwrap_or(Path::new(&name)), arguments, input, TIMEOUT)
    }
}

/// Time that the legacy variant waits for its lock, in seconds.
const LOCK_WAIT: &str = "--wait=5";

/// Facts that the choice of the variant depends on.
struct Installed<'a> {
    /// Whether a program is installed.
    exists: &'a dyn Fn(&str) -> bool,
    /// The variant of the programs without infix.
    default: &'a dyn Fn() -> Option<IptablesVariant>,
    /// Whether the namespace has legacy tables.
    legacy_in_use: bool,
    /// Whether the kernel has nf_tables.
    nf_tables: bool,
}

fn choose_infix(wanted: Option<IptablesVariant>, machine: &Installed<'_>) -> Result<&'static str, IptablesError> {
    let installed =
        |infix: &str| ["save", "restore"].iter().all(|verb| (machine.exists)(&format!("iptables{infix}-{verb}")));
    // Prefers the variant that is in use: rules of the other one would exist next to its rules, invisible to it.
    let order: &[IptablesVariant] = match (wanted, machine.legacy_in_use, machine.nf_tables) {
        (Some(IptablesVariant::Legacy), ..) | (None, _, false) => &[IptablesVariant::Legacy],
        (Some(IptablesVariant::Nft), ..) => &[IptablesVariant::Nft],
        (None, true, true) => &[IptablesVariant::Legacy, IptablesVariant::Nft],
        (None, false, true) => &[IptablesVariant::Nft, IptablesVariant::Legacy],
    };
    for &variant in order {
        for (infix, of) in INFIXES {
            let matches = match of {
                Some(of) => of == variant,
                None => installed(infix) && (machine.default)().is_none_or(|default| default == variant),
            };
            if matches && installed(infix) {
                return Ok(infix);
            }
        }
    }
    let names: Vec<String> = INFIXES
        .iter()
        .filter(|(_, of)| of.is_none_or(|of| order.contains(&of)))
        .map(|(infix, _)| format!("iptables{infix}-restore"))
        .collect();
    Err(IptablesError::NoPrograms { wanted: names.join(", ") })
}

/// Returns the variant of `iptables-restore`, which prints it since 1.8; older versions are legacy.
fn default_variant() -> Option<IptablesVariant> {
    let name = "iptables-restore";
    let version = process::run(name, &path_of(name)?, &["--version"], String::new(), TIMEOUT).ok()?;
    Some(if version.contains("nf_tables") { IptablesVariant::Nft } else { IptablesVariant::Legacy })
}

fn path_of(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(executable)
}

#[cfg(test)]
mod tests;
