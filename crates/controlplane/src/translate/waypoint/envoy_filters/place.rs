//! Where an EnvoyFilter's patch is to be made: what of its `match` a waypoint has, and what it has not.

use super::{MANAGER, NoEffect, ROUTER, no_effect};
use crate::objects::l7::envoy_filter::{FilterMatch, PatchMatch};

/// Port, name of the virtual host, name of the route.
pub(super) type RoutePlace = (Option<u32>, Option<String>, Option<String>);

/// The port, where the place is one before the router.
pub(super) fn of_filters(matches: &PatchMatch) -> Result<Option<u32>, NoEffect> {
    if matches.route_configuration.is_some() {
        return no_effect("match.routeConfiguration", "filters are not in routes");
    }
    if let Some(waypoint) = &matches.waypoint {
        if waypoint.route.is_some() {
            return no_effect("match.waypoint.route", "filters are not in routes");
        }
        filter_place("match.waypoint.filter", waypoint.filter.as_ref())?;
        return Ok(waypoint.port_number);
    }
    let Some(listener) = &matches.listener else {
        return Ok(None);
    };
    if listener.port_name.is_some() || listener.name.is_some() || listener.listener_filter.is_some()
    {
        return no_effect(
            "match.listener",
            "only portNumber and filterChain.filter are supported",
        );
    }
    let Some(chain) = &listener.filter_chain else {
        return Ok(listener.port_number);
    };
    let others = [
        &chain.name,
        &chain.sni,
        &chain.transport_protocol,
        &chain.application_protocols,
    ];
    if others.iter().any(|other| other.is_some()) || chain.destination_port.is_some() {
        return no_effect("match.listener.filterChain", "only filter is supported");
    }
    filter_place("match.listener.filterChain.filter", chain.filter.as_ref())?;
    Ok(listener.port_number)
}

fn filter_place(field: &str, filter: Option<&FilterMatch>) -> Result<(), NoEffect> {
    let Some(filter) = filter else { return Ok(()) };
    if filter.name.as_deref().is_some_and(|name| name != MANAGER) {
        return no_effect(
            &format!("{field}.name"),
            format!("only {MANAGER} has HTTP filters"),
        );
    }
    let sub = filter.sub_filter.as_ref();
    let sub = sub.and_then(|sub| sub.name.as_deref());
    if sub.is_some_and(|name| name != ROUTER) {
        return no_effect(
            &format!("{field}.subFilter.name"),
            format!("only {ROUTER} is supported"),
        );
    }
    Ok(())
}

/// The port and the virtual host.
pub(super) fn of_hosts(matches: &PatchMatch) -> Result<RoutePlace, NoEffect> {
    if matches
        .waypoint
        .as_ref()
        .is_some_and(|it| it.route.is_some())
    {
        return no_effect("match.waypoint.route", "a virtual host is no route");
    }
    of_routes(matches)
}

/// The port, the virtual host and the route.
pub(super) fn of_routes(matches: &PatchMatch) -> Result<RoutePlace, NoEffect> {
    if matches.listener.is_some() {
        return no_effect("match.listener", "routes are chosen by routeConfiguration");
    }
    if let Some(waypoint) = &matches.waypoint {
        if waypoint.filter.is_some() {
            return no_effect("match.waypoint.filter", "routes are in no filter");
        }
        let route = waypoint.route.as_ref().and_then(|route| route.name.clone());
        return Ok((waypoint.port_number, None, route));
    }
    let Some(routes) = &matches.route_configuration else {
        return Ok((None, None, None));
    };
    if routes.port_name.is_some() || routes.gateway.is_some() || routes.name.is_some() {
        return no_effect(
            "match.routeConfiguration",
            "only portNumber and vhost are supported",
        );
    }
    let host = routes.vhost.as_ref();
    if host.is_some_and(|host| host.domain_name.is_some()) {
        return no_effect(
            "match.routeConfiguration.vhost.domainName",
            "is not supported: a waypoint's routes are for all hosts",
        );
    }
    let route = host.and_then(|host| host.route.as_ref());
    if let Some(action) = route.and_then(|route| route.action.as_deref())
        && !["ANY", "ROUTE"].contains(&action)
    {
        return no_effect(
            "match.routeConfiguration.vhost.route.action",
            format!("{action} is not supported"),
        );
    }
    Ok((
        routes.port_number,
        host.and_then(|host| host.name.clone()),
        route.and_then(|route| route.name.clone()),
    ))
}
