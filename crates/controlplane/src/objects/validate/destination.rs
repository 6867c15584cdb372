//! DestinationRule: what Istio's admission refuses.

use super::{
    Invalid,
    http::{self, each, one_of, time},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::destination_rule::{
        ClientTls, ConnectionPool, ConsistentHash, DestinationRule, LoadBalancer, LocalitySetting,
        OutlierDetection, PortPolicy, Subset, TrafficPolicy,
    },
};

/// DestinationRule.
pub(crate) fn destination_rule(object: &DestinationRule, found: &mut Vec<Invalid>) {
    metadata_of(Kind::DestinationRule, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    if spec.host.is_empty() {
        push(found, field.key("host"), "is needed");
    } else {
        http::host(&field.key("host"), &spec.host, found);
    }
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(&field.key("trafficPolicy"), policy, found);
    }
    each(&field.key("subsets"), &spec.subsets, found, subset);
    let mut names: Vec<&str> = spec
        .subsets
        .iter()
        .map(|subset| subset.name.as_str())
        .collect();
    names.sort_unstable();
    if let Some([name, _]) = names.array_windows().find(|[one, next]| one == next) {
        push(
            found,
            field.key("subsets"),
            format!("there are two subsets `{name}`"),
        );
    }
}

fn subset(field: &Field, subset: &Subset, found: &mut Vec<Invalid>) {
    if let Err(reason) = super::text::dns_label(&subset.name) {
        push(found, field.key("name"), reason);
    }
    super::labels(&field.key("labels"), Some(&subset.labels), found);
    if let Some(policy) = &subset.traffic_policy {
        traffic_policy(&field.key("trafficPolicy"), policy, found);
    }
}

fn traffic_policy(field: &Field, policy: &TrafficPolicy, found: &mut Vec<Invalid>) {
    let TrafficPolicy {
        load_balancer,
        connection_pool,
        outlier_detection,
        tls,
        port_level_settings,
        tunnel: _,
        proxy_protocol,
        retry_budget,
    } = policy;
    let parts = PortPolicy {
        port: None,
        load_balancer: load_balancer.clone(),
        connection_pool: connection_pool.clone(),
        outlier_detection: outlier_detection.clone(),
        tls: tls.clone(),
    };
    policy_parts(field, &parts, found);
    each(
        &field.key("portLevelSettings"),
        port_level_settings,
        found,
        |field, policy, found| {
            match &policy.port {
                Some(port) => {
                    http::port(&field.key("port").key("number"), port.number.into(), found)
                }
                None => push(found, field.key("port"), "is needed"),
            }
            policy_parts(field, policy, found);
        },
    );
    if let Some(version) = proxy_protocol.as_ref().and_then(|all| all.version.as_ref()) {
        let field = field.key("proxyProtocol").key("version");
        one_of(&field, version, &["V1", "V2"], found);
    }
    if let Some(percent) = retry_budget.as_ref().and_then(|budget| budget.percent) {
        let field = field.key("retryBudget");
        http::percent(
            &field,
            Some(crate::objects::l7::Percent { value: percent }),
            found,
        );
    }
}

fn policy_parts(field: &Field, policy: &PortPolicy, found: &mut Vec<Invalid>) {
    if let Some(balancer) = &policy.load_balancer {
        load_balancer(&field.key("loadBalancer"), balancer, found);
    }
    if let Some(pool) = &policy.connection_pool {
        connection_pool(&field.key("connectionPool"), pool, found);
    }
    if let Some(outlier) = &policy.outlier_detection {
        outlier_detection(&field.key("outlierDetection"), outlier, found);
    }
    if let Some(tls) = &policy.tls {
        client_tls(&field.key("tls"), tls, found);
    }
}

fn load_balancer(field: &Field, balancer: &LoadBalancer, found: &mut Vec<Invalid>) {
    if let Some(simple) = &balancer.simple {
        let allowed = [
            "UNSPECIFIED",
            "LEAST_REQUEST",
            "LEAST_CONN",
            "ROUND_ROBIN",
            "RANDOM",
            "PASSTHROUGH",
        ];
        one_of(&field.key("simple"), simple, &allowed, found);
    }
    if let Some(hash) = &balancer.consistent_hash {
        if balancer.simple.is_some() {
            push(
                found,
                field.key("simple"),
                "cannot be combined with consistentHash",
            );
        }
        consistent_hash(&field.key("consistentHash"), hash, found);
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        locality(&field.key("localityLbSetting"), setting, found);
    }
    let older = balancer.warmup_duration_secs.as_ref();
    time(&field.key("warmupDurationSecs"), older, found);
    if let Some(warmup) = &balancer.warmup {
        let field = field.key("warmup");
        if warmup.duration.is_none() {
            push(found, field.key("duration"), "is needed");
        }
        time(&field.key("duration"), warmup.duration.as_ref(), found);
        if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
            push(found, field.key("aggression"), "must be at least 1");
        }
    }
}

