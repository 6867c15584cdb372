//! What a route does with a request.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::{
        core::v3::data_source::Specifier,
        route::v3::{
            self as proto,
            redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
            route_action::{ClusterSpecifier, HostRewriteSpecifier},
        },
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};
use http::StatusCode;
use leyline_types::Str;
use regex::Regex;

use super::{hash::HashPolicy, headers::HeaderOps, matching::Fraction, retry::RetryPolicy};
use crate::config::{
    any::limit,
    error::{At, Compiled, Unsupported},
    text::substitution,
    weighted::Weighted,
};

/// Envoy's default for a route that says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's limit for the body of a direct response of Istio's tables.
const MAX_DIRECT_BODY: usize = 1 << 20;

/// Forward, or answer here.
#[derive(Debug)]
pub(crate) enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Direct { status: StatusCode, body: Bytes },
}

/// To one of some clusters.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) clusters: Weighted<Target>,
    pub(crate) path: Option<PathRewrite>,
    pub(crate) host: HostRewrite,
    /// For the whole exchange with retries; none is no limit.
    pub(crate) timeout: Option<Duration>,
    /// Where it is set, gRPC requests say themselves how long they may take, up to this; none is no limit.
    pub(crate) grpc_timeout: Option<Option<Duration>>,
    /// Where it is set, nothing may move for so long, whatever the chain says; none is no limit.
    pub(crate) stream_idle: Option<Option<Duration>>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) mirrors: Vec<Mirror>,
    /// What ties requests to endpoints, where the cluster balances by hash.
    pub(crate) hash: Vec<HashPolicy>,
    /// Status where the cluster is not there.
    pub(crate) unknown_cluster: StatusCode,
}

/// A cluster, with what is special on the way to it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) cluster: Str,
    pub(crate) headers: HeaderOps,
    pub(crate) host: HostRewrite,
}

/// Where a copy of a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    pub(crate) cluster: Str,
    pub(crate) fraction: Option<Fraction>,
    /// `-shadow` is appended to the host.
    pub(crate) mark_host: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum PathRewrite {
    /// Instead of the prefix that matched.
    Prefix(String),
    /// Instead of all but the query.
    Full(String),
    Regex(Regex, String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum HostRewrite {
    #[default]
    Keep,
    Literal(String),
}

#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) status: StatusCode,
    pub(crate) scheme: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<PathRewrite>,
    pub(crate) strip_query: bool,
}

impl Action {
    pub(super) fn compile(route: &proto::Route, host: &proto::VirtualHost) -> Compiled<Self> {
        match &route.action {
            Some(proto::route::Action::Route(action)) => {
                let forward = Forward::compile(action, host).at("route")?;
                Ok(Self::Forward(Box::new(forward)))
            }
            Some(proto::route::Action::Redirect(action)) => {
                Redirect::compile(action).at("redirect").map(Self::Redirect)
            }
            Some(proto::route::Action::DirectResponse(action)) => {
                direct(action).at("direct_response")
            }
            Some(
                proto::route::Action::FilterAction(_)
                | proto::route::Action::NonForwardingAction(_),
            ) => Err(Unsupported::new("filter_action or non_forwarding_action")),
            None => Err(Unsupported::missing("action")),
        }
    }
}

impl Forward {
    fn compile(action: &proto::RouteAction, host: &proto::VirtualHost) -> Compiled<Self> {
        if action.path_rewrite_policy.is_some() || action.internal_redirect_policy.is_some() {
            return Err(Unsupported::new(
                "path_rewrite_policy or internal_redirect_policy",
            ));
        }
        let retry = action.retry_policy.as_ref().or(host.retry_policy.as_ref());
        let mut mirrors = Vec::new();
        for mirror in &action.request_mirror_policies {
            mirrors.push(Mirror::compile(mirror).at("request_mirror_policies")?);
        }
        let timeout = match &action.timeout {
            None => Some(DEFAULT_TIMEOUT),
            Some(_) => limit(action.timeout.as_ref()).at("timeout")?,
        };
        Ok(Self {
            clusters: targets(action)?,
            path: path_rewrite(action)?,
            host: host_rewrite(action.host_rewrite_specifier.as_ref())?,
            timeout,
            stream_idle: action
                .idle_timeout
                .as_ref()
                .map(|idle| limit(Some(idle)))
                .transpose()
                .at("idle_timeout")?,
            grpc_timeout: grpc_timeout(action).at("max_grpc_timeout")?,
            retry: retry
                .map(RetryPolicy::compile)
                .transpose()
                .at("retry_policy")?,
            mirrors,
            hash: HashPolicy::compile_all(&action.hash_policy)?,
            unknown_cluster: match action.cluster_not_found_response_code {
                1 => StatusCode::NOT_FOUND,
                2 => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
        })
    }
}

#[expect(
    deprecated,
    reason = "istiod and our control plane use the older of the two ways to say it"
)]
fn grpc_timeout(action: &proto::RouteAction) -> Compiled<Option<Option<Duration>>> {
    let newer = action.max_stream_duration.as_ref();
    if newer.is_some_and(|newer| newer.max_stream_duration.is_some()) {
        return Err(Unsupported::new("max_stream_duration"));
    }
    let newer = newer.and_then(|newer| newer.grpc_timeout_header_max.as_ref());
    let most = newer.or(action.max_grpc_timeout.as_ref());
    most.map(|most| limit(Some(most))).transpose()
}

