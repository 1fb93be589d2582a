//! Capture configuration of an init container, from its specification alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::{Args as _, Command, FromArgMatches as _};
use iptables_rules::CaptureConfig;

use crate::args::IptablesArgs;
use crate::host::HostInfo;
use crate::request::Request;

/// Name of the program among the arguments, if the image's entrypoint is another one.
const PROGRAMS: [&str; 2] = ["istio-iptables", "weir-iptables"];

/// Returns the configuration that an init container with these arguments and variables installs. Of its host it is assumed that the
/// proxy's user has Istio's id, that resolv.conf has `dns_servers`, and that the kernel has IPv6.
///
/// # Errors
/// Every argument and variable that is not understood.
pub fn capture_config(
    args: &[String],
    env: &BTreeMap<String, String>,
    dns_servers: &[IpAddr],
) -> Result<CaptureConfig, Vec<String>> {
    let command = IptablesArgs::augment_args(Command::new("istio-iptables").no_binary_name(true));
    let options = args.iter().skip_while(|arg| PROGRAMS.iter().any(|program| arg.ends_with(program)));
    let matches = command.try_get_matches_from(options).map_err(|error| {
        vec![error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()]
    })?;
    let args = IptablesArgs::from_arg_matches(&matches).map_err(|error| vec![error.to_string()])?;
    let host = HostInfo {
        env: &|name| env.get(name).cloned(),
        user: &|_| None,
        dns_servers: &|| dns_servers.to_vec(),
        lacks_ipv6: &|| false,
    };
    let request = Request::new(&args, &host)?;
    if request.options.redirect_dns && !request.options.capture_all_dns && request.options.dns_servers.is_none() {
        return match dns_servers {
            [] => {
                Err(vec!["DNS is redirected for the servers of the pod's resolv.conf, which are not known".to_owned()])
            }
            _ => Ok(request.config),
        };
    }
    Ok(request.config)
}

#[cfg(test)]
mod tests {
    use iptables_rules::config::{CidrSelection, DnsCapture, PortSelection};

    use super::*;

    fn config(args: &str, env: &[(&str, &str)], dns: &[IpAddr]) -> Result<CaptureConfig, Vec<String>> {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        capture_config(&args, &env, dns)
    }

    #[test]
    fn arguments_of_an_init_container_are_read() {
        let args = "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x 10.0.0.0/8 -b * -d 15090,15021,15020 --log_output_level=default:info";
        let config = config(args, &[], &[]).unwrap();
        assert_eq!((config.proxy_uids, config.proxy_gids), (vec![1337], vec![1337]));
        assert_eq!(config.inbound_ports, PortSelection::All);
        assert_eq!(config.outbound_cidrs, CidrSelection::All);
        assert_eq!(config.outbound_cidrs_exclude.len(), 1);
    }

    #[test]
    fn redirected_dns_needs_the_servers() {
        let dns = [("ISTIO_META_DNS_CAPTURE", "true")];
        let server: IpAddr = "10.96.0.10".parse().unwrap();
        assert_eq!(config("-b *", &dns, &[server]).unwrap().dns, DnsCapture::Servers(vec![server]));
        assert!(config("-b *", &dns, &[]).unwrap_err()[0].contains("resolv.conf"));
        assert_eq!(config("-b * --capture-all-dns", &dns, &[]).unwrap().dns, DnsCapture::All);
    }

    #[test]
    fn unknown_arguments_are_named() {
        let errors = config("-b * --unknown-thing 7", &[], &[]).unwrap_err();
        assert!(errors[0].contains("--unknown-thing"), "{errors:?}");
    }
}
