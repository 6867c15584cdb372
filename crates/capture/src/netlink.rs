//! Addresses, routes and rules of a pod by rtnetlink. All functions block and act on the namespace of the thread, in
//! which they open their socket.

use std::{io, net::IpAddr, time::Duration};

use futures::TryStreamExt;
use leyline_ebpf_abi::{DNS_PROXY_PORT, GUEST_MARK};
use leyline_types::InterfaceName;
use netlink_packet_route::{
    AddressFamily, IpProtocol,
    address::{AddressAttribute, AddressScope},
    route::{RouteAttribute, RouteMessage, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tokio::time::timeout;

/// The routing table of captured traffic (T of the capture design), unlikely to be anybody else's.
pub const TABLE: u32 = 4133;
/// Priority of the rule that leads marked packets to [`TABLE`]; before anything a pod sets up itself.
pub const RULE_PRIORITY_MARK: u32 = 90;
/// Priority of the rule that leads diverted DNS datagrams to [`TABLE`].
pub const RULE_PRIORITY_DNS: u32 = 91;

/// Priority of the rules that lead what guests send to [`TABLE`], one for each of their interfaces.
pub const RULE_PRIORITY_GUESTS: u32 = 92;

/// Metric of the route for sockets bound to a device: it must lose against the one through loopback. The device's index
/// is added, because IPv4 takes only one default route per metric.
const BOUND_METRIC: u32 = 4096;
const LOOPBACK: &str = "lo";
const LOOPBACK_INDEX: u32 = 1;
/// A dozen messages to the kernel take a millisecond; only a stuck RTNL lock takes longer.
const DEADLINE: Duration = Duration::from_secs(5);

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
}

/// What one family needs in [`TABLE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FamilyRoutes {
    /// Preferred source. Without it a local route would give connections their destination as source.
    pub(crate) source: IpAddr,
    /// Interfaces that an application may bind its sockets to, each with its source.
    pub(crate) devices: Vec<InterfaceAddress>,
}

/// What a pod needs.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) capture_mark: u32,
    pub(crate) dns: bool,
    pub(crate) families: Vec<FamilyRoutes>,
    /// Interfaces behind which there are guests.
    pub(crate) guests: Vec<InterfaceName>,
}

/// Addresses that others can reach: not loopback's, not of one link only.
pub(crate) fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    run(async |handle| {
        let mut found = Vec::new();
        let mut stream = Box::pin(handle.address().get().execute());
        while let Some(message) = stream.try_next().await? {
            let reachable = matches!(
                message.header.scope,
                AddressScope::Universe | AddressScope::Site
            );
            if !reachable || message.header.index == LOOPBACK_INDEX {
                continue;
            }
            // On a point-to-point link `Address` is the peer's, and only `Local` is ours.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            if let Some(ip) = local.or(address) {
                found.push(InterfaceAddress {
                    index: message.header.index,
                    ip,
                });
            }
        }
        Ok(found)
    })
}

/// Adds what is missing of the plan. Routes come before the rules that lead to them.
pub(crate) fn apply(plan: &Plan) -> io::Result<()> {
    run(async |handle| {
        for family in &plan.families {
            for route in routes(family) {
                handle.route().add(route).replace().execute().await?;
            }
            add_rule(&handle, mark_rule(family.source, plan.capture_mark)).await?;
            if plan.dns {
                add_rule(&handle, dns_rule(family.source)).await?;
            }
            for interface in &plan.guests {
                add_rule(&handle, guest_rule(family.source, interface)).await?;
            }
        }
        Ok(())
    })
}

/// Removes all rules that lead to [`TABLE`], then its routes, whoever made them and with which mark.
pub(crate) fn remove() -> io::Result<()> {
    run(async |handle| {
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in rules(&handle, version.clone()).await? {
                ignore(&[libc::ENOENT], handle.rule().del(rule).execute().await)?;
            }
            for route in table(&handle, version).await? {
                ignore(&[libc::ESRCH], handle.route().del(route).execute().await)?;
            }
        }
        Ok(())
    })
}