fn targets(action: &proto::RouteAction) -> Compiled<Weighted<Target>> {
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Ok(Weighted::one(Target {
            cluster: name.as_str().into(),
            headers: HeaderOps::default(),
            host: HostRewrite::Keep,
        })),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            let mut targets = Vec::with_capacity(weighted.clusters.len());
            for (index, cluster) in weighted.clusters.iter().enumerate() {
                let target = Target::compile(cluster).at_item("weighted_clusters", index)?;
                let weight = cluster.weight.as_ref().map_or(0, |weight| weight.value);
                targets.push((weight, target));
            }
            Weighted::new(targets).at("weighted_clusters")
        }
        Some(_) => Err(Unsupported::new(
            "cluster_header or a cluster specifier plugin",
        )),
        None => Err(Unsupported::missing("cluster")),
    }
}

impl Target {
    fn compile(cluster: &proto::weighted_cluster::ClusterWeight) -> Compiled<Self> {
        use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral;
        if !cluster.cluster_header.is_empty() || !cluster.typed_per_filter_config.is_empty() {
            return Err(Unsupported::new(
                "cluster_header or typed_per_filter_config",
            ));
        }
        Ok(Self {
            cluster: cluster.name.as_str().into(),
            headers: HeaderOps::compile(
                &cluster.request_headers_to_remove,
                &cluster.request_headers_to_add,
                &cluster.response_headers_to_remove,
                &cluster.response_headers_to_add,
            )?,
            host: match &cluster.host_rewrite_specifier {
                Some(HostRewriteLiteral(host)) => HostRewrite::Literal(host.clone()),
                None => HostRewrite::Keep,
            },
        })
    }
}

impl Mirror {
    fn compile(mirror: &proto::route_action::RequestMirrorPolicy) -> Compiled<Self> {
        if !mirror.cluster_header.is_empty() || !mirror.request_headers_mutations.is_empty() {
            return Err(Unsupported::new(
                "cluster_header or request_headers_mutations",
            ));
        }
        let fraction = mirror.runtime_fraction.as_ref();
        let fraction = fraction.and_then(|fraction| fraction.default_value.as_ref());
        Ok(Self {
            cluster: mirror.cluster.as_str().into(),
            fraction: fraction.map(Fraction::compile).transpose()?,
            mark_host: !mirror.disable_shadow_host_suffix_append,
        })
    }
}

