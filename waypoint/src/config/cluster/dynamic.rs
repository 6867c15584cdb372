//! Clusters of hosts that requests name: Envoy's dynamic forward proxy. Only hosts under the service's own name are called,
//! whatever routes let through.

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::{self as proto, cluster::CustomClusterType},
        extensions::clusters::dynamic_forward_proxy::v3::{
            ClusterConfig, cluster_config::ClusterImplementationSpecifier,
        },
    },
    google::protobuf::value::Kind,
};
use http::uri::Authority;
use leyline_types::Str;
use prost::Name;

use super::dns::Family;
use crate::config::{
    any::decode,
    error::{At, Compiled, Unsupported},
};

/// Where our control plane says on which port hosts are called.
const METADATA: &str = "leyline.io";
/// RFC 1035, 2.3.4.
const LONGEST_NAME: usize = 253;

/// Which hosts there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DynamicSource {
    pub(crate) family: Family,
    /// `.example.com`.
    suffix: String,
    port: Option<u16>,
    /// Where nobody says.
    default_port: u16,
}

/// A host that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// In lower case.
    pub(crate) host: Str,
    pub(crate) port: u16,
}

impl DynamicSource {
    pub(super) fn compile(
        proto: &proto::Cluster,
        custom: &CustomClusterType,
        host: Option<&str>,
    ) -> Compiled<Self> {
        let any = custom.typed_config.as_ref();
        let any = any.ok_or_else(|| Unsupported::missing("typed_config"))?;
        if any.type_url != ClusterConfig::type_url() {
            return Err(Unsupported::new(format!("cluster type {}", custom.name)));
        }
        let config: ClusterConfig = decode(any)?;
        let Some(ClusterImplementationSpecifier::DnsCacheConfig(cache)) =
            config.cluster_implementation_specifier
        else {
            return Err(Unsupported::new("sub_clusters_config"));
        };
        let suffix = host.and_then(|host| host.strip_prefix('*'));
        let suffix = suffix.filter(|suffix| suffix.len() > 1 && suffix.starts_with('.'));
        let suffix =
            suffix.ok_or_else(|| Unsupported::new("hosts of a service without a domain"))?;
        Ok(Self {
            family: Family::compile(cache.dns_lookup_family).at("dns_cache_config")?,
            suffix: suffix.to_ascii_lowercase(),
            port: port(proto).at("metadata")?,
            default_port: 80,
        })
    }

    /// Of hosts that are called by TLS.
    pub(super) fn by_tls(mut self) -> Self {
        self.default_port = 443;
        self
    }

    /// The host of an authority, unless it is none of this cluster. Its port counts only where the control plane says none.
    pub(crate) fn of_authority(&self, authority: &str) -> Option<Named> {
        let authority: Authority = authority.parse().ok()?;
        let port = self.port.or_else(|| authority.port_u16());
        self.named(authority.host(), port.unwrap_or(self.default_port))
    }

    /// The host of a name, unless it is none of this cluster.
    pub(crate) fn named(&self, host: &str, port: u16) -> Option<Named> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let label = host.strip_suffix(self.suffix.as_str())?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let fits = !label.is_empty() && host.len() <= LONGEST_NAME && host.bytes().all(is_name);
        fits.then(|| Named {
            host: host.as_str().into(),
            port,
        })
    }
}

fn port(proto: &proto::Cluster) -> Compiled<Option<u16>> {
    let metadata = proto.metadata.as_ref();
    let fields = metadata.and_then(|metadata| metadata.filter_metadata.get(METADATA));
    match fields.and_then(|fields| fields.fields.get("target_port")?.kind.as_ref()) {
        None => Ok(None),
        Some(Kind::NumberValue(number)) if (1.0..65536.0).contains(number) => {
            Ok(Some(*number as u16))
        }
        Some(_) => Err(Unsupported::new("target_port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(port: Option<u16>) -> DynamicSource {
        DynamicSource {
            family: Family::PreferV4,
            suffix: ".out.example".to_owned(),
            port,
            default_port: 80,
        }
    }

    #[test]
    fn only_hosts_under_the_services_own_name_are_called() {
        let check = |authority: &str, expected: Option<(&str, u16)>| {
            let found = source(None).of_authority(authority);
            let found = found.map(|named| (named.host.to_string(), named.port));
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(found, expected, "{authority}");
        };
        check("a.out.example", Some(("a.out.example", 80)));
        check("A.b.Out.Example:8080", Some(("a.b.out.example", 8080)));
        check("a.out.example.", Some(("a.out.example", 80)));
        for other in [
            "",
            "out.example",
            ".out.example",
            "a.out.example.evil",
            "aout.example",
            "127.0.0.1",
            "[::1]:80",
            "user@a.out.example@evil",
            "a b.out.example",
            "a/.out.example",
        ] {
            check(other, None);
        }
        check(&format!("{}.out.example", "a".repeat(250)), None);
    }

    #[test]
    fn the_control_planes_port_counts_before_that_of_the_request() {
        let named = source(Some(8443)).of_authority("a.out.example:80").unwrap();
        assert_eq!(named.port, 8443);
        assert_eq!(
            source(None)
                .by_tls()
                .of_authority("a.out.example")
                .unwrap()
                .port,
            443
        );
    }
}
