//! Calls of the waypoint's own to services of the mesh: an authorizer, a rate limit service, a collector of spans. Each goes
//! to one endpoint, within a deadline.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::{
    envoy::config::core::v3::{GrpcService, grpc_service::TargetSpecifier},
    google::protobuf::Duration as ProtoDuration,
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Limited};
use tokio::time::{Duration, timeout};

use super::{
    balance::Wanted,
    pending,
    send::{SendFailure, send},
};
use crate::{
    app::Shared,
    config::{
        Config,
        any::duration,
        cluster::Cluster,
        endpoints::Endpoint,
        error::{At, Compiled, Unsupported},
    },
    http::{body::Body, forward::upstream_version, rewrite},
};

/// Bytes of an answer: none of those that are asked says more.
pub(super) const MAX_ANSWER: usize = 256 << 10;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallFailure {
    #[error("there is no cluster {0}")]
    NoCluster(String),
    #[error("cluster {0} has no endpoint")]
    NoEndpoint(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Send(#[from] SendFailure),
    #[error("HTTP status {0}")]
    Http(StatusCode),
    #[error("gRPC status {0}")]
    Status(String),
    #[error("the answer is not readable: {0}")]
    Answer(String),
    #[error("the question cannot be sent: {0}")]
    Question(String),
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) cluster: String,
    /// For `:authority`; the service's host name when empty.
    pub(crate) authority: String,
    pub(crate) timeout: Duration,
    /// What each gRPC call says besides.
    pub(crate) metadata: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// A gRPC service; `timeout` goes before its own.
    pub(crate) fn compile(
        service: Option<&GrpcService>,
        timeout: Option<&ProtoDuration>,
        default: Duration,
    ) -> Compiled<Self> {
        let service = service.ok_or_else(|| Unsupported::missing("grpc_service"))?;
        let Some(TargetSpecifier::EnvoyGrpc(envoy)) = &service.target_specifier else {
            return Err(Unsupported::new("a service that is no cluster"));
        };
        let timeout = timeout.or(service.timeout.as_ref());
        let metadata = service.initial_metadata.iter().map(|one| {
            let name = HeaderName::try_from(one.key.as_str()).ok();
            let value = HeaderValue::try_from(one.value.as_str()).ok();
            name.zip(value)
                .ok_or_else(|| Unsupported::new(format!("metadata {}", one.key)))
        });
        Ok(Self {
            metadata: metadata.collect::<Compiled<_>>().at("initial_metadata")?,
            cluster: envoy.cluster_name.clone(),
            authority: envoy.authority.clone(),
            timeout: timeout.map_or(Ok(default), duration).at("timeout")?,
        })
    }

    pub(super) fn endpoint<'a>(
        &self,
        shared: &Shared,
        config: &'a Config,
    ) -> Result<(&'a Arc<Cluster>, Arc<Endpoint>), CallFailure> {
        let cluster = config.clusters.get(self.cluster.as_str());
        let cluster = cluster.ok_or_else(|| CallFailure::NoCluster(self.cluster.clone()))?;
        let wanted = Wanted::default();
        let endpoint = pending::endpoint_for(shared, config, cluster, wanted, None);
        let endpoint = endpoint.ok_or_else(|| CallFailure::NoEndpoint(self.cluster.clone()))?;
        Ok((cluster, endpoint))
    }
}

/// Sends one HTTP request to this path of the target and waits for the whole answer. The request is of the version that
/// its cluster is spoken to.
pub(crate) async fn http(
    shared: &Arc<Shared>,
    config: &Config,
    target: &Target,
    path: &str,
    request: Request<Body>,
) -> Result<Response<Bytes>, CallFailure> {
    let exchange = async {
        let (cluster, endpoint) = target.endpoint(shared, config)?;
        let (mut head, body) = request.into_parts();
        head.version = upstream_version(cluster, Version::HTTP_11);
        rewrite::set_target(&mut head, &target.authority, path)
            .map_err(|reply| CallFailure::Question(reply.details))?;
        let request = Request::from_parts(head, body);
        let sent = send(shared, cluster, &endpoint, Version::HTTP_11, request);
        let (head, body) = Box::pin(sent).await?.into_parts();
        let collected = Limited::new(body, MAX_ANSWER).collect().await;
        let collected = collected.map_err(|error| CallFailure::Answer(error.to_string()))?;
        Ok(Response::from_parts(head, collected.to_bytes()))
    };
    match timeout(target.timeout, exchange).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(CallFailure::Timeout(target.timeout)),
    }
}
