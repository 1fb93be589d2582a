use super::*;

fn chosen(
    wanted: Option<IptablesVariant>,
    there: &[&str],
    default: Option<IptablesVariant>,
    legacy: bool,
    nf_tables: bool,
) -> Result<&'static str, String> {
    let exists = |name: &str| {
        there.iter().any(|tables| name.strip_prefix(tables).is_some_and(|rest| ["-save", "-restore"].contains(&rest)))
    };
    let machine = Installed { exists: &exists, default: &|| default, legacy_in_use: legacy, nf_tables };
    choose_infix(wanted, &machine).map_err(|error| error.to_string())
}

#[test]
fn chooses_the_variant_that_fits_the_namespace() {
    use IptablesVariant::{Legacy, Nft};
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
fn error_names_the_wanted_programs() {
    let error = chosen(None, &[], None, false, true).unwrap_err();
    assert!(error.contains("iptables-legacy-restore, iptables-nft-restore, iptables-restore"), "{error}");
    // The nft variant needs nf_tables, and a wanted variant excludes the other one.
    for (wanted, nf_tables, there) in
        [(None, false, "iptables-nft"), (Some(IptablesVariant::Nft), true, "iptables-legacy")]
    {
        assert!(chosen(wanted, &[there], Some(IptablesVariant::Legacy), false, nf_tables).is_err());
    }
    assert!(chosen(None, &["iptables"], Some(IptablesVariant::Nft), false, false).is_err());
}