/// Runs `work` with a netlink socket that this thread drives until `work` is done.
fn run<T>(work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection()?;
        // Both are needed at once: the connection carries the messages that `work` sends and awaits.
        tokio::select! {
            () = connection => Err(io::Error::other("the netlink socket closed")),
            result = timeout(DEADLINE, work(handle)) => match result {
                Ok(done) => done.map_err(into_io),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    })
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn ignore(codes: &[i32], result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if codes.contains(&message.raw_code().abs()) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// `local default dev lo`, which delivers here whatever is led to the table, and the same on each device, for sockets
/// that are bound to one.
fn routes(family: &FamilyRoutes) -> Vec<RouteMessage> {
    let through = |index: u32, source: IpAddr| {
        let mut route = match source {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .pref_source(v4)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .pref_source(v6)
                .build(),
        };
        route.header.kind = RouteType::Local;
        route.header.scope = RouteScope::Host;
        route.attributes.push(RouteAttribute::Table(TABLE));
        route.attributes.push(RouteAttribute::Oif(index));
        route
    };
    let mut all = vec![through(LOOPBACK_INDEX, family.source)];
    for device in &family.devices {
        let mut route = through(device.index, device.ip);
        let metric = BOUND_METRIC + device.index;
        route.attributes.push(RouteAttribute::Priority(metric));
        all.push(route);
    }
    all
}

/// Every rule says what it is for: `iif lo` for what the pod itself sends. Without it the kernel would consult it for the
/// reverse path of incoming packets too, and drop them as martians.
fn rule(of: IpAddr, priority: u32, from: &str, matching: Vec<RuleAttribute>) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = match of {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    rule.header.action = RuleAction::ToTable;
    rule.attributes = matching;
    rule.attributes.extend([
        RuleAttribute::Iifname(from.to_owned()),
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(TABLE),
    ]);
    rule
}

fn mark_rule(of: IpAddr, mark: u32) -> RuleMessage {
    let matching = vec![RuleAttribute::FwMark(mark)];
    rule(of, RULE_PRIORITY_MARK, LOOPBACK, matching)
}

/// The kernel finds the interface by its name, whenever there is one, and answers to guests, which bear the mark too, do
/// not come in by it. Its mark is on what `reroute` has chosen alone: the reverse path of what is forwarded to a guest
/// looks as if it came in by the interface.
fn guest_rule(of: IpAddr, interface: &InterfaceName) -> RuleMessage {
    let matching = vec![RuleAttribute::FwMark(GUEST_MARK)];
    rule(of, RULE_PRIORITY_GUESTS, interface.as_str(), matching)
}

fn dns_rule(of: IpAddr) -> RuleMessage {
    let matching = vec![
        RuleAttribute::IpProtocol(IpProtocol::Udp),
        RuleAttribute::DestinationPortRange(RulePortRange {
            start: DNS_PROXY_PORT,
            end: DNS_PROXY_PORT,
        }),
    ];
    rule(of, RULE_PRIORITY_DNS, LOOPBACK, matching)
}

async fn add_rule(handle: &Handle, rule: RuleMessage) -> Result<(), rtnetlink::Error> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule;
    ignore(&[libc::EEXIST], request.execute().await)
}

async fn rules(handle: &Handle, of: IpVersion) -> Result<Vec<RuleMessage>, rtnetlink::Error> {
    let dump: Vec<RuleMessage> = match handle.rule().get(of).execute().try_collect().await {
        Ok(dump) => dump,
        Err(e) => return without_family(e),
    };
    let leads_here = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Table(TABLE));
    Ok(dump.into_iter().filter(leads_here).collect())
}

async fn table(handle: &Handle, of: IpVersion) -> Result<Vec<RouteMessage>, rtnetlink::Error> {
    let query = match of {
        IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    };
    let dump: Vec<RouteMessage> = match handle.route().get(query).execute().try_collect().await {
        Ok(dump) => dump,
        Err(e) => return without_family(e),
    };
    let is_of_table =
        |route: &RouteMessage| route.attributes.contains(&RouteAttribute::Table(TABLE));
    Ok(dump.into_iter().filter(is_of_table).collect())
}

/// A kernel without IPv6 has no rules and routes of it.
fn without_family<T>(error: rtnetlink::Error) -> Result<Vec<T>, rtnetlink::Error> {
    ignore(&[libc::EAFNOSUPPORT, libc::EOPNOTSUPP], Err(error)).map(|()| Vec::new())
}
