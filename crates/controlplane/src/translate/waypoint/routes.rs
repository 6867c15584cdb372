//! Rules to Envoy's routes: one `RouteConfiguration` for each HTTP port of a service, in a resource of its own, so that a
//! change of one rule is one small resource (facts A.7 has the same inline in the listener).

mod filters;
mod matching;

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::{
        core::v3::{
            DataSource, HeaderValue, HeaderValueOption, data_source::Specifier,
            header_value_option::HeaderAppendAction,
        },
        route::v3::{
            Decorator, DirectResponseAction, RedirectAction, RetryPolicy as ProtoRetry, Route,
            RouteAction, RouteConfiguration, VirtualHost, WeightedCluster,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            retry_policy::{
                RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate::ConfigType,
                retry_priority::ConfigType as PriorityConfig,
            },
            route::Action as RouteActionKind,
            route_action::{
                ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, HostRewriteSpecifier,
                RequestMirrorPolicy,
            },
            weighted_cluster::{ClusterWeight, cluster_weight},
        },
    },
    extensions::retry::{
        host::previous_hosts::v3::PreviousHostsPredicate,
        priority::previous_priorities::v3::PreviousPrioritiesConfig,
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

use super::{
    pb,
    rule::{
        Action, Backend, Changes, HeaderChanges, HttpRule, Mirror, PathMatch, PathRewrite,
        Redirect, RedirectPort, RequestMatch, Retry, RetryHosts, RetryLocalities, RetryPolicy,
        Target,
    },
    view::ServiceView,
};
use crate::translate::services::Resolution;

/// The cluster that never is: its share of requests is answered 500 (facts A.5).
pub(super) const UNKNOWN_CLUSTER: &str = "UnknownService";
/// Of Istio's default policy (facts A.7).
const DEFAULT_RETRY_ON: [&str; 5] = [
    "connect-failure",
    "refused-stream",
    "unavailable",
    "cancelled",
    "retriable-status-codes",
];
const DEFAULT_ATTEMPTS: u32 = 2;
/// How often another endpoint is drawn when one is drawn that failed before.
const HOST_ATTEMPTS: i64 = 5;
const MAX_DIRECT_RESPONSE_BYTES: u32 = 1 << 20;

/// Gives the name of the cluster of a target, of which there may be none.
pub(super) trait Clusters {
    fn cluster(&self, target: &Target) -> String;
    /// How requests to the service of these routes are tied to endpoints.
    fn hash_policies(&self, target: &Target) -> Vec<HashPolicy>;
}

/// What the routes are of.
pub(super) struct Table<'a> {
    /// Of the resource, which is that of the service's own cluster.
    pub(super) name: &'a str,
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// Of routes that say nothing of retries.
    pub(super) default_retry: Retry,
    pub(super) domain: Domain,
}

/// Whose requests they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    /// The address decided; the host of a request may be anything.
    Any,
    /// Those of the service's host, which stands for many; others get 404.
    Host,
}

impl Domain {
    pub(super) fn of(service: &ServiceView<'_>) -> Self {
        match service.resolution {
            Resolution::Request => Self::Host,
            Resolution::Address | Resolution::Names | Resolution::OneName | Resolution::Client => {
                Self::Any
            }
        }
    }
}

/// All routes of one port; where none of the rules takes everything, the rest gets 404, as with Envoy.
pub(super) fn table(
    table: &Table<'_>,
    rules: &[HttpRule],
    clusters: &impl Clusters,
) -> RouteConfiguration {
    let default = HttpRule {
        name: "default".to_owned(),
        action: Action::Forward(vec![Backend {
            target: Target::Service {
                host: table.host.to_owned(),
                port: Some(table.port),
                subset: None,
            },
            weight: 1,
            headers: HeaderChanges::default(),
            host: None,
        }]),
        ..HttpRule::default()
    };
    let rules = if rules.is_empty() {
        std::slice::from_ref(&default)
    } else {
        rules
    };
    RouteConfiguration {
        name: table.name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{}", table.port),
            domains: vec![match table.domain {
                Domain::Any => "*".to_owned(),
                Domain::Host => table.host.to_owned(),
            }],
            routes: rules
                .iter()
                .flat_map(|rule| routes_of(table, rule, clusters))
                .collect(),
            ..VirtualHost::default()
        }],
        ignore_port_in_host_matching: table.domain == Domain::Host,
        validate_clusters: pb::boolean(false),
        max_direct_response_body_size_bytes: pb::uint32(MAX_DIRECT_RESPONSE_BYTES),
        ..RouteConfiguration::default()
    }
}

/// One for each of the alternatives.
fn routes_of(table: &Table<'_>, rule: &HttpRule, clusters: &impl Clusters) -> Vec<Route> {
    let everything = [RequestMatch::default()];
    let matches = if rule.matches.is_empty() {
        &everything[..]
    } else {
        &rule.matches
    };
    matches
        .iter()
        .map(|one| route(table, rule, one, clusters))
        .collect()
}

