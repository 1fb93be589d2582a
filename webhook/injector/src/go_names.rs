//! Conversion between the JSON and Go names of fields in Kubernetes types.

/// First words of JSON names that are upper case in Go.
const INITIALISMS: [&str; 21] = [
    "api", "aws", "cpu", "csi", "dns", "fc", "fs", "gce", "gmsa", "grpc", "http", "ip", "iqn", "iscsi", "nfs", "os",
    "pd", "rbd", "tcp", "tty", "uid",
];
/// Names without a rule.
const IRREGULAR: [(&str, &str); 5] = [
    ("serviceAccount", "DeprecatedServiceAccount"),
    ("cephfs", "CephFS"),
    ("storageos", "StorageOS"),
    ("seLinuxOptions", "SELinuxOptions"),
    ("seLinuxChangePolicy", "SELinuxChangePolicy"),
];

/// Converts `hostIP` to `HostIP` and `httpGet` to `HTTPGet`.
pub(crate) fn go_name(json: &str) -> String {
    if let Some((_, go)) = IRREGULAR.iter().find(|(known, _)| *known == json) {
        return (*go).to_owned();
    }
    let end = json.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(json.len());
    let (word, rest) = json.split_at(end);
    if INITIALISMS.contains(&word) { word.to_ascii_uppercase() + rest } else { upper_first(json) }
}

/// Converts `HTTPGet` to `httpGet`.
pub(crate) fn json_name(go: &str) -> String {
    if let Some((json, _)) = IRREGULAR.iter().find(|(_, known)| *known == go) {
        return (*json).to_owned();
    }
    let capitals = go.bytes().take_while(u8::is_ascii_uppercase).count();
    // The last of several capitals starts the next word, as in HTTPGet.
    let word = if capitals > 1 && capitals < go.len() { capitals - 1 } else { capitals };
    go[..word].to_ascii_lowercase() + &go[word..]
}

/// Converts `meshId` to `MeshId`, as protobuf's Go code names fields.
pub(crate) fn upper_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_names_to_go_and_back() {
        for (json, go) in [
            ("name", "Name"),
            ("serviceAccountName", "ServiceAccountName"),
            ("hostIP", "HostIP"),
            ("httpGet", "HTTPGet"),
            ("tcpSocket", "TCPSocket"),
            ("grpc", "GRPC"),
            ("apiVersion", "APIVersion"),
            ("uid", "UID"),
            ("dnsPolicy", "DNSPolicy"),
            ("fsGroup", "FSGroup"),
            ("seLinuxOptions", "SELinuxOptions"),
            ("downwardAPI", "DownwardAPI"),
            ("tty", "TTY"),
            ("awsElasticBlockStore", "AWSElasticBlockStore"),
            ("ip", "IP"),
            ("httpHeaders", "HTTPHeaders"),
            ("setHostnameAsFQDN", "SetHostnameAsFQDN"),
            ("os", "OS"),
            ("cephfs", "CephFS"),
        ] {
            assert_eq!((go_name(json).as_str(), json_name(go).as_str()), (go, json));
        }
    }
}
