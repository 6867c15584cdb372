//! The explanation for people at a terminal.

use std::fmt::Write;

use leyline_authz::Action;

use super::{EndpointShown, Explanation, PoliciesShown, PolicyShown};

/// Width of the left column.
const LABEL: usize = 13;

/// One line per step, what belongs to it indented below.
pub(crate) fn render(explained: &Explanation) -> String {
    let mut page = Page(String::new());
    let (source, destination) = (&explained.source, &explained.destination);
    let arrow = format!("{} -> {}", source.name, destination.asked);
    page.line(&arrow);
    page.line("");
    page.step("source", &format!("{}, {}", source.name, source.identity));
    let addresses: Vec<String> = source.addresses.iter().map(ToString::to_string).collect();
    page.more(&format!("{} on node {}", addresses.join(", "), source.node));
    page.step("destination", &destination.text);
    if let Some(waypoint) = &explained.waypoint {
        page.step("waypoint", &format!("{}: {}", waypoint.name, waypoint.text));
        page.endpoints(&waypoint.instances);
    }
    if !explained.endpoints.is_empty() {
        let usable = explained.endpoints.iter().filter(|one| one.usable).count();
        let known = explained.endpoints.len();
        page.step("endpoints", &format!("{usable} of {known} can be picked"));
        page.endpoints(&explained.endpoints);
    }
    page.step("route", &explained.route.text);
    for identity in &explained.route.expected {
        page.more(&format!("only {identity} may answer there"));
    }
    if let Some(certificate) = &explained.certificate {
        page.step("certificate", &certificate.identity.to_string());
        let validity = match (&certificate.valid_from, &certificate.expiration_time) {
            (Some(from), Some(until)) => format!(", valid from {from} to {until}"),
            _ => String::new(),
        };
        page.more(&format!("{}{validity}", certificate.state));
    }
    if let Some(policies) = &explained.policies {
        page.policies(policies);
    }
    let verdict = &explained.verdict;
    let word = if verdict.allowed {
        "ALLOWED"
    } else {
        "REFUSED"
    };
    page.line("");
    page.step("verdict", &format!("{word}: {}", verdict.reason));
    page.0
}

/// Text under construction. A string takes everything, so that writing cannot fail.
struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn step(&mut self, label: &str, text: &str) {
        writeln!(self.0, "  {label:<LABEL$}{text}").ok();
    }

    fn more(&mut self, text: &str) {
        self.step("", text);
    }

    fn endpoints(&mut self, endpoints: &[EndpointShown]) {
        let width = endpoints
            .iter()
            .map(|one| one.name.len())
            .max()
            .unwrap_or(0);
        for one in endpoints {
            let mark = match (one.picked, one.usable) {
                (true, _) => ">",
                (false, true) => "+",
                (false, false) => "-",
            };
            self.more(&format!("{mark} {:<width$}  {}", one.name, one.text));
        }
    }

    fn policies(&mut self, policies: &PoliciesShown) {
        let count = policies.list.len();
        let what = match count {
            0 => "none".to_owned(),
            1 => "1 policy".to_owned(),
            count => format!("{count} policies"),
        };
        self.step("policies", &format!("{what} at {}", policies.workload));
        self.more(&format!("seen there: {}", policies.seen));
        let width = policies.list.iter().map(|one| one.name.len()).max();
        for policy in &policies.list {
            self.more(&policy_line(policy, width.unwrap_or(0)));
        }
        for name in &policies.missing {
            self.more(&format!(
                "! {name} is named by the workload and not known, so nothing is allowed"
            ));
        }
    }
}

fn policy_line(policy: &PolicyShown, width: usize) -> String {
    let action = match policy.action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY ",
    };
    let dry_run = if policy.dry_run {
        " (dry run: it only reports)"
    } else {
        ""
    };
    let mark = if policy.matches { ">" } else { "-" };
    format!(
        "{mark} {action} {:<width$}  {}{dry_run}",
        policy.name, policy.text
    )
}
