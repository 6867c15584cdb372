//! Where the pods of this node come from, and who turns their connections to us.

use std::path::PathBuf;

use leyline_net::Redirection;
use leyline_runtime::env::Reader;
use leyline_types::WorkloadName;
use serde::Serialize;

use super::ProxyConfig;

/// Where istio-cni listens (facts A2).
const ZDS_SOCKET: &str = "/var/run/ztunnel/ztunnel.sock";

/// Who names the pods of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PodSource {
    /// Leyline's control plane; their namespaces are found by name.
    ControlPlane,
    /// istio-cni, over this socket, with their namespaces.
    Zds(PathBuf),
    /// Nobody: there is one, and this process is in its namespace (`PROXY_MODE=dedicated`, facts A6).
    Dedicated(WorkloadName),
}

/// Whether other processes may listen on our ports in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PortUse {
    /// The next ztunnel may, while this one still runs (`SO_REUSEPORT`).
    Shared,
    /// Nobody (`INPOD_PORT_REUSE=false`).
    Exclusive,
}

/// What is done with the connections of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Carries {
    /// They are carried.
    Connections,
    /// Only DNS is answered (`ENABLE_PROXY=false`).
    Nothing,
}

impl PodSource {
    /// As said by `LEYLINE_ENROLMENT`; else istio-cni where Istio's chart rolled this process out (it sets
    /// `INPOD_ENABLED`) or its socket is named, and our control plane elsewhere.
    pub(super) fn read(env: &mut Reader<'_>) -> Self {
        if let Some(workload) = dedicated(env) {
            return Self::Dedicated(workload);
        }
        let named = env.string("INPOD_UDS", "");
        let in_chart = env.bool("INPOD_ENABLED", false);
        let socket = if named.is_empty() { ZDS_SOCKET } else { &named };
        let zds = Self::Zds(PathBuf::from(socket));
        let read = |text: &str| match text {
            "zds" => Ok(zds.clone()),
            "controlplane" => Ok(Self::ControlPlane),
            _ => Err("use zds or controlplane".to_owned()),
        };
        match env.parse_with("LEYLINE_ENROLMENT", read) {
            Some(source) => source,
            None if in_chart || !named.is_empty() => zds,
            None => Self::ControlPlane,
        }
    }
}

impl ProxyConfig {
    /// Mark of the sockets that face the application: by our capture's, answers stay on loopback; istio-cni's rules
    /// know all of the proxy's sockets by one mark (facts A4).
    pub(crate) const fn application_mark(&self) -> u32 {
        match self.redirection {
            Redirection::Steered => self.capture_mark,
            Redirection::Rewritten => self.bypass_mark,
        }
    }
}

/// The workload of a process that serves no other.
fn dedicated(env: &mut Reader<'_>) -> Option<WorkloadName> {
    let mode = env.string("PROXY_MODE", "shared");
    let named = env.string("PROXY_WORKLOAD_INFO", "");
    match mode.as_str() {
        "shared" => return None,
        "dedicated" => {}
        _ => {
            env.reject("PROXY_MODE", mode, "use shared or dedicated");
            return None;
        }
    }
    let parts: Vec<&str> = named.split('/').collect();
    if let [namespace, name, service_account] = parts[..]
        && parts.iter().all(|part| !part.is_empty())
    {
        return Some(WorkloadName {
            name: name.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        });
    }
    let why = "PROXY_MODE=dedicated needs the workload: namespace/name/service-account";
    env.reject("PROXY_WORKLOAD_INFO", named, why);
    None
}

/// istio-cni comes with its own rules in the pods; without it there is only our capture. Who runs a process for one
/// workload makes such rules, too.
pub(super) fn redirection(env: &mut Reader<'_>, source: &PodSource) -> Redirection {
    let read = |text: &str| match text {
        "ebpf" => Ok(Redirection::Steered),
        "cni" => Ok(Redirection::Rewritten),
        _ => Err("use ebpf or cni".to_owned()),
    };
    let said = env.parse_with("LEYLINE_CAPTURE", read);
    match source {
        PodSource::Zds(_) => said.unwrap_or(Redirection::Rewritten),
        PodSource::Dedicated(_) => {
            if said == Some(Redirection::Steered) {
                let why = "not with PROXY_MODE=dedicated: our capture is of a node's pods";
                env.reject("LEYLINE_CAPTURE", "ebpf", why);
            }
            Redirection::Rewritten
        }
        PodSource::ControlPlane => {
            if said == Some(Redirection::Rewritten) {
                let why =
                    "only with LEYLINE_ENROLMENT=zds: without istio-cni nobody makes its rules";
                env.reject("LEYLINE_CAPTURE", "cni", why);
            }
            Redirection::Steered
        }
    }
}

