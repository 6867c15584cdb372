//! `security.istio.io` RequestAuthentication (Istio's API reference, Request Authentication).

use serde::Deserialize;

use super::Custom;
use crate::objects::security::{Selector, TargetRef};

/// Which tokens are believed.
pub type RequestAuthentication = Custom<RequestAuthenticationSpec>;

/// The body of a RequestAuthentication.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthenticationSpec {
    /// Workloads; never acted on by a waypoint.
    pub selector: Option<Selector>,
    /// One target.
    pub target_ref: Option<TargetRef>,
    /// Several targets.
    pub target_refs: Vec<TargetRef>,
    /// One for each issuer.
    pub jwt_rules: Vec<JwtRule>,
}

impl RequestAuthenticationSpec {
    /// What it is attached to, by either field.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

/// Tokens of one issuer (RFC 7519).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// Claim `iss`.
    pub issuer: String,
    /// One of them must be in the claim `aud`; any when empty.
    pub audiences: Vec<String>,
    /// Where the keys are (RFC 7517).
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: Option<String>,
    /// The keys themselves.
    pub jwks: Option<String>,
    /// Where the token is; `authorization: Bearer` when no place is given.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters; `access_token` when no place is given.
    pub from_params: Vec<String>,
    /// Cookies.
    pub from_cookies: Vec<String>,
    /// Header for the payload, in base64url.
    pub output_payload_to_header: Option<String>,
    /// Headers for single claims.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Keep the token in the request.
    pub forward_original_token: bool,
    /// For fetching the keys; 5 s when absent.
    pub timeout: Option<String>,
    /// Claims of text that are lists.
    pub space_delimited_claims: Vec<String>,
}

/// A header with a token in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token.
    pub prefix: Option<String>,
}

/// A header for a claim.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClaimToHeader {
    /// Name of the header.
    pub header: String,
    /// The claim, nested ones with dots.
    pub claim: String,
}
