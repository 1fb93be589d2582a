use iptables_rules::{CaptureConfig, plan};

use super::*;
use crate::testing::{in_namespace, tool};

#[test]
fn own_namespace_is_rejected() {
    let own = Path::new("/proc/self/ns/net");
    let nothing = RuleSet::default();
    assert!(matches!(install_in(own, &nothing, Backend::Auto), Err(BackendError::OwnNetns(_))));
    assert!(matches!(differences_in(own, &nothing, Backend::Auto), Err(BackendError::OwnNetns(_))));
}

#[test]
fn rules_are_read_again_only_in_another_generation() {
    in_namespace(|| {
        tool("ip", &["link", "set", "lo", "up"], "");
        let rules = plan(&CaptureConfig::default()).unwrap();
        install(&rules, Backend::Auto, false).unwrap();
        let compare = |verified| differences_since(&rules, Backend::Auto, verified).unwrap();
        let (lines, generation) = compare(None);
        assert!(lines.is_empty() && generation.is_some(), "{lines:?}");
        // Other rules are not noticed, as nothing has changed.
        assert_eq!(differences_since(&RuleSet::default(), Backend::Auto, generation).unwrap(), (vec![], generation));
        tool("ip", &["-6", "addr", "del", "::6/128", "dev", "lo"], "");
        assert_eq!(compare(generation).0, ["address ::6/128 is missing on lo"]);
        tool("nft", &["add", "table", "inet", "other"], "");
        let (lines, next) = compare(generation);
        assert_eq!((lines.len(), next), (1, generation.map(|generation| generation + 1)));
        tool("nft", &["flush", "table", "inet", "weir"], "");
        let (lines, last) = compare(next);
        assert!(lines.len() > 1 && last.is_none(), "{lines:?}");
    });
}

#[test]
fn auto_falls_back_to_iptables_only_without_nf_tables() {
    let missing = || Err(NftError::Unavailable(io::Error::other("none")));
    let refused = || Err(NftError::NotCommitted);
    let iptables = |_| Ok("iptables");
    assert_eq!(dispatch(Backend::Auto.into(), missing, iptables).unwrap(), "iptables");
    assert_eq!(dispatch(Backend::Auto.into(), || Ok("nft"), iptables).unwrap(), "nft");
    assert!(dispatch(Backend::Auto.into(), refused, iptables).is_err());
    assert!(dispatch(Backend::Nft.into(), missing, iptables).is_err());
    assert_eq!(dispatch(Backend::Iptables.into(), || Ok("nft"), iptables).unwrap(), "iptables");
    let gone =
        |_| -> Result<&str, IptablesError> { Err(IptablesError::NoPrograms { wanted: "iptables-restore".to_owned() }) };
    let text = dispatch(Backend::Auto.into(), missing, gone).unwrap_err().to_string();
    assert!(text.contains("nf_tables is not available") && text.contains("iptables-restore"), "{text}");
}

#[test]
fn only_created_rules_are_rolled_back() {
    let fails = || Err::<(), _>(BackendError::Nft(NftError::NotCommitted));
    for (applied, undone) in
        [(ApplyOutcome::Created, true), (ApplyOutcome::Unchanged, false), (ApplyOutcome::Replaced, false)]
    {
        let mut called = false;
        let rollback = || {
            called = true;
            Ok(())
        };
        assert!(all_or_nothing(|| Ok(applied), fails, rollback).is_err());
        assert_eq!(called, undone, "{applied:?}");
    }
    let never = || panic!("nothing failed");
    let done = all_or_nothing(|| Ok(ApplyOutcome::Created), || Ok(7), never).unwrap();
    assert_eq!(done, (ApplyOutcome::Created, 7));
}

#[test]
fn failed_rollback_reports_both_errors() {
    let fails = || Err::<(), _>(BackendError::Nft(NftError::NotCommitted));
    let error = all_or_nothing(|| Ok(ApplyOutcome::Created), fails, || Err(NftError::Contended.into())).unwrap_err();
    let text = error.to_string();
    let (first, second) = (NftError::NotCommitted.to_string(), NftError::Contended.to_string());
    assert!(text.starts_with(&first) && text.ends_with(&second), "{text}");
}
