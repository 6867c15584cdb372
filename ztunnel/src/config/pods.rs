//! Where the pods of this node come from, and who turns their connections to us.

use std::path::PathBuf;

use leyline_net::Redirection;
use leyline_runtime::env::Reader;
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

impl PodSource {
    /// As said by `LEYLINE_ENROLMENT`; else istio-cni where Istio's chart rolled this process out (it sets
    /// `INPOD_ENABLED`) or its socket is named, and our control plane elsewhere.
    pub(super) fn read(env: &mut Reader<'_>) -> Self {
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

/// istio-cni comes with its own rules in the pods; without it there is only our capture.
pub(super) fn redirection(env: &mut Reader<'_>, source: &PodSource) -> Redirection {
    let read = |text: &str| match text {
        "ebpf" => Ok(Redirection::Steered),
        "cni" => Ok(Redirection::Rewritten),
        _ => Err("use ebpf or cni".to_owned()),
    };
    let said = env.parse_with("LEYLINE_CAPTURE", read);
    match source {
        PodSource::Zds(_) => said.unwrap_or(Redirection::Rewritten),
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
    }

    #[test]
    fn rules_that_nobody_makes_are_refused() {
        let env = MapEnv::from([("LEYLINE_CAPTURE", "cni")]);
        let mut reader = Reader::new(&env);
        redirection(&mut reader, &PodSource::ControlPlane);
        assert!(reader.finish().is_err());
    }
}
