//! The checks that a request must pass, in the order of the chain: who asks, and whether he may. They are one list, and
//! not one step of the pipeline each, because a policy can stand before and after a token is verified.

use leyline_authz::{Permit, evaluate_request};

use super::{
    ext_authz,
    jwt::{self, remote::RemoteSource},
    rbac,
};
use crate::{
    config::{Config, route::headers::HeaderChanges},
    http::{body::Body, pipeline::Exchange, reply::Reply, server::HttpConnection},
};

/// All checks of a chain.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    list: Vec<Check>,
}

/// One of them.
#[derive(Debug)]
pub(crate) enum Check {
    Rbac(rbac::Config),
    Jwt(jwt::Config),
    ExtAuthz(Box<ext_authz::Config>),
}

impl Checks {
    pub(super) fn add(&mut self, check: Check) {
        self.list.push(check);
    }

    /// Where keys of token issuers are to be fetched from.
    pub(crate) fn key_sources(&self) -> impl Iterator<Item = &RemoteSource> {
        self.list.iter().flat_map(|check| {
            match check {
                Check::Jwt(filter) => Some(filter.remote_sources()),
                Check::Rbac(_) | Check::ExtAuthz(_) => None,
            }
            .into_iter()
            .flatten()
        })
    }

    /// Asks all, until one refuses. What authorizers want the client to be told is put into `told`.
    ///
    /// # Errors
    /// The answer to a request that does not pass.
    pub(crate) async fn check(
        &self,
        exchange: &mut Exchange,
        body: &mut Body,
        (config, conn): (&Config, &HttpConnection),
        told: &mut HeaderChanges,
    ) -> Result<Permit, Reply> {
        let mut permit = None;
        for check in &self.list {
            match check {
                Check::Rbac(filter) => {
                    let passed = rbac::check(filter, exchange, conn);
                    permit = Some(passed.map_err(|denial| Reply::denied(&denial))?);
                }
                Check::Jwt(filter) => {
                    let known = &conn.shared.keys;
                    Box::pin(jwt::authenticate(filter, exchange, known)).await?;
                }
                Check::ExtAuthz(filter) => {
                    let asked = ext_authz::check(filter, exchange, body, (config, conn), told);
                    Box::pin(asked).await?;
                }
            }
        }
        // Without a policy everybody may.
        let open = || evaluate_request([], &exchange.facts(conn));
        match permit {
            Some(permit) => Ok(permit),
            None => open().map_err(|denial| Reply::denied(&denial)),
        }
    }
}
