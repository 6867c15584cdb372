//! What a chain tells of its requests: access logs, and which metrics with which labels.

use envoy_types::pb::{envoy::config::accesslog::v3::AccessLog, google::protobuf::Struct};
use serde::Deserialize;

use super::{
    access_log::AccessLogs,
    error::{At, Compiled, Unsupported},
    tracing::Tracing,
};
use crate::{
    cel::Expression,
    format::{Needed, Source},
    stats::{Metric, labels::Labels},
};

/// Istio's filter that makes metrics.
pub(crate) const STATS: &str = "type.googleapis.com/stats.PluginConfig";

/// Of one chain.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub(crate) logs: AccessLogs,
    pub(crate) metrics: MetricsPlan,
    /// `None`: requests are not traced.
    pub(crate) tracing: Option<Tracing>,
    /// Headers that any of it looks at.
    pub(crate) needed: Needed,
}

impl Telemetry {
    pub(crate) fn compile(
        logs: &[AccessLog],
        metrics: MetricsPlan,
        tracing: Option<Tracing>,
    ) -> Compiled<Self> {
        let logs = AccessLogs::compile(logs)?;
        let mut needed = logs.needed.clone();
        metrics.needs(&mut needed);
        if let Some(tracing) = &tracing {
            tracing.needs(&mut needed);
        }
        Ok(Self {
            logs,
            metrics,
            tracing,
            needed,
        })
    }
}

/// Changes of metrics, in order.
#[derive(Debug, Default)]
pub(crate) struct MetricsPlan(Vec<Override>);

#[derive(Debug)]
struct Override {
    /// All of them when `None`.
    metric: Option<Metric>,
    is_dropped: bool,
    set: Vec<(String, Expression)>,
    removed: Vec<String>,
}

/// `stats.PluginConfig`, as far as a waypoint has a use for it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PluginConfig {
    metrics: Vec<MetricConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetricConfig {
    name: String,
    drop: bool,
    dimensions: std::collections::BTreeMap<String, String>,
    #[serde(alias = "tagsToRemove")]
    tags_to_remove: Vec<String>,
    #[serde(rename = "match")]
    condition: String,
}

impl MetricsPlan {
    /// From the configuration of Istio's stats filter.
    pub(crate) fn compile(config: &Struct) -> Compiled<Self> {
        let config = leyline_envoy_json::from_struct(config);
        let config: PluginConfig = serde_json::from_value(config)
            .map_err(|error| Unsupported::new(format!("stats.PluginConfig: {error}")))?;
        let overrides = config.metrics.iter().enumerate();
        Ok(Self(
            overrides
                .map(|(index, metric)| Override::compile(metric).at_item("metrics", index))
                .collect::<Compiled<_>>()?,
        ))
    }

    /// Whether labels are the same for all requests between the same ends with the same outcome.
    pub(crate) fn is_fixed(&self) -> bool {
        self.0.iter().all(|one| one.set.is_empty())
    }

    /// The labels of one metric; `None` when it is not wanted.
    pub(crate) fn labels(
        &self,
        metric: Metric,
        labels: &Labels,
        source: &dyn Source,
    ) -> Option<Labels> {
        let mut changed = labels.clone();
        let mut is_dropped = false;
        let overrides = self.0.iter();
        for one in overrides.filter(|one| one.metric.is_none_or(|it| it == metric)) {
            is_dropped = one.is_dropped;
            for (name, expression) in &one.set {
                let value = expression.text(source);
                changed.set(name, value.unwrap_or_else(|| "unknown".to_owned()));
            }
            for name in &one.removed {
                changed.remove(name);
            }
        }
        (!is_dropped).then_some(changed)
    }

    fn needs(&self, needed: &mut Needed) {
        for (_, expression) in self.0.iter().flat_map(|one| &one.set) {
            needed.extend(expression.headers());
        }
    }
}

impl Override {
    fn compile(config: &MetricConfig) -> Compiled<Self> {
        if !config.condition.is_empty() {
            return Err(Unsupported::new("match"));
        }
        let named = |metric: &Metric| {
            let name = metric.name().trim_start_matches("istio_");
            name == config.name || name.trim_end_matches("_total") == config.name
        };
        let metric = match config.name.as_str() {
            "" => None,
            name => Some(
                Metric::ALL
                    .into_iter()
                    .find(named)
                    .ok_or_else(|| Unsupported::new(format!("metric {name}")))?,
            ),
        };
        let dimensions = config.dimensions.iter();
        Ok(Self {
            metric,
            is_dropped: config.drop,
            set: dimensions
                .map(|(name, text)| {
                    let expression = Expression::compile(text).at(name)?;
                    Ok((name.clone(), expression))
                })
                .collect::<Compiled<_>>()?,
            removed: config.tags_to_remove.clone(),
        })
    }
}
