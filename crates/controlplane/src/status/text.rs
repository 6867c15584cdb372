//! The status for people. It is made from the JSON of the admin page, which may be of another version: what is not there is not
//! shown.

use std::fmt::Write;

use serde_json::Value;

/// Kinds of Kubernetes itself, of which there are many with nothing to say.
const PLAIN: [&str; 6] = [
    "Namespace ",
    "Node ",
    "ServiceAccount ",
    "Pod ",
    "Service ",
    "EndpointSlice ",
];

/// Which objects are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// All.
    All,
    /// Those that configure the mesh, and others in trouble.
    OfMesh,
}

/// Lines of objects with their conditions, proxies with what they have, and pods that could not be enrolled.
pub fn render(status: &Value, shown: Shown) -> String {
    let mut out = String::new();
    objects(&mut out, status, shown);
    documents(&mut out, status);
    proxies(&mut out, status);
    enrolment(&mut out, status);
    out
}

fn objects(out: &mut String, status: &Value, shown: Shown) {
    let _infallible = writeln!(out, "OBJECTS (generation {})", status["generation"]);
    let mut quiet = 0;
    for (object, conditions) in entries(&status["conditions"]) {
        let conditions = conditions.as_array().map_or(&[][..], Vec::as_slice);
        let good: Vec<&str> = conditions
            .iter()
            .filter(|one| is_good(one))
            .map(|one| text(one, "type"))
            .collect();
        let is_plain = PLAIN.iter().any(|kind| object.starts_with(kind));
        if shown == Shown::OfMesh && is_plain && good.len() == conditions.len() {
            quiet += 1;
            continue;
        }
        let line = format!("  {object:<44} {}", good.join(" "));
        let _infallible = writeln!(out, "{}", line.trim_end());
        for one in conditions.iter().filter(|one| !is_good(one)) {
            let what = match text(one, "type") {
                "Warning" => "Warning".to_owned(),
                kind => format!("{kind}={} {}", text(one, "status"), text(one, "reason")),
            };
            let _infallible = writeln!(out, "    {what}: {}", text(one, "message"));
        }
    }
    if quiet > 0 {
        let _infallible = writeln!(
            out,
            "  and {quiet} of Kubernetes' own kinds, with nothing to say"
        );
    }
}

/// What is wrong in documents that do not even say which object they are.
fn documents(out: &mut String, status: &Value) {
    let issues = status["issues"].as_array().into_iter().flatten();
    for issue in issues.filter(|issue| issue["object"].is_null()) {
        let _infallible = writeln!(
            out,
            "  {} document {}: {}",
            text(issue, "file"),
            issue["document"],
            text(issue, "reason")
        );
    }
}

fn proxies(out: &mut String, status: &Value) {
    let _infallible = writeln!(out, "PROXIES");
    for proxy in status["proxies"].as_array().into_iter().flatten() {
        let node = proxy["node"].as_str().map(|node| format!(" on {node}"));
        let _infallible = writeln!(
            out,
            "  {} ({}{})",
            text(proxy, "node_id"),
            text(proxy, "account"),
            node.unwrap_or_default()
        );
        for (kind, state) in entries(&proxy["types"]) {
            let waiting = match state["waiting"].as_bool() {
                Some(true) => ", one on its way",
                Some(false) | None => "",
            };
            let _infallible = writeln!(
                out,
                "    {kind:<14} {:>5} resources, ACK of generation {}{waiting}{}",
                state["resources"].to_string(),
                state["acked_generation"],
                nacks(state)
            );
        }
    }
}

fn nacks(state: &Value) -> String {
    let count = state["nacks"].as_u64().unwrap_or_default();
    let last = state["rejections"].as_array().and_then(|all| all.last());
    match last.and_then(Value::as_str) {
        Some(last) if count > 0 => format!(", {count} NACKs, the last: {last}"),
        Some(_) | None => String::new(),
    }
}

fn enrolment(out: &mut String, status: &Value) {
    let enrolment = &status["enrolment"];
    let count = |key: &str| enrolment[key].as_array().map_or(0, Vec::len);
    let captured = enrolment["captured"].as_object().map_or(0, |all| all.len());
    let _infallible = writeln!(out, "ENROLMENT\n  {captured} of {} pods", count("wanted"));
    for (pod, reason) in entries(&enrolment["failures"]) {
        let reason = reason.as_str().unwrap_or_default();
        let _infallible = writeln!(out, "  {pod}: {reason}");
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn is_good(condition: &Value) -> bool {
    text(condition, "status") == "True" && text(condition, "type") != "Warning"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shows_what_is_wrong_and_counts_what_is_not() {
        let status = json!({
            "generation": 7,
            "conditions": {
                "HTTPRoute shop/a": [
                    { "type": "Accepted", "status": "True", "reason": "Accepted" },
                    { "type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "no b" },
                    { "type": "Warning", "status": "True", "reason": "Warning", "message": "late" },
                ],
                "Pod shop/b": [{ "type": "Accepted", "status": "True", "reason": "Accepted" }],
            },
            "issues": [{ "file": "x.yaml", "document": 2, "reason": "not valid YAML" }],
            "proxies": [{
                "node_id": "waypoint~10.0.0.1~w.shop~shop.svc.cluster.local",
                "account": "shop/w",
                "types": { "route": {
                    "resources": 3, "acked_generation": 6, "waiting": true, "nacks": 1, "rejections": ["bad"],
                } },
            }],
            "enrolment": { "wanted": ["b"], "captured": {}, "failures": { "b": "no such namespace" } },
        });
        let expected = "\
OBJECTS (generation 7)
  HTTPRoute shop/a                             Accepted
    ResolvedRefs=False BackendNotFound: no b
    Warning: late
  and 1 of Kubernetes' own kinds, with nothing to say
  x.yaml document 2: not valid YAML
PROXIES
  waypoint~10.0.0.1~w.shop~shop.svc.cluster.local (shop/w)
    route              3 resources, ACK of generation 6, one on its way, 1 NACKs, the last: bad
ENROLMENT
  0 of 1 pods
  b: no such namespace
";
        assert_eq!(render(&status, Shown::OfMesh), expected);
        let all = render(&status, Shown::All);
        assert!(all.contains("  Pod shop/b"), "{all}");
        // Of another version.
        assert!(render(&json!({}), Shown::All).contains("PROXIES"));
    }
}