fn route(
    table: &Table<'_>,
    rule: &HttpRule,
    matched: &RequestMatch,
    clusters: &impl Clusters,
) -> Route {
    let (request, response) = (&rule.headers.request, &rule.headers.response);
    Route {
        name: rule.name.clone(),
        r#match: Some(matching::route_match(matched)),
        action: Some(match &rule.action {
            Action::Forward(backends) => {
                let mut action = forward(rule, matched, backends, clusters);
                let retry = match &rule.retry {
                    Retry::Default => &table.default_retry,
                    own => own,
                };
                action.retry_policy = retry_policy(retry, backends, clusters);
                RouteActionKind::Route(action)
            }
            Action::Redirect(redirect) => {
                RouteActionKind::Redirect(redirect_action(redirect, matched))
            }
            Action::Respond { status, body } => {
                RouteActionKind::DirectResponse(direct_response(*status, body))
            }
        }),
        decorator: Some(Decorator {
            operation: format!("{}:{}/*", table.host, table.port),
            propagate: None,
        }),
        request_headers_to_add: headers_to_add(request),
        request_headers_to_remove: request.remove.clone(),
        response_headers_to_add: headers_to_add(response),
        response_headers_to_remove: response.remove.clone(),
        typed_per_filter_config: filters::per_filter(rule),
        ..Route::default()
    }
}

#[expect(
    deprecated,
    reason = "istiod sets max_grpc_timeout, so that a client's grpc-timeout counts up to the route's"
)]
fn forward(
    rule: &HttpRule,
    matched: &RequestMatch,
    backends: &[Backend],
    clusters: &impl Clusters,
) -> RouteAction {
    let mut action = RouteAction {
        cluster_specifier: Some(cluster_specifier(backends, clusters)),
        // None is no limit here; Envoy's own default would be 15 s.
        timeout: pb::duration(rule.timeout.unwrap_or_default()),
        max_grpc_timeout: rule
            .timeout
            .map_or_else(|| pb::duration(Duration::ZERO), pb::duration),
        request_mirror_policies: rule
            .mirrors
            .iter()
            .map(|mirror| mirror_policy(mirror, clusters))
            .collect(),
        host_rewrite_specifier: rule
            .rewrite
            .host
            .clone()
            .map(HostRewriteSpecifier::HostRewriteLiteral),
        hash_policy: backends
            .first()
            .map(|backend| clusters.hash_policies(&backend.target))
            .unwrap_or_default(),
        cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError.into(),
        ..RouteAction::default()
    };
    match &rule.rewrite.path {
        PathRewrite::None => {}
        PathRewrite::Matched(text) => match &matched.path {
            PathMatch::Regex(pattern) => {
                action.regex_rewrite = Some(substitute(pattern, &escaped(text)));
            }
            PathMatch::Any
            | PathMatch::Exact(..)
            | PathMatch::Prefix(..)
            | PathMatch::Segments(_) => action.prefix_rewrite = text.clone(),
        },
        PathRewrite::Segments(text) => {
            let (pattern, substitution) = segments_rewrite(&matched.path, text);
            action.regex_rewrite = Some(substitute(&pattern, &substitution));
        }
        PathRewrite::Full(text) => {
            action.regex_rewrite = Some(substitute("/.*", &escaped(text)));
        }
        PathRewrite::Regex {
            pattern,
            substitution,
        } => action.regex_rewrite = Some(substitute(pattern, substitution)),
    }
    action
}

/// A rewrite of whole segments: what is left of the path keeps exactly one slash before it.
fn segments_rewrite(matched: &PathMatch, text: &str) -> (String, String) {
    let prefix = match matched {
        PathMatch::Segments(prefix) => prefix.trim_end_matches('/'),
        PathMatch::Any | PathMatch::Exact(..) | PathMatch::Prefix(..) | PathMatch::Regex(_) => "",
    };
    let text = text.trim_end_matches('/');
    if text.is_empty() {
        return (format!("^{}/*", ::regex::escape(prefix)), "/".to_owned());
    }
    // A further segment follows a slash of its own.
    (
        format!("^{}(/?)", ::regex::escape(prefix)),
        format!("{}\\1", escaped(text)),
    )
}

fn substitute(pattern: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(pb::regex(pattern)),
        substitution: substitution.to_owned(),
    }
}

/// Backslashes mean groups in a substitution.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
}

fn cluster_specifier(backends: &[Backend], clusters: &impl Clusters) -> ClusterSpecifier {
    let total: u32 = backends.iter().map(|backend| backend.weight).sum();
    match backends {
        [only]
            if only.headers == HeaderChanges::default()
                && only.host.is_none()
                && only.weight > 0 =>
        {
            ClusterSpecifier::Cluster(clusters.cluster(&only.target))
        }
        // Nothing may be sent anywhere: an error for every request.
        _ if total == 0 => ClusterSpecifier::Cluster(UNKNOWN_CLUSTER.to_owned()),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: backends
                .iter()
                .map(|backend| cluster_weight(backend, clusters))
                .collect(),
            ..WeightedCluster::default()
        }),
    }
}

