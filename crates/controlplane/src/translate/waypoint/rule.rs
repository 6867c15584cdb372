//! Routes as both of the user's languages mean them: what a VirtualService and a route of the Gateway API are lowered to,
//! and what is then written as Envoy's routes. Names of services are whole here.

use std::time::Duration;

/// One rule; the first that matches counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct HttpRule {
    /// For the access log.
    pub(super) name: String,
    /// Alternatives; everything when empty.
    pub(super) matches: Vec<RequestMatch>,
    pub(super) action: Action,
    pub(super) rewrite: Rewrite,
    pub(super) headers: HeaderChanges,
    /// End to end.
    pub(super) timeout: Option<Duration>,
    pub(super) retry: Retry,
    pub(super) fault: Fault,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) cors: Option<Cors>,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Sent on, to one of these by weight.
    Forward(Vec<Backend>),
    Redirect(Redirect),
    Respond {
        status: u32,
        body: Vec<u8>,
    },
}

impl Default for Action {
    fn default() -> Self {
        Self::Forward(Vec::new())
    }
}

/// A destination by weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Backend {
    pub(super) target: Target,
    pub(super) weight: u32,
    pub(super) headers: HeaderChanges,
    /// In place of the request's host.
    pub(super) host: Option<String>,
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Service {
        host: String,
        /// That of the request when absent.
        port: Option<u16>,
        subset: Option<String>,
    },
    /// Named, and not there or not to be named from here: its share of requests gets an error.
    Unknown,
}

/// All parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestMatch {
    pub(super) path: PathMatch,
    pub(super) headers: Vec<NamedMatch>,
    pub(super) query: Vec<NamedMatch>,
    pub(super) claims: Vec<ClaimMatch>,
}

/// On the path without its query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum PathMatch {
    #[default]
    Any,
    Exact(String, Case),
    /// Of bytes.
    Prefix(String, Case),
    /// Of whole segments.
    Segments(String),
    Regex(String),
}

/// Whether upper and lower case are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Case {
    #[default]
    Told,
    Ignored,
}

/// On a header or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedMatch {
    pub(super) name: String,
    pub(super) text: TextMatch,
    pub(super) sense: Sense,
}

/// Whether a match must hold or must not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sense {
    #[default]
    Holds,
    Fails,
}

/// On a claim of the request's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimMatch {
    /// From the outside in.
    pub(super) path: Vec<String>,
    pub(super) text: TextMatch,
    pub(super) sense: Sense,
}

/// On a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TextMatch {
    Exact(String),
    Prefix(String),
    Regex(String),
    Present,
}

/// Changes of the request line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rewrite {
    pub(super) path: PathRewrite,
    pub(super) host: Option<String>,
}

/// Changes of the path; the query stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum PathRewrite {
    #[default]
    None,
    /// The matched prefix, or all of a path that was matched otherwise.
    Matched(String),
    /// The matched segments; never makes two slashes or none.
    Segments(String),
    Full(String),
    Regex {
        pattern: String,
        substitution: String,
    },
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Redirect {
    pub(super) scheme: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: RedirectPort,
    pub(super) path: PathRewrite,
    pub(super) code: u32,
}

/// The port of a redirect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RedirectPort {
    /// As Envoy does: the request's, unless the scheme changes.
    #[default]
    Kept,
    /// None in the URL: the scheme's own.
    OfScheme,
    Number(u16),
}

/// Changes of headers both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HeaderChanges {
    pub(super) request: Changes,
    pub(super) response: Changes,
}

/// Remove, then set, then add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) remove: Vec<String>,
    pub(super) set: Vec<(String, String)>,
    pub(super) add: Vec<(String, String)>,
}

/// Tries after the first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Retry {
    /// Istio's: two more for what no endpoint has begun to answer.
    #[default]
    Default,
    Never,
    /// As the user says.
    Custom(RetryPolicy),
}

/// When and how often.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RetryPolicy {
    pub(super) attempts: u32,
    /// Envoy's names of conditions.
    pub(super) on: Vec<String>,
    pub(super) codes: Vec<u32>,
    pub(super) per_try: Option<Duration>,
    pub(super) backoff: Option<Duration>,
    pub(super) hosts: RetryHosts,
    pub(super) localities: RetryLocalities,
}

/// Where a further try goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RetryHosts {
    /// Not where it failed before.
    #[default]
    Others,
    Any,
}

/// Whether localities that were asked are asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryLocalities {
    Any,
    /// Not those of the tries before, if there are others.
    Others,
}

/// Injected trouble; shares are of a million.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fault {
    pub(super) delay: Option<(Share, Duration)>,
    pub(super) abort: Option<(Share, Abort)>,
}

/// Parts of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(u32);

impl Share {
    pub(super) const ALL: Self = Self(1_000_000);

    /// From percent, which has four decimals.
    pub(super) fn of_percent(percent: f64) -> Self {
        // In range after the clamp.
        Self((percent.clamp(0.0, 100.0) * 10_000.0).round() as u32)
    }

    pub(super) fn per_million(self) -> u32 {
        self.0
    }
}

/// An error in place of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    Http(u32),
    Grpc(u32),
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) target: Target,
    pub(super) share: Share,
}

/// Cross-origin requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cors {
    pub(super) origins: Vec<TextMatch>,
    pub(super) methods: Vec<String>,
    pub(super) headers: Vec<String>,
    pub(super) expose: Vec<String>,
    pub(super) max_age: Option<Duration>,
    pub(super) credentials: bool,
    pub(super) unmatched: UnmatchedPreflights,
}

/// What happens to a preflight of an origin that is not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum UnmatchedPreflights {
    #[default]
    Forwarded,
    Ignored,
}