pub(super) fn port_use(env: &mut Reader<'_>) -> PortUse {
    if env.bool("INPOD_PORT_REUSE", true) {
        PortUse::Shared
    } else {
        PortUse::Exclusive
    }
}

/// Our own capture is of connections; rules of others may turn DNS alone to us.
pub(super) fn carries(env: &mut Reader<'_>, redirection: Redirection, dns: bool) -> Carries {
    if env.bool("ENABLE_PROXY", true) {
        return Carries::Connections;
    }
    if !dns {
        let why = "ztunnel run without any servers enabled: ISTIO_META_DNS_CAPTURE is off too";
        env.reject("ENABLE_PROXY", false, why);
    } else if redirection == Redirection::Steered {
        let why = "our capture turns connections here; only with the rules of others (istio-cni's)";
        env.reject("ENABLE_PROXY", false, why);
    }
    Carries::Nothing
}

#[cfg(test)]
mod tests {
    use leyline_runtime::env::MapEnv;

    use super::*;

    #[test]
    fn who_names_the_pods_and_who_turns_their_connections() {
        let check = |vars: &[(&str, &str)], source: PodSource, expected: Redirection| {
            let pairs = vars.iter();
            let env = MapEnv(
                pairs
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            );
            let mut reader = Reader::new(&env);
            let read = PodSource::read(&mut reader);
            let redirected = redirection(&mut reader, &read);
            reader.finish().unwrap();
            assert_eq!((read, redirected), (source, expected), "{vars:?}");
        };
        let zds = |path: &str| PodSource::Zds(path.into());
        check(&[], PodSource::ControlPlane, Redirection::Steered);
        let chart = ("INPOD_ENABLED", "true");
        check(&[chart], zds(ZDS_SOCKET), Redirection::Rewritten);
        let own = ("LEYLINE_ENROLMENT", "controlplane");
        check(&[chart, own], PodSource::ControlPlane, Redirection::Steered);
        let path = ("INPOD_UDS", "/a/b");
        check(&[path], zds("/a/b"), Redirection::Rewritten);
        let ebpf = ("LEYLINE_CAPTURE", "ebpf");
        check(&[path, ebpf], zds("/a/b"), Redirection::Steered);
        let asked = ("LEYLINE_ENROLMENT", "zds");
        check(&[asked], zds(ZDS_SOCKET), Redirection::Rewritten);
        let mode = ("PROXY_MODE", "dedicated");
        let named = ("PROXY_WORKLOAD_INFO", "shop/web-1/web");
        let workload = WorkloadName {
            name: "web-1".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        };
        let dedicated = PodSource::Dedicated(workload);
        check(&[mode, named, chart], dedicated, Redirection::Rewritten);
    }

    #[test]
    fn a_process_for_one_workload_must_be_told_which() {
        for vars in [
            &[("PROXY_MODE", "dedicated")][..],
            &[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "a/b")],
            &[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "a//b")],
            &[
                ("PROXY_MODE", "dedicated"),
                ("PROXY_WORKLOAD_INFO", "a/b/c/d"),
            ],
            &[("PROXY_MODE", "sidecar"), ("PROXY_WORKLOAD_INFO", "a/b/c")],
            &[
                ("PROXY_MODE", "dedicated"),
                ("PROXY_WORKLOAD_INFO", "a/b/c"),
                ("LEYLINE_CAPTURE", "ebpf"),
            ],
        ] {
            let pairs = vars.iter();
            let env = MapEnv(
                pairs
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            );
            let mut reader = Reader::new(&env);
            let source = PodSource::read(&mut reader);
            redirection(&mut reader, &source);
            assert!(reader.finish().is_err(), "{vars:?}");
        }
    }

    #[test]
    fn dns_alone_is_for_the_rules_of_others() {
        let check = |redirection, dns, fits: bool| {
            let env = MapEnv::from([("ENABLE_PROXY", "false")]);
            let mut reader = Reader::new(&env);
            assert_eq!(carries(&mut reader, redirection, dns), Carries::Nothing);
            assert_eq!(reader.finish().is_ok(), fits, "{redirection:?} {dns}");
        };
        check(Redirection::Rewritten, true, true);
        check(Redirection::Rewritten, false, false);
        check(Redirection::Steered, true, false);
    }

    #[test]
    fn rules_that_nobody_makes_are_refused() {
        let env = MapEnv::from([("LEYLINE_CAPTURE", "cni")]);
        let mut reader = Reader::new(&env);
        redirection(&mut reader, &PodSource::ControlPlane);
        assert!(reader.finish().is_err());
    }
}
