//! Which programs of iptables are run: the legacy or the nft variant, found by looking only.
//!
//! Adding and deleting a rule to see what works, as others do, creates tables and changes what the next one to look finds. Here only
//! files are looked at: which programs there are, and whether somebody uses legacy tables in the namespace already.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::process::{self, LIMIT, RestoreError};
use iptables_rules::restore::RestoreFamily;

/// A variant of iptables. Both print the same text; they use different parts of the kernel, and do not see each other's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// x_tables.
    Legacy,
    /// nf_tables.
    Nft,
}

impl Variant {
    /// The names, in the order of the variants.
    pub const NAMES: [&str; 2] = ["legacy", "nft"];

    /// The variant of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Legacy, Self::Nft].into_iter().find(|variant| Self::NAMES[*variant as usize] == name)
    }
}

/// Part of the names that tells the variants apart; the empty one is whichever the machine has made the default.
const INFIXES: [(&str, Option<Variant>); 3] =
    [("-legacy", Some(Variant::Legacy)), ("-nft", Some(Variant::Nft)), ("", None)];

/// The programs of one variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Programs {
    infix: &'static str,
}

impl Programs {
    /// The variant asked for; otherwise the one that serves the namespace of the calling thread.
    ///
    /// # Errors
    /// [`RestoreError::NoPrograms`].
    pub(super) fn find(variant: Option<Variant>) -> Result<Self, RestoreError> {
        let machine = Machine {
            exists: &|name| path_of(name).is_some(),
            default: &default_variant,
            legacy_in_use: crate::backend::legacy_tables(),
            nf_tables: crate::nft::answers(),
        };
        choose(variant, &machine).map(|infix| Self { infix })
    }

    /// The variant that was found.
    pub(super) fn variant(&self) -> Variant {
        let of_name = INFIXES.iter().find(|(infix, _)| *infix == self.infix).and_then(|(_, variant)| *variant);
        of_name.or_else(default_variant).unwrap_or(Variant::Legacy)
    }

    /// What the kernel holds.
    pub(super) fn save(&self, family: RestoreFamily) -> Result<String, RestoreError> {
        self.run(family, "save", &[], String::new())
    }

    /// Sends a text, which adds to what the kernel holds.
    pub(super) fn restore(&self, family: RestoreFamily, text: String) -> Result<(), RestoreError> {
        self.run(family, "restore", &["--noflush", LOCK_WAIT], text).map(drop)
    }

    fn run(
        &self,
        family: RestoreFamily,
        verb: &str,
        arguments: &[&str],
        input: String,
    ) -> Result<String, RestoreError> {
        let name = format!("{}{}-{verb}", family.tool(), self.infix);
        let path = path_of(&name);
        process::run(&name, path.as_deref().unwrap_or(Path::new(&name)), arguments, input, LIMIT)
    }
}

/// How long the legacy variant waits for its lock, in seconds.
const LOCK_WAIT: &str = "--wait=5";

/// What the choice depends on.
struct Machine<'a> {
    /// Whether there is a program of that name.
    exists: &'a dyn Fn(&str) -> bool,
    /// The variant of the programs without one in their names.
    default: &'a dyn Fn() -> Option<Variant>,
    /// Whether somebody uses legacy tables in the namespace.
    legacy_in_use: bool,
    /// Whether the kernel has nf_tables.
    nf_tables: bool,
}

fn choose(wanted: Option<Variant>, machine: &Machine<'_>) -> Result<&'static str, RestoreError> {
    let there =
        |infix: &str| ["save", "restore"].iter().all(|verb| (machine.exists)(&format!("iptables{infix}-{verb}")));
    // Whose rules are there already is asked first: the rules of the other variant would stand beside them, unseen.
    let order: &[Variant] = match (wanted, machine.legacy_in_use, machine.nf_tables) {
        (Some(Variant::Legacy), ..) | (None, _, false) => &[Variant::Legacy],
        (Some(Variant::Nft), ..) => &[Variant::Nft],
        (None, true, true) => &[Variant::Legacy, Variant::Nft],
        (None, false, true) => &[Variant::Nft, Variant::Legacy],
    };
    for &variant in order {
        for (infix, of) in INFIXES {
            let matches = match of {
                Some(of) => of == variant,
                None => there(infix) && (machine.default)().is_none_or(|default| default == variant),
            };
            if matches && there(infix) {
                return Ok(infix);
            }
        }
    }
    let names: Vec<String> = INFIXES
        .iter()
        .filter(|(_, of)| of.is_none_or(|of| order.contains(&of)))
        .map(|(infix, _)| format!("iptables{infix}-restore"))
        .collect();
    Err(RestoreError::NoPrograms { wanted: names.join(", ") })
}

/// The variant of plain `iptables-restore`, which says so itself since 1.8; what does not is legacy.
fn default_variant() -> Option<Variant> {
    let name = "iptables-restore";
    let version = process::run(name, &path_of(name)?, &["--version"], String::new(), LIMIT).ok()?;
    Some(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

fn path_of(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        wanted: Option<Variant>,
        there: &[&str],
        default: Option<Variant>,
        legacy: bool,
        nf_tables: bool,
    ) -> Result<&'static str, String> {
        let exists = |name: &str| {
            there
                .iter()
                .any(|tables| name.strip_prefix(tables).is_some_and(|rest| ["-save", "-restore"].contains(&rest)))
        };
        let machine = Machine { exists: &exists, default: &|| default, legacy_in_use: legacy, nf_tables };
        choose(wanted, &machine).map_err(|error| error.to_string())
    }

    #[test]
    fn takes_the_variant_that_serves_the_namespace() {
        use Variant::{Legacy, Nft};
        let all = ["iptables-legacy", "iptables-nft", "iptables"];
        let plain = ["iptables"];
        for (wanted, there, default, legacy_in_use, nf_tables, expected) in [
            (None, &all[..], Some(Nft), false, true, "-nft"),
            (None, &all, Some(Nft), true, true, "-legacy"),
            (None, &all, Some(Nft), false, false, "-legacy"),
            (None, &all[1..], Some(Nft), true, true, "-nft"),
            (Some(Legacy), &all, Some(Nft), false, true, "-legacy"),
            (Some(Nft), &all, Some(Legacy), true, true, "-nft"),
            (None, &plain, Some(Nft), false, true, ""),
            (None, &plain, Some(Legacy), false, true, ""),
            (None, &plain, None, false, false, ""),
            (Some(Legacy), &plain, Some(Legacy), false, true, ""),
        ] {
            assert_eq!(chosen(wanted, there, default, legacy_in_use, nf_tables), Ok(expected), "{wanted:?} {there:?}");
        }
    }

    #[test]
    fn says_what_it_looked_for() {
        let error = chosen(None, &[], None, false, true).unwrap_err();
        assert!(error.contains("iptables-legacy-restore, iptables-nft-restore, iptables-restore"), "{error}");
        // The nft variant is of no use without nf_tables, nor is the other one to whom it was forbidden.
        for (wanted, nf_tables, there) in [(None, false, "iptables-nft"), (Some(Variant::Nft), true, "iptables-legacy")]
        {
            assert!(chosen(wanted, &[there], Some(Variant::Legacy), false, nf_tables).is_err());
        }
        assert!(chosen(None, &["iptables"], Some(Variant::Nft), false, false).is_err());
    }
}
