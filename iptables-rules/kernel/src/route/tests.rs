use super::*;
use crate::testing::{in_namespace, tool};

fn routing() -> Routing {
    Routing {
        lo_addresses: vec!["::6/128".parse().unwrap()],
        local_delivery: Some(LocalDelivery { mark: 1337, table: 133 }),
    }
}

fn ip(command: &str) -> String {
    tool("ip", &command.split(' ').collect::<Vec<_>>(), "")
}

fn addresses_only() -> Routing {
    Routing { local_delivery: None, ..routing() }
}

#[test]
fn adds_address_to_interface_that_is_down() {
    in_namespace(|| {
        let routing = addresses_only();
        assert_eq!(verify(&routing).unwrap(), ["address ::6/128 is missing on lo"]);
        assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
        assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
        assert_eq!(ip("-6 -o addr show dev lo to ::6").lines().count(), 1);
        assert!(ip("-o link show lo").contains("state DOWN"), "lo stays down");
        assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn loopback_plugin_finds_no_address_of_ours() {
    in_namespace(|| {
        // The plugin brings lo up, then checks its addresses.
        let plugin = thread::spawn(|| {
            thread::sleep(Duration::from_millis(40));
            tool("ip", &["-batch", "-"], "link set lo up\naddr show dev lo\n")
        });
        assert_eq!(apply(&addresses_only()).unwrap(), RoutingOutcome::Complete);
        let seen = plugin.join().unwrap();
        assert!(seen.contains("127.0.0.1/8") && !seen.contains("::6/128"), "{seen}");
        assert_eq!(verify(&addresses_only()).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn sets_up_local_delivery_once() {
    in_namespace(|| {
        ip("link set lo up");
        let routing = routing();
        assert_eq!(
            verify(&routing).unwrap(),
            [
                "address ::6/128 is missing on lo",
                "rule fwmark 1337 lookup 133 is missing",
                "route local default dev lo table 133 is missing",
                "rule -6 fwmark 1337 lookup 133 is missing",
                "route -6 local default dev lo table 133 is missing",
            ]
        );
        for _ in 0..3 {
            assert_eq!(apply(&routing).unwrap(), RoutingOutcome::Complete);
            assert_eq!(verify(&routing).unwrap(), Vec::<String>::new());
        }
        for family in ["-4", "-6"] {
            assert_eq!(ip(&format!("{family} rule show")).matches("fwmark 0x539 lookup 133").count(), 1);
            assert_eq!(ip(&format!("{family} route show table 133")).matches("local default dev lo").count(), 1);
        }
    });
}

#[test]
fn existing_rule_is_not_duplicated() {
    in_namespace(|| {
        ip("link set lo up");
        ip("rule add priority 77 fwmark 1337 lookup 133");
        ip("rule add priority 78 fwmark 1337/0xff lookup 133");
        let routing = Routing { lo_addresses: Vec::new(), ..routing() };
        apply(&routing).unwrap();
        assert_eq!(ip("rule show").matches("fwmark 0x539 lookup 133").count(), 1);
        assert_eq!(ip("-6 rule show").matches("fwmark").count(), 0, "no rule for IPv6");
    });
}

#[test]
fn disabled_ipv6_is_reported() {
    in_namespace(|| {
        ip("link set lo up");
        // /proc/sys/net shows the namespace of the reading thread.
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
        assert_eq!(apply(&addresses_only()).unwrap(), RoutingOutcome::WithoutIpv6);
        assert_eq!(apply(&routing()).unwrap(), RoutingOutcome::WithoutIpv6);
        assert!(ip("rule show").contains("fwmark 0x539"));
    });
}

#[test]
fn error_names_the_failed_operation() {
    in_namespace(|| {
        let error = apply(&routing()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot add route -6 local default dev lo table 133: Network is down (os error 100)"
        );
    });
}
