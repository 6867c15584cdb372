//! The certificate authority as the store sees it, and the client of Istio's (`istio.v1.auth`). Anything that speaks
//! that service will do: our control plane, istiod, istio-csr.

use std::{collections::BTreeMap, error::Error, time::Duration};

use leyline_proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use leyline_types::Identity;
use parking_lot::Mutex;
use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};
use tracing::warn;

use crate::control_plane::{AuthInterceptor, ControlPlaneConfig, ControlPlaneError, channel};

/// A chain with a large root bundle is some ten kilobytes; more than this is not an answer.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Key of the identity that a node proxy asks for in the name of a workload.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// A future on the heap, as a trait object needs it.
pub type BoxFuture<'a, T> = futures::future::BoxFuture<'a, T>;

/// Who signs certificates. The store bounds each call with a deadline of its own.
pub trait CertificateAuthority: Send + Sync + 'static {
    /// Asks for a certificate; the answer is PEM: the leaf, then intermediates, the roots as the last element.
    fn sign<'a>(
        &'a self,
        csr_pem: String,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>>;
}

/// Why the CA gave no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// It did not answer in time.
    #[error("the CA did not answer within {0:?}")]
    Deadline(Duration),
    /// It could not be reached, is not the one we trust, or we have no token for it.
    #[error("cannot ask the CA: {0}")]
    Unreachable(String),
    /// It refused.
    #[error("the CA refused ({code}): {message}")]
    Refused {
        /// The gRPC code, by name.
        code: String,
        /// What it said.
        message: String,
    },
}

/// A client of `istio.v1.auth.IstioCertificateService`.
pub struct CaClient {
    config: ControlPlaneConfig,
    client: Mutex<Client>,
    asks_for: AsksFor,
}

type Client = IstioCertificateServiceClient<InterceptedService<Channel, AuthInterceptor>>;

/// Whose certificates a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AsksFor {
    /// Those of the workloads of its node.
    Workloads,
    /// Its own, as its token says.
    Itself,
}

impl CaClient {
    /// A client that asks in the name of workloads, with the credentials of this node. Needs a tokio runtime.
    ///
    /// # Errors
    /// When no channel can be made of the configuration.
    pub fn new(config: &ControlPlaneConfig) -> Result<Self, ControlPlaneError> {
        Self::asking(config, AsksFor::Workloads)
    }

    /// A client that asks for the identity of its own credentials, as a waypoint does.
    ///
    /// # Errors
    /// When no channel can be made of the configuration.
    pub fn own(config: &ControlPlaneConfig) -> Result<Self, ControlPlaneError> {
        Self::asking(config, AsksFor::Itself)
    }

    fn asking(config: &ControlPlaneConfig, asks_for: AsksFor) -> Result<Self, ControlPlaneError> {
        Ok(Self {
            config: config.clone(),
            client: Mutex::new(connect(config)?),
            asks_for,
        })
    }

    /// Makes a new connection for the next call, which judges the CA by the roots as they are then. Calls that run are
    /// not disturbed.
    pub fn reconnect(&self) {
        match connect(&self.config) {
            Ok(client) => *self.client.lock() = client,
            // The same configuration was good before.
            Err(error) => warn!(%error, "the connection to the CA stays as it is"),
        }
    }

    async fn create(
        &self,
        csr: String,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<String>, CaError> {
        let request = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: (self.asks_for == AsksFor::Workloads).then(|| impersonate(identity)),
        };
        // A clone of the client is a clone of the channel's handle; calls on it run at the same time.
        let mut client = self.client.lock().clone();
        let answer = client.create_certificate(request).await;
        answer
            .map(|response| response.into_inner().cert_chain)
            .map_err(|status| CaError::from(&status))
    }
}

fn connect(config: &ControlPlaneConfig) -> Result<Client, ControlPlaneError> {
    let auth = AuthInterceptor::new(config)?;
    let client = IstioCertificateServiceClient::with_interceptor(channel(config)?, auth);
    Ok(client.max_decoding_message_size(MAX_ANSWER_BYTES))
}

impl CertificateAuthority for CaClient {
    fn sign<'a>(
        &'a self,
        csr_pem: String,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        Box::pin(self.create(csr_pem, identity, ttl))
    }
}

impl From<&Status> for CaError {
    fn from(status: &Status) -> Self {
        // A status with a cause was made on our side: the call never got an answer.
        if let Some(cause) = status.source() {
            return Self::Unreachable(innermost(cause));
        }
        match status.code() {
            Code::Unavailable | Code::Cancelled => Self::Unreachable(status.message().to_owned()),
            code => Self::Refused {
                code: format!("{code:?}"),
                message: status.message().to_owned(),
            },
        }
    }
}

/// The last cause in a chain is the one that an operator can act on; those around it say "transport error".
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

fn impersonate(identity: &Identity) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(identity.to_string())),
    };
    Struct {
        fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]),
    }
}
