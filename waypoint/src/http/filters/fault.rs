//! `envoy.filters.http.fault`: delays and aborts a share of requests, to try out how clients bear it. Only routes carry it.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::{
    common::fault::v3::fault_delay::FaultDelaySecifier,
    http::fault::v3::{HttpFault, fault_abort::ErrorType},
};
use http::{HeaderName, HeaderValue, StatusCode};
use leyline_authz::HeaderMatch;
use tokio::time::sleep;

use crate::{
    config::{
        any::duration,
        error::{At, Compiled, Unsupported},
        route::matching::Fraction,
        text::header,
    },
    http::{
        pipeline::Exchange,
        reply::{Flag, Reply},
        request_log::RequestLog,
    },
};

/// What is done to which share of requests.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    delay: Option<(Fraction, Duration)>,
    abort: Option<(Fraction, Abort)>,
    headers: Vec<HeaderMatch>,
}

#[derive(Clone, Copy, Debug)]
enum Abort {
    Http(StatusCode),
    Grpc(u32),
}

impl Config {
    pub(crate) fn compile(fault: &HttpFault) -> Compiled<Self> {
        if fault.response_rate_limit.is_some() || !fault.downstream_nodes.is_empty() {
            return Err(Unsupported::new("response_rate_limit or downstream_nodes"));
        }
        if !fault.upstream_cluster.is_empty() {
            return Err(Unsupported::new("upstream_cluster"));
        }
        Ok(Self {
            delay: delay(fault).at("delay")?,
            abort: abort(fault).at("abort")?,
            headers: fault.headers.iter().map(header).collect::<Compiled<_>>()?,
        })
    }
}

fn delay(fault: &HttpFault) -> Compiled<Option<(Fraction, Duration)>> {
    let Some(delay) = &fault.delay else {
        return Ok(None);
    };
    let Some(FaultDelaySecifier::FixedDelay(fixed)) = &delay.fault_delay_secifier else {
        return Err(Unsupported::new("a delay that is not fixed"));
    };
    let share = Fraction::compile(&delay.percentage.unwrap_or_default())?;
    Ok(Some((share, duration(fixed)?)))
}

fn abort(fault: &HttpFault) -> Compiled<Option<(Fraction, Abort)>> {
    let Some(abort) = &fault.abort else {
        return Ok(None);
    };
    let kind = match abort.error_type {
        Some(ErrorType::HttpStatus(status)) => {
            let status = u16::try_from(status).ok();
            let status = status.and_then(|status| StatusCode::from_u16(status).ok());
            Abort::Http(status.ok_or_else(|| Unsupported::new("http_status"))?)
        }
        Some(ErrorType::GrpcStatus(status)) => Abort::Grpc(status),
        Some(ErrorType::HeaderAbort(_)) | None => {
            return Err(Unsupported::new("an abort that is not fixed"));
        }
    };
    let share = Fraction::compile(&abort.percentage.unwrap_or_default())?;
    Ok(Some((share, kind)))
}

/// Delays, then aborts; the two shares are drawn independently.
///
/// # Errors
/// The answer of an aborted request.
pub(crate) async fn inject(
    config: Option<&Config>,
    exchange: &Exchange,
    log: &mut RequestLog,
) -> Result<(), Reply> {
    let Some(config) = config else { return Ok(()) };
    let head = exchange.request_head();
    if !config.headers.iter().all(|header| header.matches(&head)) {
        return Ok(());
    }
    if let Some((share, duration)) = config.delay
        && share.takes(rand::random())
    {
        log.flag(Flag::DelayInjected);
        sleep(duration).await;
    }
    match config.abort {
        Some((share, abort)) if share.takes(rand::random()) => Err(answer(abort)),
        Some(_) | None => Ok(()),
    }
}

fn answer(abort: Abort) -> Reply {
    let (details, body) = ("fault_filter_abort", "fault filter abort");
    match abort {
        Abort::Http(status) => Reply::new(status, Flag::FaultInjected, details, body),
        Abort::Grpc(status) => {
            let mut reply = Reply::new(StatusCode::OK, Flag::FaultInjected, details, "");
            let set = |name, value| (HeaderName::from_static(name), value);
            let grpc = HeaderValue::from_static("application/grpc");
            reply.headers = vec![
                set("content-type", grpc),
                set("grpc-status", status.into()),
                set(
                    "grpc-message",
                    HeaderValue::from_static("fault filter abort"),
                ),
            ];
            reply
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::{
        extensions::filters::http::fault::v3::FaultAbort, r#type::v3::FractionalPercent,
    };

    use super::*;

    #[test]
    fn an_abort_takes_exactly_its_share_of_all_random_numbers() {
        let fault = HttpFault {
            abort: Some(FaultAbort {
                percentage: Some(FractionalPercent {
                    numerator: 50_000,
                    denominator: 2,
                }),
                error_type: Some(ErrorType::HttpStatus(555)),
                ..FaultAbort::default()
            }),
            ..HttpFault::default()
        };
        let Some((share, Abort::Http(status))) = Config::compile(&fault).unwrap().abort else {
            panic!("no abort");
        };
        assert_eq!(status.as_u16(), 555);
        let taken = (0..1_000_000).filter(|number| share.takes(*number)).count();
        assert_eq!(taken, 50_000);
    }
}
