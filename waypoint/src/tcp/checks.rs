//! What a TCP connection must pass before a byte goes either way, in the order of the chain.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz;
use leyline_authz::{Permit, TunnelFacts, evaluate_connection};
use leyline_types::Str;
use metrics::counter;
use serde_json::Map;
use tracing::{info, warn};

use super::{Failure, rbac};
use crate::{
    app::Shared,
    authorizer::{self, Condition, DENIED, FAILED, TIMEOUT},
    config::{
        Config as Everything,
        error::{At, Compiled, Unsupported},
        listener::Chain,
    },
    http::{reply::Flag, server::Destination},
    listener::Client,
    upstream::call::Target,
};

/// One of the checks of a chain.
#[derive(Debug)]
pub(crate) enum Check {
    Rbac(rbac::Config),
    ExtAuthz(Authorizer),
}

/// `envoy.filters.network.ext_authz`: somebody is asked about a connection.
#[derive(Debug)]
pub(crate) struct Authorizer {
    asked_if: Condition,
    target: Target,
    on_failure: OnFailure,
}

/// When the authorizer does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnFailure {
    Pass,
    Refuse,
}

impl Authorizer {
    pub(crate) fn compile(proto: &ExtAuthz) -> Compiled<Self> {
        let asks_for_metadata = !proto.metadata_context_namespaces.is_empty()
            || !proto.typed_metadata_context_namespaces.is_empty();
        if asks_for_metadata || proto.include_peer_certificate || proto.shadow_mode {
            return Err(Unsupported::new(
                "metadata_context_namespaces, include_peer_certificate or shadow_mode",
            ));
        }
        Ok(Self {
            asked_if: Condition::compile(proto.filter_enabled_metadata.as_ref())
                .at("filter_enabled_metadata")?,
            target: Target::compile(proto.grpc_service.as_ref(), None, TIMEOUT)
                .at("grpc_service")?,
            on_failure: if proto.failure_mode_allow {
                OnFailure::Pass
            } else {
                OnFailure::Refuse
            },
        })
    }
}

/// Asks all checks, until one refuses.
///
/// # Errors
/// Why the connection does not pass.
pub(super) async fn check(
    checks: &[Check],
    (shared, config): (&Arc<Shared>, &Everything),
    client: &Client,
    destination: &Destination,
) -> Result<Permit, Failure> {
    let facts = facts(client, destination);
    let mut metadata = Map::new();
    let mut permit = None;
    for check in checks {
        let passed = match check {
            Check::Rbac(filter) => rbac::check(filter, &facts, &mut metadata)
                .map(|passed| permit = Some(passed))
                .map_err(|denial| (Flag::Denied, denial.to_string())),
            Check::ExtAuthz(authorizer) if authorizer.asked_if.holds(&metadata) => {
                let asked = ask(authorizer, (shared, config), client, destination);
                Box::pin(asked).await
            }
            Check::ExtAuthz(_) => Ok(()),
        };
        if let Err((flag, denial)) = passed {
            counter!("leyline_waypoint_refused_total", "reason" => "policy").increment(1);
            // Whether or not there is an access log.
            info!(denial, source_principal = facts.peer, %destination, "connection refused");
            return Err((flag, denial));
        }
    }
    // Without a policy everybody may.
    let open = || evaluate_connection([], &facts);
    match permit {
        Some(permit) => Ok(permit),
        None => open().map_err(|denial| (Flag::Denied, denial.to_string())),
    }
}

/// Resolves when a change of policies refuses the connection, with the reason. Authorizers are asked once: their answer
/// was for as long as the connection lasts.
pub(super) async fn revoked(
    (shared, name): (&Shared, &Str),
    mut seen: Arc<Chain>,
    client: &Client,
    destination: &Destination,
) -> Failure {
    loop {
        // Before the look, so that no change is missed.
        let changed = shared.config.changed();
        let chain = shared.config.load().chain(name.as_str()).cloned();
        // A chain that is gone says nothing about the connections that it began.
        if let Some(chain) = chain.filter(|chain| !Arc::ptr_eq(chain, &seen)) {
            if let Err(failure) = still_passes(&chain, client, destination) {
                counter!("leyline_waypoint_connections_ended_total", "reason" => "policy")
                    .increment(1);
                let source_principal = &*client.principal;
                let denial = failure.1.as_str();
                info!(denial, source_principal, %destination, "connection cut");
                return failure;
            }
            seen = chain;
        }
        changed.await;
    }
}

fn still_passes(chain: &Chain, client: &Client, destination: &Destination) -> Result<(), Failure> {
    let denied = |reason: String| (Flag::Denied, reason);
    let chain = match chain {
        Chain::Tcp(chain) => chain,
        Chain::Refused(reason) => return Err(denied(reason.to_string())),
        Chain::Http(_) => return Err(denied("the port is no longer TCP".to_owned())),
    };
    let facts = facts(client, destination);
    let mut metadata = Map::new();
    for check in &chain.checks {
        if let Check::Rbac(filter) = check {
            rbac::check(filter, &facts, &mut metadata)
                .map_err(|denial| denied(denial.to_string()))?;
        }
    }
    Ok(())
}

fn facts<'a>(client: &'a Client, destination: &Destination) -> TunnelFacts<'a> {
    TunnelFacts {
        peer: Some(&client.principal),
        source_ip: client.addr.ip(),
        destination: destination.address(),
        destination_port: destination.port(),
    }
}

async fn ask(
    authorizer: &Authorizer,
    (shared, config): (&Arc<Shared>, &Everything),
    client: &Client,
    destination: &Destination,
) -> Result<(), Failure> {
    let question = authorizer::attributes(client, destination);
    let answer = authorizer::ask(shared, config, &authorizer.target, question).await;
    let count = |result| authorizer::count(&authorizer.target, result);
    let refusal = |details: &str| (Flag::UnauthorizedExternalService, details.to_owned());
    match answer {
        Ok(answer) if authorizer::allows(&answer) => {
            count("ok");
            Ok(())
        }
        Ok(_) => {
            count("denied");
            Err(refusal(DENIED))
        }
        Err(error) => {
            count("error");
            let asked = authorizer.target.cluster.as_str();
            warn!(authorizer = asked, %error, "the external authorizer did not answer");
            match authorizer.on_failure {
                OnFailure::Pass => Ok(()),
                OnFailure::Refuse => Err(refusal(FAILED)),
            }
        }
    }
}
