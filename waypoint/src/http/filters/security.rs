//! The checks that a request must pass, in the order of the chain: who asks, and whether he may. They are one list, and
//! not one step of the pipeline each, because a policy can stand before and after a token is verified.

use leyline_authz::{Permit, evaluate_request};

use super::{jwt, rbac};
use crate::http::{pipeline::Exchange, reply::Reply, server::HttpConnection};

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
}

impl Checks {
    pub(super) fn add(&mut self, check: Check) {
        self.list.push(check);
    }

    /// Asks all, until one refuses.
    ///
    /// # Errors
    /// The answer to a request that does not pass.
    pub(crate) fn check(
        &self,
        exchange: &mut Exchange,
        conn: &HttpConnection,
    ) -> Result<Permit, Reply> {
        let mut permit = None;
        for check in &self.list {
            match check {
                Check::Rbac(config) => {
                    let passed = rbac::check(config, &exchange.facts(conn));
                    permit = Some(passed.map_err(|denial| Reply::denied(&denial))?);
                }
                Check::Jwt(config) => jwt::authenticate(config, exchange)?,
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
