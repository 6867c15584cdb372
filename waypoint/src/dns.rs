//! Looks up the names of endpoints, for as long as clusters have such names: one task, some look-ups at a time, each
//! answer for as long as it says. Where the name servers do not answer, what was known is kept.

use std::{
    collections::HashMap, fs, io, net::IpAddr, path::Path, pin::pin, sync::Arc, time::SystemTime,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::parse_resolv_conf,
};
use leyline_types::Str;
use metrics::counter;
use rand::RngExt;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::{
    app::Shared,
    config::cluster::{
        EndpointSource,
        dns::{Answers, DnsSource, Family},
    },
};

/// Clusters that are looked up at once.
const AT_ONCE: usize = 16;
/// For all names of a cluster.
const DEADLINE: Duration = Duration::from_secs(30);
/// For one server's answer, and how often it is asked.
const SERVER_DEADLINE: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;
/// However short-lived answers are, nobody is asked more often.
const MIN_LIFE: Duration = Duration::from_secs(1);
/// However long they live, they are looked at again.
const MAX_LIFE: Duration = Duration::from_secs(3600);

/// What is known of one cluster.
struct Known {
    source: Arc<DnsSource>,
    answers: Answers,
    /// When to ask next; none while it is asked.
    due: Option<Instant>,
}

/// What a look-up brought.
struct Found {
    cluster: Str,
    source: Arc<DnsSource>,
    /// Names that were answered, also with nothing.
    answers: Answers,
    /// When the first of them ends; none where a name was not answered.
    until: Option<Instant>,
}

/// Runs until the drain.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut known: HashMap<Str, Known> = HashMap::new();
    let mut asking: FuturesUnordered<BoxFuture<'static, Found>> = FuturesUnordered::new();
    let mut servers = Servers::default();
    loop {
        let mut changed = pin!(shared.config.changed());
        changed.as_mut().enable();
        follow(&shared, &mut known);
        ask(&shared, &mut known, &asking, &mut servers);
        let next = known.values().filter_map(|one| one.due).min();
        let waiting = asking.len() < AT_ONCE;
        tokio::select! {
            () = changed => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && waiting => {}
            found = asking.next(), if !asking.is_empty() => {
                if let Some(found) = found {
                    take(&shared, &mut known, found);
                }
            }
            () = shared.drain.started() => return,
        }
    }
}

/// Which clusters there are.
fn follow(shared: &Shared, known: &mut HashMap<Str, Known>) {
    let config = shared.config.load();
    known.retain(|name, known| match config.clusters.get(name) {
        Some(cluster) => {
            matches!(&cluster.endpoints, EndpointSource::Dns(now) if *now == known.source)
        }
        None => false,
    });
    for (name, cluster) in &config.clusters {
        if let EndpointSource::Dns(source) = &cluster.endpoints {
            known.entry(name.clone()).or_insert_with(|| Known {
                source: source.clone(),
                answers: Answers::new(),
                due: Some(Instant::now()),
            });
        }
    }
}

fn ask(
    shared: &Shared,
    known: &mut HashMap<Str, Known>,
    asking: &FuturesUnordered<BoxFuture<'static, Found>>,
    servers: &mut Servers,
) {
    let now = Instant::now();
    let due = known
        .iter_mut()
        .filter(|(_, one)| one.due.is_some_and(|due| due <= now));
    for (cluster, one) in due {
        if asking.len() >= AT_ONCE {
            return;
        }
        let resolver = match servers.resolver(&shared.settings.resolv_conf, one.source.family) {
            Ok(resolver) => resolver,
            Err(error) => {
                let path = shared.settings.resolv_conf.display();
                warn!(%path, error, "no name can be looked up");
                one.due = Some(now + one.source.refresh);
                continue;
            }
        };
        one.due = None;
        let (cluster, source) = (cluster.clone(), one.source.clone());
        asking.push(Box::pin(look_up(resolver, cluster, source)));
    }
}

