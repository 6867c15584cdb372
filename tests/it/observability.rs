//! The dashboard and the alert rules ask for metrics that exist.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::support::root;

/// Every `expr` and `query` in a tree.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" || key == "query" => {
                        found.push(text.clone());
                    }
                    other => expressions(other, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| expressions(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Names of metrics in an expression: words with one of our prefixes.
fn metrics(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let prefixes = [
        "istio_",
        "leyline_",
        "tokio_",
        "process_",
        "workload_manager_",
        "citadel_",
    ];
    words
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

/// Whether some source of the product names the metric, in full and in quotes.
fn sources(directory: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn dashboards_and_alerts_ask_for_metrics_that_exist() -> Result<()> {
    let manifests = root().join("manifests/observability");
    let dashboard = fs::read_to_string(manifests.join("grafana-ztunnel.json"))?;
    let alerts = fs::read_to_string(manifests.join("alerts.yaml"))?;
    let dashboard: Value = serde_json::from_str(&dashboard).context("the dashboard")?;
    let alerts: Value = serde_saphyr::from_str(&alerts).context("the alert rules")?;
    let mut source = String::new();
    for directory in ["crates", "ztunnel"] {
        sources(&root().join(directory), &mut source)?;
    }
    for (what, tree) in [("dashboard", dashboard), ("alerts", alerts)] {
        let mut found = Vec::new();
        expressions(&tree, &mut found);
        let asked: BTreeSet<String> = found.iter().flat_map(|text| metrics(text)).collect();
        assert!(asked.len() > 5, "{what}: {asked:?}");
        for metric in asked {
            let quoted = format!("\"{metric}\"");
            assert!(
                source.contains(&quoted),
                "{what} asks for {metric}, which nobody counts"
            );
        }
    }
    Ok(())
}