fn path_rewrite(action: &proto::RouteAction) -> Compiled<Option<PathRewrite>> {
    if let Some(rewrite) = &action.regex_rewrite {
        return regex_rewrite(rewrite).map(Some);
    }
    Ok(if !action.prefix_rewrite.is_empty() {
        Some(PathRewrite::Prefix(action.prefix_rewrite.clone()))
    } else if !action.path_rewrite.is_empty() {
        Some(PathRewrite::Full(action.path_rewrite.clone()))
    } else {
        None
    })
}

/// RE2's `\1` becomes `${1}`.
fn regex_rewrite(rewrite: &RegexMatchAndSubstitute) -> Compiled<PathRewrite> {
    let pattern = rewrite.pattern.as_ref();
    let pattern = pattern.ok_or_else(|| Unsupported::missing("pattern"))?;
    let mut substitute = String::with_capacity(rewrite.substitution.len());
    let mut chars = rewrite.substitution.chars();
    while let Some(char) = chars.next() {
        match (char, char == '\\') {
            ('$', _) => substitute.push_str("$$"),
            (_, true) => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    substitute.push_str(&format!("${{{digit}}}"));
                }
                Some('\\') => substitute.push('\\'),
                Some(_) | None => return Err(Unsupported::new("substitution")),
            },
            (char, false) => substitute.push(char),
        }
    }
    Ok(PathRewrite::Regex(
        substitution(&pattern.regex)?,
        substitute,
    ))
}

fn host_rewrite(specifier: Option<&HostRewriteSpecifier>) -> Compiled<HostRewrite> {
    match specifier {
        None => Ok(HostRewrite::Keep),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Ok(HostRewrite::Literal(host.clone()))
        }
        Some(_) => Err(Unsupported::new("host rewrite that is not literal")),
    }
}

impl Redirect {
    fn compile(action: &proto::RedirectAction) -> Compiled<Self> {
        let status = match action.response_code {
            0 => StatusCode::MOVED_PERMANENTLY,
            1 => StatusCode::FOUND,
            2 => StatusCode::SEE_OTHER,
            3 => StatusCode::TEMPORARY_REDIRECT,
            4 => StatusCode::PERMANENT_REDIRECT,
            _ => return Err(Unsupported::new("response_code")),
        };
        let port = u16::try_from(action.port_redirect);
        let port = port.map_err(|_too_large| Unsupported::new("port_redirect"))?;
        Ok(Self {
            status,
            scheme: match &action.scheme_rewrite_specifier {
                Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
                Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.clone()),
                Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
            },
            host: (!action.host_redirect.is_empty()).then(|| action.host_redirect.clone()),
            port: (port != 0).then_some(port),
            path: match &action.path_rewrite_specifier {
                Some(PathRewriteSpecifier::PathRedirect(path)) => {
                    Some(PathRewrite::Full(path.clone()))
                }
                Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                    Some(PathRewrite::Prefix(prefix.clone()))
                }
                Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => Some(regex_rewrite(rewrite)?),
                Some(PathRewriteSpecifier::PathRewrite(_)) => {
                    return Err(Unsupported::new("path_rewrite"));
                }
                None => None,
            },
            strip_query: action.strip_query,
        })
    }
}

fn direct(action: &proto::DirectResponseAction) -> Compiled<Action> {
    if action.body_format.is_some() {
        return Err(Unsupported::new("body_format"));
    }
    let status = u16::try_from(action.status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let body = action
        .body
        .as_ref()
        .and_then(|body| body.specifier.as_ref());
    let body = match body {
        None => Bytes::new(),
        Some(Specifier::InlineString(text)) => Bytes::from(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => Bytes::from(bytes.clone()),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Err(Unsupported::new("body from a file or the environment"));
        }
    };
    if body.len() > MAX_DIRECT_BODY {
        return Err(Unsupported::new("body of more than 1 MiB"));
    }
    Ok(Action::Direct {
        status: status.ok_or_else(|| Unsupported::new("status"))?,
        body,
    })
}