async fn look_up(resolver: TokioResolver, cluster: Str, source: Arc<DnsSource>) -> Found {
    let deadline = Instant::now() + DEADLINE;
    let (mut answers, mut until) = (Answers::new(), Some(Instant::now() + MAX_LIFE));
    for name in source.names() {
        // Whole, so that no domain of our own is tried behind it.
        let whole = format!("{}.", name.trim_end_matches('.'));
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, resolver.lookup_ip(whole)).await {
            Ok(Ok(found)) => {
                let ends = Instant::from_std(found.valid_until()).max(Instant::now() + MIN_LIFE);
                until = until.map(|until| until.min(ends));
                let addresses: Vec<IpAddr> = found.iter().collect();
                answers.insert(name.to_owned(), addresses);
            }
            Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => {
                counter!("leyline_waypoint_dns_total", "result" => "nothing").increment(1);
                answers.insert(name.to_owned(), Vec::new());
                until = None;
            }
            Ok(Err(error)) => {
                failed(&cluster, name, &error);
                until = None;
            }
            Err(_elapsed) => {
                failed(
                    &cluster,
                    name,
                    &NetError::from(io::Error::from(io::ErrorKind::TimedOut)),
                );
                until = None;
            }
        }
    }
    Found {
        cluster,
        source,
        answers,
        until,
    }
}

fn failed(cluster: &Str, name: &str, error: &NetError) {
    counter!("leyline_waypoint_dns_total", "result" => "failed").increment(1);
    debug!(%cluster, name, %error, "look-up failed; what was known is kept");
}

/// Publishes what has changed.
fn take(shared: &Shared, known: &mut HashMap<Str, Known>, found: Found) {
    let Some(one) = known.get_mut(&found.cluster) else {
        return;
    };
    if !Arc::ptr_eq(&one.source, &found.source) {
        return;
    }
    // Not all waypoints at the same time.
    let jitter = rand::rng().random_range(1.0..1.5);
    let again = || Instant::now() + one.source.refresh.mul_f64(jitter);
    one.due = Some(found.until.unwrap_or_else(again));
    let before = one.answers.clone();
    for (name, mut addresses) in found.answers {
        if !addresses.is_empty() {
            counter!("leyline_waypoint_dns_total", "result" => "ok").increment(1);
        }
        // Servers give the same addresses in another order each time.
        addresses.sort_unstable();
        one.answers.insert(name, addresses);
    }
    if one.answers == before {
        return;
    }
    info!(cluster = %found.cluster, answers = ?one.answers, "names resolved");
    let assignment = one.source.expand(&one.answers);
    if let Err(error) = shared.config.resolved(&found.cluster, &assignment) {
        warn!(cluster = %found.cluster, %error, "resolved endpoints are of no use");
    }
}

/// The name servers of the pod, as of the last change of their file.
#[derive(Default)]
pub(crate) struct Servers {
    changed: Option<SystemTime>,
    by_family: HashMap<u8, TokioResolver>,
}

impl Servers {
    pub(crate) fn resolver(
        &mut self,
        path: &Path,
        family: Family,
    ) -> Result<TokioResolver, String> {
        let changed = fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok();
        if changed != self.changed {
            self.by_family.clear();
            self.changed = changed;
        }
        let key = family as u8;
        if let Some(known) = self.by_family.get(&key) {
            return Ok(known.clone());
        }
        let text = fs::read(path).map_err(|error| error.to_string())?;
        let (config, _) = parse_resolv_conf(text).map_err(|error| error.to_string())?;
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        *builder.options_mut() = options(family);
        let made = builder.build().map_err(|error| error.to_string())?;
        self.by_family.insert(key, made.clone());
        Ok(made)
    }
}

fn options(family: Family) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = SERVER_DEADLINE;
    options.attempts = ATTEMPTS;
    options.ip_strategy = match family {
        Family::V4 => LookupIpStrategy::Ipv4Only,
        Family::V6 => LookupIpStrategy::Ipv6Only,
        Family::PreferV4 => LookupIpStrategy::Ipv4thenIpv6,
        Family::PreferV6 => LookupIpStrategy::Ipv6thenIpv4,
        Family::Both => LookupIpStrategy::Ipv4AndIpv6,
    };
    // Answers are kept here, for as long as they say.
    options.cache_size = 0;
    options
}
