//! The proxy between a client and the API server, chosen as client-go chooses it.
//!
//! ```text
//! proxy-url of the kubeconfig's cluster ──▶ always
//! else HTTPS_PROXY (HTTP_PROXY for an http URL) ──▶ unless the server is on loopback, or NO_PROXY lists it
//! ```
//!
//! kube's own choice is replaced: kube 5.0 looks the proxy up in NO_PROXY instead of the server, and reads no environment in a cluster.

use axum::http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::config::Kubeconfig;

/// Sets the proxy of a client's configuration. `kubeconfig_proxy` is `proxy-url` of the kubeconfig.
///
/// # Errors
/// The URL of the proxy is invalid, or its scheme is not supported.
pub fn set_proxy(config: &mut Config, kubeconfig_proxy: Option<&str>) -> Result<(), String> {
    let from_environment = || from_environment(&config.cluster_url, |name| std::env::var(name).ok());
    config.proxy_url = match kubeconfig_proxy.filter(|url| !url.is_empty()) {
        Some(url) => Some(parse("proxy-url", url)?),
        None => from_environment()?,
    };
    Ok(())
}

/// Returns `proxy-url` of the cluster that a context, or else the current one, names.
pub fn kubeconfig_proxy<'a>(kubeconfig: &'a Kubeconfig, context: Option<&str>) -> Option<&'a str> {
    let context = context.or(kubeconfig.current_context.as_deref())?;
    let context = kubeconfig.contexts.iter().find(|named| named.name == context)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.as_deref()
}

/// Returns the proxy that environment variables name for a server.
fn from_environment(server: &Uri, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Uri>, String> {
    let first = |names: [&'static str; 2]| {
        let mut set = names.into_iter().filter_map(|name| Some((name, variable(name)?)));
        set.find(|(_, value)| !value.is_empty())
    };
    let is_plain = server.scheme_str() == Some("http");
    let names = if is_plain { ["HTTP_PROXY", "http_proxy"] } else { ["HTTPS_PROXY", "https_proxy"] };
    let Some((name, url)) = first(names).filter(|_| !is_loopback(server)) else { return Ok(None) };
    let no_proxy = first(["NO_PROXY", "no_proxy"]).map_or_else(String::new, |(_, list)| list);
    // Only its answer to NO_PROXY matters: the URL is used as it was given, with its credentials.
    let matcher = Matcher::builder().all("http://proxy".to_owned()).no(no_proxy).build();
    if matcher.intercept(server).is_none() {
        return Ok(None);
    }
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    parse(name, &url).map(Some)
}

fn is_loopback(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

fn parse(origin: &str, url: &str) -> Result<Uri, String> {
    // The host name is resolved by the proxy in either case.
    let normal = url.strip_prefix("socks5h://").map(|rest| format!("socks5://{rest}"));
    let parsed: Result<Uri, _> = normal.as_deref().unwrap_or(url).parse();
    match parsed {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https" | "socks5")) => Ok(uri),
        // Without the URL, which may have a password in it.
        Ok(_) => Err(format!("cannot use {origin}: its scheme is none of http, https, socks5")),
        Err(error) => Err(format!("cannot use {origin}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(server: &str, environment: &[(&str, &str)]) -> Result<Option<String>, String> {
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let found = from_environment(&server.parse().unwrap(), variable)?;
        Ok(found.map(|uri| uri.to_string()))
    }

    #[test]
    fn environment_chooses_the_proxy_by_the_server() {
        let server = "https://api.example:6443";
        let https = ("HTTPS_PROXY", "http://user:pw@proxy:3128");
        assert_eq!(proxy(server, &[https]), Ok(Some("http://user:pw@proxy:3128/".to_owned())));
        assert_eq!(proxy(server, &[("https_proxy", "proxy:3128")]), Ok(Some("http://proxy:3128/".to_owned())));
        assert_eq!(
            proxy(server, &[("HTTPS_PROXY", "socks5h://proxy:1080")]),
            Ok(Some("socks5://proxy:1080/".to_owned()))
        );
        assert_eq!(proxy(server, &[("HTTP_PROXY", "http://proxy:3128")]), Ok(None));
        for direct in ["*", "api.example", ".example", "x, api.example,"] {
            assert_eq!(proxy(server, &[https, ("NO_PROXY", direct)]), Ok(None), "{direct}");
        }
        assert_eq!(proxy("https://10.96.0.1", &[https, ("no_proxy", "10.0.0.0/8")]), Ok(None));
        assert!(
            proxy(server, &[https, ("NO_PROXY", "proxy,other.example")]).unwrap().is_some(),
            "not the proxy's name"
        );
        for local in ["https://127.0.0.1:6443", "https://localhost", "https://[::1]:6443"] {
            assert_eq!(proxy(local, &[https]), Ok(None), "{local}");
        }
        let error = proxy(server, &[("HTTPS_PROXY", "ftp://user:secret@proxy")]).unwrap_err();
        assert!(error.contains("HTTPS_PROXY") && !error.contains("secret"), "{error}");
    }
}