fn consistent_hash(field: &Field, hash: &ConsistentHash, found: &mut Vec<Invalid>) {
    let sources = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip == Some(true),
        hash.http_query_parameter_name.is_some(),
    ];
    if sources.into_iter().filter(|set| *set).count() != 1 {
        let reason = "needs one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName";
        push(found, field.clone(), reason);
    }
    if let Some(name) = &hash.http_header_name {
        http::header_name(&field.key("httpHeaderName"), name, found);
    }
    if let Some(cookie) = &hash.http_cookie {
        let field = field.key("httpCookie");
        http::header_name(&field.key("name"), &cookie.name, found);
        time(&field.key("ttl"), cookie.ttl.as_ref(), found);
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        push(
            found,
            field.key("maglev"),
            "cannot be combined with ringHash",
        );
    }
}

fn locality(field: &Field, setting: &LocalitySetting, found: &mut Vec<Invalid>) {
    let ways = [
        !setting.distribute.is_empty(),
        !setting.failover.is_empty(),
        !setting.failover_priority.is_empty(),
    ];
    if setting.distribute.len() + setting.failover.len() > 0
        && ways.into_iter().filter(|way| *way).count() > 1
    {
        let reason = "distribute, failover and failoverPriority exclude each other";
        push(found, field.clone(), reason);
    }
    each(
        &field.key("distribute"),
        &setting.distribute,
        found,
        |field, share, found| {
            if share.to.values().sum::<u32>() != 100 {
                push(found, field.key("to"), "the shares must be 100 together");
            }
        },
    );
    each(
        &field.key("failover"),
        &setting.failover,
        found,
        |field, pair, found| {
            if pair.from == pair.to || pair.from.is_empty() || pair.to.is_empty() {
                push(found, field.clone(), "needs two different regions");
            }
        },
    );
}

fn connection_pool(field: &Field, pool: &ConnectionPool, found: &mut Vec<Invalid>) {
    let mut not_negative = |field: Field, number: Option<i64>| {
        if number.is_some_and(|number| number < 0) {
            push(found, field, "must not be negative");
        }
    };
    if let Some(tcp) = &pool.tcp {
        not_negative(field.key("tcp").key("maxConnections"), tcp.max_connections);
    }
    if let Some(limits) = &pool.http {
        let field = field.key("http");
        for (name, number) in [
            ("http1MaxPendingRequests", limits.http1_max_pending_requests),
            ("http2MaxRequests", limits.http2_max_requests),
            (
                "maxRequestsPerConnection",
                limits.max_requests_per_connection,
            ),
            ("maxRetries", limits.max_retries),
            ("maxConcurrentStreams", limits.max_concurrent_streams),
        ] {
            not_negative(field.key(name), number);
        }
    }
    if let Some(tcp) = &pool.tcp {
        let field = field.key("tcp");
        time(
            &field.key("connectTimeout"),
            tcp.connect_timeout.as_ref(),
            found,
        );
        time(&field.key("idleTimeout"), tcp.idle_timeout.as_ref(), found);
        let longest = tcp.max_connection_duration.as_ref();
        time(&field.key("maxConnectionDuration"), longest, found);
        if let Some(keepalive) = &tcp.tcp_keepalive {
            let field = field.key("tcpKeepalive");
            time(&field.key("time"), keepalive.time.as_ref(), found);
            time(&field.key("interval"), keepalive.interval.as_ref(), found);
        }
    }
    if let Some(limits) = &pool.http {
        let field = field.key("http");
        time(
            &field.key("idleTimeout"),
            limits.idle_timeout.as_ref(),
            found,
        );
        if let Some(policy) = &limits.h2_upgrade_policy {
            let allowed = ["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"];
            one_of(&field.key("h2UpgradePolicy"), policy, &allowed, found);
        }
    }
}

fn outlier_detection(field: &Field, outlier: &OutlierDetection, found: &mut Vec<Invalid>) {
    time(&field.key("interval"), outlier.interval.as_ref(), found);
    time(
        &field.key("baseEjectionTime"),
        outlier.base_ejection_time.as_ref(),
        found,
    );
    for (name, percent) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        if percent.is_some_and(|percent| !(0..=100).contains(&percent)) {
            push(found, field.key(name), "is not between 0 and 100");
        }
    }
}

fn client_tls(field: &Field, tls: &ClientTls, found: &mut Vec<Invalid>) {
    let allowed = ["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"];
    let mode = tls.mode.as_deref().unwrap_or("DISABLE");
    one_of(&field.key("mode"), mode, &allowed, found);
    let files = tls.client_certificate.is_some() && tls.private_key.is_some();
    if mode == "MUTUAL" && !files && tls.credential_name.is_none() {
        let reason = "MUTUAL needs clientCertificate and privateKey, or credentialName";
        push(found, field.clone(), reason);
    }
}
