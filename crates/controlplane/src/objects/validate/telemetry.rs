//! Telemetry: what Istio's admission refuses.

use super::{
    Invalid,
    http::{each, one_of, time},
    metadata_of, push,
};
use crate::objects::{
    field::Field,
    key::Kind,
    l7::telemetry::{MetricOverride, Telemetry, Tracing},
};

const MODES: [&str; 3] = ["CLIENT_AND_SERVER", "CLIENT", "SERVER"];

/// The names of Telemetry's metrics (Istio's API reference).
const METRICS: [&str; 11] = [
    "ALL_METRICS",
    "REQUEST_COUNT",
    "REQUEST_DURATION",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
];

/// Telemetry.
pub(crate) fn telemetry(object: &Telemetry, found: &mut Vec<Invalid>) {
    metadata_of(Kind::Telemetry, &object.metadata, found);
    let field = Field::of("spec");
    let spec = &object.spec;
    let targeted = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    if targeted && spec.selector.is_some() {
        push(
            found,
            field.key("selector"),
            "cannot be combined with targetRefs",
        );
    }
    each(&field.key("tracing"), &spec.tracing, found, tracing);
    each(
        &field.key("metrics"),
        &spec.metrics,
        found,
        |field, metrics, found| {
            each(
                &field.key("overrides"),
                &metrics.overrides,
                found,
                metric_override,
            );
            let interval = metrics.reporting_interval.as_ref();
            time(&field.key("reportingInterval"), interval, found);
        },
    );
    each(
        &field.key("accessLogging"),
        &spec.access_logging,
        found,
        |field, log, found| {
            if let Some(mode) = log
                .matches
                .as_ref()
                .and_then(|matches| matches.mode.as_ref())
            {
                one_of(&field.key("match").key("mode"), mode, &MODES, found);
            }
        },
    );
}

fn tracing(field: &Field, tracing: &Tracing, found: &mut Vec<Invalid>) {
    if tracing.providers.len() > 1 {
        push(found, field.key("providers"), "must be at most one");
    }
    if let Some(percent) = tracing.random_sampling_percentage
        && !(0.0..=100.0).contains(&percent)
    {
        let reason = format!("{percent} is not between 0 and 100");
        push(found, field.key("randomSamplingPercentage"), reason);
    }
    for (name, tag) in &tracing.custom_tags {
        let forms = [
            tag.literal.is_some(),
            tag.environment.is_some(),
            tag.header.is_some(),
            tag.formatter.is_some(),
        ];
        if forms.into_iter().filter(|set| *set).count() != 1 {
            let field = field.key("customTags").key(name);
            push(
                found,
                field,
                "needs one of literal, environment, header and formatter",
            );
        }
    }
}

fn metric_override(field: &Field, change: &MetricOverride, found: &mut Vec<Invalid>) {
    if let Some(matches) = &change.matches {
        let field = field.key("match");
        if let Some(metric) = &matches.metric {
            one_of(&field.key("metric"), metric, &METRICS, found);
        }
        if let Some(mode) = &matches.mode {
            one_of(&field.key("mode"), mode, &MODES, found);
        }
    }
    for (name, tag) in &change.tag_overrides {
        let field = field.key("tagOverrides").key(name);
        let operation = tag.operation.as_deref().unwrap_or("UPSERT");
        one_of(
            &field.key("operation"),
            operation,
            &["UPSERT", "REMOVE"],
            found,
        );
        if (operation == "UPSERT") != tag.value.is_some() {
            push(found, field, "UPSERT needs a value, REMOVE has none");
        }
    }
}
