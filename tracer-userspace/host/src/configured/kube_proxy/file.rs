//! KubeProxyConfiguration v1alpha1.

use rsttrace_model::kube_proxy::{FIELDS, FieldKind, FieldValue, KubeProxy, MODE, Mode};
use saphyr::{LoadableYamlNode as _, MarkedYaml};

use super::duration;

/// Reads the file `name` with this text. A field that cannot be parsed is reported with its place and is not
/// known; the others are used. Of a text that is not valid YAML nothing is known.
pub fn read(name: &str, text: &str, proxy: &mut KubeProxy, unread: &mut Vec<String>) {
    match MarkedYaml::load_from_str(text) {
        Err(error) => {
            let at = error.marker();
            unread.push(format!("{name}:{}:{}: {}", at.line(), at.col() + 1, error.info()));
            proxy.forget_all();
        }
        Ok(documents) => match documents.iter().find(|it| is_configuration(it)) {
            Some(document) => fields(name, document, proxy, unread),
            None => {
                unread.push(format!("{name}: no KubeProxyConfiguration in the file"));
                proxy.forget_all();
            }
        },
    }
}

fn is_configuration(document: &MarkedYaml<'_>) -> bool {
    let kind = document.data.as_mapping_get("kind").and_then(|kind| kind.data.as_str());
    kind == Some("KubeProxyConfiguration")
}

fn fields(name: &str, document: &MarkedYaml<'_>, proxy: &mut KubeProxy, unread: &mut Vec<String>) {
    let mut invalid = |at: &MarkedYaml<'_>, field: &str, expected: &str| {
        let at = at.span.start;
        unread.push(format!(
            "{name}:{}:{}: invalid value of `{field}` (expected {expected})",
            at.line(),
            at.col() + 1
        ));
    };
    if let Some(mode) = present(document, MODE) {
        match mode.data.as_str() {
            Some("") => {}
            Some(text) if Mode::ALL.iter().any(|it| it.id() == text) => {
                proxy.mode = Some(text.to_owned());
            }
            _ => {
                invalid(mode, MODE, super::EXPECTED_MODE);
                proxy.unread.insert(MODE);
            }
        }
    }
    let mut broken: Vec<&str> = Vec::new();
    for field in FIELDS {
        let Some((section, key)) = field.path.split_once('.') else {
            continue;
        };
        let Some(fields) = present(document, section) else {
            continue;
        };
        if !fields.data.is_mapping() {
            if !broken.contains(&section) {
                invalid(fields, section, "a mapping");
                broken.push(section);
            }
            proxy.unread.insert(field.path);
            continue;
        }
        let Some(node) = present(fields, key) else {
            continue;
        };
        match value(field.kind, node) {
            Some(value) => drop(proxy.fields.insert(field.path, value)),
            None => {
                invalid(node, field.path, super::expected(field.kind));
                proxy.unread.insert(field.path);
            }
        }
    }
}

/// The value of a key, unless it is null, which stands for the default.
fn present<'a, 'b>(mapping: &'a MarkedYaml<'b>, key: &str) -> Option<&'a MarkedYaml<'b>> {
    mapping.data.as_mapping_get(key).filter(|it| !it.data.is_null())
}

fn value(kind: FieldKind, node: &MarkedYaml<'_>) -> Option<FieldValue> {
    match kind {
        // A number is not a duration (`metav1.Duration.UnmarshalJSON`).
        FieldKind::Duration => duration::parse(node.data.as_str()?).map(FieldValue::Duration),
        FieldKind::Count => {
            let count = u64::try_from(node.data.as_integer()?).ok()?;
            (count <= super::MOST_COUNT).then_some(FieldValue::Count(count))
        }
        // kube-proxy reads YAML 1.1, where these words are booleans too.
        FieldKind::Switch => match (node.data.as_bool(), node.data.as_str()) {
            (Some(on), _) => Some(FieldValue::Switch(on)),
            (None, Some("yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y")) => {
                Some(FieldValue::Switch(true))
            }
            (None, Some("no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N")) => {
                Some(FieldValue::Switch(false))
            }
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rsttrace_model::kube_proxy::Written;

    use super::*;

    const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

    fn of(text: &str) -> (KubeProxy, Vec<String>) {
        let (mut proxy, mut unread) = (KubeProxy::default(), Vec::new());
        read("/c.conf", text, &mut proxy, &mut unread);
        (proxy, unread)
    }

    #[test]
    fn fields_are_read_and_null_is_the_default() {
        let (proxy, unread) = of(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n\
             conntrack:\n  maxPerCore: null\n  min: 262144\n  tcpEstablishedTimeout: 2h0m0s\n  tcpBeLiberal: yes\n\
             ipvs:\n  tcpTimeout: 1.5h\n  udpTimeout: 0s\niptables: null\n",
        );
        assert_eq!(unread, [""; 0]);
        assert_eq!(proxy.mode.as_deref(), Some("ipvs"));
        assert_eq!(proxy.writes(ESTABLISHED, 2), Some(7200));
        assert_eq!(proxy.writes("ipvs.tcp", 2), Some(5400));
        assert_eq!(proxy.writes("ipvs.udp", 2), None);
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_tcp_be_liberal", 2), Some(1));
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_max", 2), Some(262_144));
    }

    #[test]
    fn each_invalid_field_is_reported_with_its_place_and_the_others_are_used() {
        let (proxy, unread) =
            of("kind: KubeProxyConfiguration\nmode: userspace\nconntrack:\n  min: lots\n  \
             tcpEstablishedTimeout: 7200\n  udpTimeout: 90s\nipvs: 5\n");
        assert_eq!(
            unread,
            [
                "/c.conf:2:7: invalid value of `mode` (expected iptables, ipvs or nftables)",
                "/c.conf:7:7: invalid value of `ipvs` (expected a mapping)",
                "/c.conf:4:8: invalid value of `conntrack.min` (expected a whole number)",
                "/c.conf:5:26: invalid value of `conntrack.tcpEstablishedTimeout` (expected a duration such \
                 as 15m or 1.5h)",
            ]
        );
        assert_eq!(proxy.writes("net.netfilter.nf_conntrack_udp_timeout", 2), Some(90));
        assert_eq!(proxy.written(ESTABLISHED, 2), Written::Unknown);
        assert_eq!(proxy.written("ipvs.tcp", 2), Written::Unknown);
    }

    #[test]
    fn a_text_that_is_invalid_yaml_is_reported_with_its_place_and_no_default_is_claimed() {
        for (text, begin) in [
            ("kind: KubeProxyConfiguration\nmode: [", "/c.conf:3:1: "),
            ("kind: Pod\n", "/c.conf: no KubeProxyConfiguration"),
            ("", "/c.conf: no KubeProxyConfiguration"),
        ] {
            let (proxy, unread) = of(text);
            assert!(unread[0].starts_with(begin), "{unread:?}");
            assert_eq!(proxy.written(ESTABLISHED, 2), Written::Unknown, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,40}(\n[ a-zA-Z:{}\\[\\]&*'\"|>-]{0,30}){0,6}") {
            of(&text);
            of(&format!("kind: KubeProxyConfiguration\nconntrack:\n  min: {text}"));
        }
    }
}