fn cluster_weight(backend: &Backend, clusters: &impl Clusters) -> ClusterWeight {
    let (request, response) = (&backend.headers.request, &backend.headers.response);
    ClusterWeight {
        name: clusters.cluster(&backend.target),
        weight: pb::uint32(backend.weight),
        request_headers_to_add: headers_to_add(request),
        request_headers_to_remove: request.remove.clone(),
        response_headers_to_add: headers_to_add(response),
        response_headers_to_remove: response.remove.clone(),
        host_rewrite_specifier: backend
            .host
            .clone()
            .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        ..ClusterWeight::default()
    }
}

fn headers_to_add(changes: &Changes) -> Vec<HeaderValueOption> {
    let option = |(name, value): &(String, String), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            key: name.clone(),
            value: value.clone(),
            raw_value: Vec::new(),
        }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    };
    let set = changes
        .set
        .iter()
        .map(|header| option(header, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = changes
        .add
        .iter()
        .map(|header| option(header, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

fn retry_policy(
    retry: &Retry,
    backends: &[Backend],
    clusters: &impl Clusters,
) -> Option<ProtoRetry> {
    // A tied request has one endpoint only.
    let tied = backends
        .first()
        .is_some_and(|backend| !clusters.hash_policies(&backend.target).is_empty());
    let default;
    let policy = match retry {
        Retry::Never => return None,
        Retry::Custom(policy) => policy,
        Retry::Default => {
            default = RetryPolicy {
                attempts: DEFAULT_ATTEMPTS,
                on: DEFAULT_RETRY_ON.map(str::to_owned).into(),
                codes: Vec::new(),
                per_try: None,
                backoff: None,
                hosts: if tied {
                    RetryHosts::Any
                } else {
                    RetryHosts::Others
                },
                localities: RetryLocalities::Any,
            };
            &default
        }
    };
    let predicate = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pb::any(&PreviousHostsPredicate {}))),
    };
    Some(ProtoRetry {
        retry_on: policy.on.join(","),
        num_retries: pb::uint32(policy.attempts),
        per_try_timeout: policy.per_try.and_then(pb::duration),
        retriable_status_codes: policy.codes.clone(),
        retry_back_off: policy.backoff.map(|base| RetryBackOff {
            base_interval: pb::duration(base),
            max_interval: None,
        }),
        retry_host_predicate: match policy.hosts {
            RetryHosts::Others => vec![predicate],
            RetryHosts::Any => Vec::new(),
        },
        retry_priority: match policy.localities {
            RetryLocalities::Any => None,
            RetryLocalities::Others => Some(beyond_tried_priorities()),
        },
        host_selection_retry_max_attempts: HOST_ATTEMPTS,
        ..ProtoRetry::default()
    })
}

/// As istiod says it: after each two tries.
fn beyond_tried_priorities() -> RetryPriority {
    let config = PreviousPrioritiesConfig {
        update_frequency: 2,
    };
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(PriorityConfig::TypedConfig(pb::any(&config))),
    }
}

fn mirror_policy(mirror: &Mirror, clusters: &impl Clusters) -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster: clusters.cluster(&mirror.target),
        runtime_fraction: pb::runtime_fraction(mirror.share),
        ..RequestMirrorPolicy::default()
    }
}

fn redirect_action(redirect: &Redirect, matched: &RequestMatch) -> RedirectAction {
    let code = match redirect.code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let port = match (redirect.port, redirect.scheme.as_deref()) {
        (RedirectPort::Number(port), _) => port,
        (RedirectPort::OfScheme, Some("https")) => 443,
        (RedirectPort::OfScheme, _) => 80,
        (RedirectPort::Kept, _) => 0,
    };
    let path = match &redirect.path {
        PathRewrite::None => None,
        PathRewrite::Full(text) => Some(PathRewriteSpecifier::PathRedirect(text.clone())),
        PathRewrite::Matched(text) => Some(PathRewriteSpecifier::PrefixRewrite(text.clone())),
        PathRewrite::Segments(text) => {
            let (pattern, substitution) = segments_rewrite(&matched.path, text);
            Some(PathRewriteSpecifier::RegexRewrite(substitute(
                &pattern,
                &substitution,
            )))
        }
        PathRewrite::Regex {
            pattern,
            substitution,
        } => Some(PathRewriteSpecifier::RegexRewrite(substitute(
            pattern,
            substitution,
        ))),
    };
    RedirectAction {
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: port.into(),
        response_code: code.into(),
        strip_query: false,
        scheme_rewrite_specifier: redirect
            .scheme
            .clone()
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
    }
}

fn direct_response(status: u32, body: &[u8]) -> DirectResponseAction {
    DirectResponseAction {
        status,
        body: (!body.is_empty()).then(|| DataSource {
            specifier: Some(Specifier::InlineBytes(body.to_vec())),
            ..DataSource::default()
        }),
        ..DirectResponseAction::default()
    }
}
