//! `ztunnel explain`: what would become of a connection, from the state of this moment, in the order in which the proxies
//! decide: where it goes, who proves what, and which policies judge it at the other end.
//!
//! The route is [`Snapshot::explain_outbound`]'s, which asks the function that connections are routed by; the verdict of
//! policies is `authz`'s. What is shown besides cannot change either.

pub(crate) mod client;
mod judgement;
mod text;

use std::net::{IpAddr, SocketAddr};

use leyline_authz::{Action, Scope};
use leyline_state::{
    Candidate, CandidateOutcome, Destination, OutboundRoute, RouteExplanation, Snapshot,
    WaypointExplanation, Workload,
};
use leyline_tls::CertificateStore;
use leyline_types::{Identity, OrigDst};
use serde::Serialize;

use self::judgement::{Reached, judge, without_policies};
pub(crate) use self::text::render;

/// A question: `NAMESPACE/POD` and `ADDRESS:PORT`, or `HOST:PORT` of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) from: String,
    pub(crate) to: String,
}

/// Everything that is told.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pub(crate) source: WorkloadShown,
    pub(crate) destination: DestinationShown,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waypoint: Option<WaypointShown>,
    /// The workloads of the service, and what becomes of each.
    pub(crate) endpoints: Vec<EndpointShown>,
    pub(crate) route: RouteShown,
    /// What the source proves who it is with; none without a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<CertificateShown>,
    /// The policies at the workload where the connection is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policies: Option<PoliciesShown>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkloadShown {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) identity: Identity,
    pub(crate) node: String,
    pub(crate) protocol: leyline_state::Protocol,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DestinationShown {
    pub(crate) asked: SocketAddr,
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// What it is, in words.
    pub(crate) text: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WaypointShown {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) instances: Vec<EndpointShown>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointShown {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) usable: bool,
    /// Where it is reached, or why it is not picked.
    pub(crate) text: String,
    /// Whether this very answer picked it; another connection may pick another.
    pub(crate) picked: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteShown {
    pub(crate) kind: &'static str,
    pub(crate) text: String,
    /// Who may be at the other end.
    pub(crate) expected: Vec<Identity>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateShown {
    pub(crate) identity: Identity,
    /// As in `/config_dump`, or that it is not asked for yet.
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) valid_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expiration_time: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoliciesShown {
    /// Whose policies.
    pub(crate) workload: String,
    /// What they see of the connection.
    pub(crate) seen: String,
    pub(crate) list: Vec<PolicyShown>,
    /// Named by the workload, and not known.
    pub(crate) missing: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyShown {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) action: Action,
    pub(crate) dry_run: bool,
    pub(crate) matches: bool,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

/// Answers a question.
///
/// # Errors
/// When it is not one: a sentence for who asked.
pub(crate) fn explain(
    snapshot: &Snapshot,
    certificates: &CertificateStore,
    question: &Question,
) -> Result<Explanation, String> {
    let source = find_source(snapshot, &question.from)?;
    let target = find_target(snapshot, source, &question.to)?;
    let explained = snapshot.explain_outbound(source, OrigDst::new(target), &mut rand::rng());
    let reached = Reached::of(&explained.route);
    let certificate = reached
        .as_ref()
        .filter(|reached| reached.mutual_tls)
        .map(|_| certificate(certificates, &source.identity));
    let judged = reached.map(|reached| judge(snapshot, source, &reached));
    let (policies, verdict) = match judged {
        Some((policies, verdict)) => (Some(policies), verdict),
        None => (None, without_policies(&explained.route)),
    };
    let verdict = match &certificate {
        Some(certificate) if verdict.allowed && certificate.state.starts_with("Unavailable") => {
            let reason = format!("the source has no certificate: {}", certificate.state);
            Verdict {
                allowed: false,
                reason,
            }
        }
        Some(_) | None => verdict,
    };
    Ok(Explanation {
        source: WorkloadShown::new(source),
        destination: destination(target, &explained.destination),
        waypoint: explained
            .waypoint
            .as_ref()
            .map(|one| waypoint(one, &explained)),
        endpoints: endpoints(&explained.candidates, &explained.route),
        route: route(&explained.route),
        certificate,
        policies,
        verdict,
    })
}

/// A pod by namespace and name; of several lives of a name the ready one.
fn find_source<'a>(snapshot: &'a Snapshot, from: &str) -> Result<&'a Workload, String> {
    let (namespace, name) = from
        .split_once('/')
        .ok_or_else(|| format!("`{from}` is not NAMESPACE/POD"))?;
    let mut found: Vec<&Workload> = snapshot
        .workloads()
        .filter(|one| {
            *one.name.namespace.as_str() == *namespace && *one.name.name.as_str() == *name
        })
        .collect();
    found.sort_by_key(|one| {
        (
            one.status != leyline_state::Health::Healthy,
            one.uid.clone(),
        )
    });
    found
        .first()
        .copied()
        .ok_or_else(|| format!("no workload {from} is known here"))
}

/// An address as it is; a service by its host name at its first address.
fn find_target(snapshot: &Snapshot, source: &Workload, to: &str) -> Result<SocketAddr, String> {
    if let Ok(addr) = to.parse::<SocketAddr>() {
        return Ok(addr);
    }
    let (host, port) = to
        .rsplit_once(':')
        .ok_or_else(|| format!("`{to}` is not ADDRESS:PORT"))?;
    let port: u16 = port
        .parse()
        .map_err(|error| format!("`{port}` is not a port: {error}"))?;
    let service = snapshot
        .service_by_host(host, &source.name.namespace)
        .ok_or_else(|| {
            format!(
                "`{host}` is neither an address nor the host name of a service that {} sees",
                source.name.namespace
            )
        })?;
    let vip = service.vips.first().ok_or_else(|| {
        format!(
            "service {} has no address; ask for one of its pods",
            service.key()
        )
    })?;
    Ok(SocketAddr::new(vip.address, port))
}

impl WorkloadShown {
    fn new(workload: &Workload) -> Self {
        Self {
            name: short(workload),
            uid: workload.uid.to_string(),
            addresses: workload.addresses.to_vec(),
            identity: workload.identity.clone(),
            node: workload.node.to_string(),
            protocol: workload.protocol,
        }
    }
}

fn short(workload: &Workload) -> String {
    format!("{}/{}", workload.name.namespace, workload.name.name)
}

fn destination(asked: SocketAddr, found: &Destination) -> DestinationShown {
    let (kind, name, text) = match found {
        Destination::OwnListener => ("proxy", None, "a port of the proxy itself".to_owned()),
        Destination::Service { service, port } => {
            let key = service.key().to_string();
            let port = match port {
                Some(port) => match port.target {
                    Some(target) => format!("port {} to {target}", port.port),
                    None => format!("port {}, each endpoint has its own", port.port),
                },
                None => format!("without a port {}", asked.port()),
            };
            (
                "service",
                Some(key.clone()),
                format!("service {key}, {port}"),
            )
        }
        Destination::Workload(workload) => {
            let name = short(workload);
            let text = format!("workload {name}, by its own address");
            ("workload", Some(name), text)
        }
        Destination::Nobody => ("none", None, "nobody of the mesh".to_owned()),
    };
    DestinationShown {
        asked,
        kind,
        name,
        text,
    }
}

fn waypoint(shown: &WaypointExplanation, explained: &RouteExplanation) -> WaypointShown {
    let text = if shown.source_is_instance {
        "the source is an instance of it: its connections go on directly"
    } else {
        "all traffic to the destination goes through it"
    };
    WaypointShown {
        name: shown.gateway.to_string(),
        text: text.to_owned(),
        instances: endpoints(&shown.instances, &explained.route),
    }
}

fn endpoints(candidates: &[Candidate], route: &OutboundRoute) -> Vec<EndpointShown> {
    let picked = Reached::of(route).map(|reached| reached.workload.uid.clone());
    candidates
        .iter()
        .map(|candidate| EndpointShown {
            name: short(&candidate.workload),
            uid: candidate.workload.uid.to_string(),
            usable: candidate.outcome.is_usable(),
            text: outcome(&candidate.outcome, &candidate.workload),
            picked: picked.as_ref() == Some(&candidate.workload.uid),
        })
        .collect()
}

fn outcome(outcome: &CandidateOutcome, workload: &Workload) -> String {
    match outcome {
        CandidateOutcome::Usable(addr) => addr.to_string(),
        CandidateOutcome::UsableBehindGateway => {
            format!("in network {}, through its gateway", workload.network)
        }
        CandidateOutcome::Farther => "another one is nearer".to_owned(),
        CandidateOutcome::NotReady => "not ready".to_owned(),
        CandidateOutcome::NoCapacity => "its capacity is 0".to_owned(),
        CandidateOutcome::OtherLocality => {
            "not in the locality that the service demands".to_owned()
        }
        CandidateOutcome::OtherNetwork => {
            format!(
                "in network {}, into which no gateway is known",
                workload.network
            )
        }
        CandidateOutcome::Pending => "it shall be captured and is not yet".to_owned(),
        CandidateOutcome::HostnameOnly => {
            format!("only its host name {} is known", workload.hostname)
        }
        CandidateOutcome::NoAddressOrPort => {
            "no address of a family that the service serves, or no such port".to_owned()
        }
    }
}

fn route(route: &OutboundRoute) -> RouteShown {
    let (kind, text, expected) = match route {
        OutboundRoute::Hbone(route) => (
            "hbone",
            format!(
                "HBONE tunnel to {}, asking for {}",
                route.tunnel, route.authority
            ),
            route.expected.to_vec(),
        ),
        OutboundRoute::DoubleHbone(route) => (
            "doubleHbone",
            format!(
                "HBONE tunnel to the network gateway {}, in it a second one, asking for {}",
                route.gateway.tunnel, route.authority
            ),
            route.expected.to_vec(),
        ),
        OutboundRoute::Tcp { target, .. } => (
            "tcp",
            format!("plaintext to {target}: the workload is not enrolled"),
            Vec::new(),
        ),
        OutboundRoute::Passthrough { target, .. } => (
            "passthrough",
            format!("plaintext to {target}, as it was asked for"),
            Vec::new(),
        ),
        OutboundRoute::Refused(refusal) => (
            "refused",
            format!("refused ({}): {refusal}", refusal.reason()),
            Vec::new(),
        ),
    };
    RouteShown {
        kind,
        text,
        expected,
    }
}

fn certificate(certificates: &CertificateStore, identity: &Identity) -> CertificateShown {
    let known = certificates.dump();
    let known = known.into_iter().find(|one| one.identity == *identity);
    let leaf = known.as_ref().and_then(|one| one.cert_chain.first());
    CertificateShown {
        identity: identity.clone(),
        valid_from: leaf.map(|leaf| leaf.valid_from.clone()),
        expiration_time: leaf.map(|leaf| leaf.expiration_time.clone()),
        state: known.map_or_else(
            || "not held here: it is asked for when the source's node needs it".to_owned(),
            |one| one.state,
        ),
    }
}
