//! `istio.v1.auth.IstioCertificateService`: who may have which identity.
//!
//! A caller gets its own identity. A node proxy may ask for that of a workload: its token must be of a trusted node
//! account and bound to a node, the trust domain must be the mesh's, and a live pod on that very node must use the
//! service account. A stolen node token is thus worth no more than the pods of that node.

use std::{sync::Arc, time::Duration};

use leyline_proto::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use leyline_types::Identity;
use prost_types::value::Kind;
use time::OffsetDateTime;
use tonic::{Extensions, Request, Response, Status, metadata::MetadataMap};
use tracing::{info, warn};

use super::{CsrError, Current};
use crate::{
    auth::{AuthError, Authenticator},
    mesh::Mesh,
    token::Caller,
};

/// The key of Istio's proxies in the request's metadata.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Why no certificate was signed; the caller is told less than the log.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("{IMPERSONATED} is not a string")]
    Metadata,
    #[error("identity is not valid: {0}")]
    Identity(#[from] leyline_types::IdentityError),
    #[error("caller {0}/{1} is not a node proxy with a token bound to a node")]
    NotANode(String, String),
    #[error("trust domain {0} is not that of the mesh")]
    TrustDomain(String),
    #[error("no live pod on node {node} has identity {identity}")]
    NotOnNode { node: String, identity: Identity },
    #[error(transparent)]
    Csr(#[from] CsrError),
}

impl Refusal {
    fn label(&self) -> &'static str {
        match self {
            Self::Auth(_) => "authentication",
            Self::Metadata | Self::Identity(_) => "malformed_identity",
            Self::NotANode(..) => "not_a_node",
            Self::TrustDomain(_) => "trust_domain",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Csr(_) => "csr",
        }
    }

    /// Istio's texts, which clients know.
    fn status(&self) -> Status {
        match self {
            Self::Auth(_) => Status::unauthenticated("request authenticate failure"),
            Self::Metadata
            | Self::Identity(_)
            | Self::NotANode(..)
            | Self::TrustDomain(_)
            | Self::NotOnNode { .. } => {
                Status::unauthenticated("request impersonation authentication failure")
            }
            Self::Csr(CsrError::Sign(_) | CsrError::Identity) => {
                Status::internal("CSR signing failed")
            }
            Self::Csr(error) => Status::invalid_argument(error.to_string()),
        }
    }
}

/// The service.
pub(crate) struct CertificateService {
    authority: Current,
    auth: Arc<Authenticator>,
    mesh: Arc<Mesh>,
}

impl CertificateService {
    pub(crate) fn new(authority: Current, auth: Arc<Authenticator>, mesh: Arc<Mesh>) -> Self {
        Self {
            authority,
            auth,
            mesh,
        }
    }

    fn create(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        request: &IstioCertificateRequest,
    ) -> Result<(Identity, Vec<String>), Refusal> {
        let caller = self.auth.caller(metadata, extensions)?;
        let identity = match impersonated(request)? {
            Some(wanted) => self.impersonate(&caller, wanted)?,
            None => self.own_identity(&caller)?,
        };
        let lifetime = u64::try_from(request.validity_duration)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        let authority = Arc::clone(&self.authority.borrow());
        let chain = authority.sign(&request.csr, &identity, lifetime, OffsetDateTime::now_utc())?;
        Ok((identity, chain))
    }

    fn own_identity(&self, caller: &Caller) -> Result<Identity, Refusal> {
        let trust_domain = self.mesh.settings().trust_domain.clone();
        Ok(Identity::new(
            trust_domain,
            &caller.namespace,
            &caller.service_account,
        )?)
    }

    fn impersonate(&self, caller: &Caller, wanted: &str) -> Result<Identity, Refusal> {
        let identity: Identity = wanted.parse()?;
        let Some(node) = self.auth.node_of(caller) else {
            let (namespace, account) = (caller.namespace.clone(), caller.service_account.clone());
            return Err(Refusal::NotANode(namespace, account));
        };
        if *identity.trust_domain() != self.mesh.settings().trust_domain {
            return Err(Refusal::TrustDomain(identity.trust_domain().to_string()));
        }
        if !self.mesh.published().runs_on(node, &identity) {
            return Err(Refusal::NotOnNode {
                node: node.to_owned(),
                identity,
            });
        }
        Ok(identity)
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Result<Option<&str>, Refusal> {
    let value = request
        .metadata
        .as_ref()
        .and_then(|fields| fields.fields.get(IMPERSONATED));
    match value.and_then(|value| value.kind.as_ref()) {
        None => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::Metadata),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        match self.create(&metadata, &extensions, &request) {
            Ok((identity, cert_chain)) => {
                metrics::counter!("leyline_ca_certificates_total").increment(1);
                info!(%identity, "certificate signed");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => {
                metrics::counter!("leyline_ca_refusals_total", "reason" => refusal.label())
                    .increment(1);
                warn!(reason = %refusal, "certificate refused");
                Err(refusal.status())
            }
        }
    }
}
