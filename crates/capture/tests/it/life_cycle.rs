//! What is left behind: nothing.

use std::{fs, net::IpAddr};

use aya::{
    maps::loaded_maps,
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use futures::TryStreamExt;
use leyline_capture::{RULE_PRIORITY_DNS, RULE_PRIORITY_MARK, TABLE, remove_instance};
use leyline_net::NetNs;
use netlink_packet_route::{
    route::{RouteAttribute, RouteMessage, RouteProtocol},
    rule::{RuleAttribute, RuleMessage},
};
use rtnetlink::IpVersion;

use crate::{
    app::{self, PORT, ask, at},
    lab::{FAMILIES, Lab, block_on, eventually, namespace, netlink, read_sysctl, routes, sysctl},
    proxy::{Dns, Proxy},
};

const SYSCTLS: [&str; 3] = [
    "ipv4/tcp_fwmark_accept",
    "ipv4/fwmark_reflect",
    "ipv6/fwmark_reflect",
];

/// Everything of routing and sysctls in a namespace that capture may touch.
fn state(netns: &NetNs) -> (Vec<RuleMessage>, Vec<RouteMessage>, [String; 3]) {
    let rules = netlink(netns, async |handle| {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let stream = handle.rule().get(version).execute();
            rules.extend(stream.try_collect::<Vec<_>>().await.unwrap());
        }
        rules
    });
    let mut routes = routes(netns);
    // What the kernel makes for addresses comes and goes by itself.
    routes.retain(|r| r.header.protocol != RouteProtocol::Kernel);
    for route in &mut routes {
        // Ages and use counts differ with every look.
        route
            .attributes
            .retain(|a| !matches!(a, RouteAttribute::CacheInfo(_)));
    }
    (rules, routes, SYSCTLS.map(|name| read_sysctl(netns, name)))
}

#[test]
fn removal_leaves_nothing_in_the_pod() {
    let lab = Lab::new();
    let pod_netns = &lab.client.netns;
    sysctl(pod_netns, "ipv4/fwmark_reflect", "1");
    // The first packet to a neighbour makes no route, but settle everything that could.
    app::serve(&lab.server.netns, PORT);
    for family in FAMILIES {
        ask(pod_netns, at(lab.server.ip(family))).unwrap();
    }
    let before = state(pod_netns);
    let node = lab.attach();
    let proxy = Proxy::start(&lab.client, Dns::On);
    let pod = proxy.enroll(&node).unwrap();
    let (rules, routes, sysctls) = state(pod_netns);
    let ours: Vec<u32> = rules
        .iter()
        .filter(|r| r.attributes.contains(&RuleAttribute::Table(TABLE)))
        .flat_map(|r| &r.attributes)
        .filter_map(|a| match a {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        })
        .collect();
    let each = [RULE_PRIORITY_MARK, RULE_PRIORITY_DNS];
    assert_eq!(ours, [each, each].concat());
    let is_ours = |r: &&RouteMessage| r.attributes.contains(&RouteAttribute::Table(TABLE));
    assert_eq!(routes.iter().filter(is_ours).count(), 4);
    assert_eq!(sysctls, ["1", "1", "1"]);
    assert_eq!(node.pinned_pods().unwrap(), [pod_netns.cookie()]);

    proxy.remove(pod);
    assert_eq!(state(pod_netns), before);
    assert_eq!(before.2, ["0", "1", "0"], "former values");
    assert_eq!(node.pinned_pods().unwrap(), [0_u64; 0]);
    for family in FAMILIES {
        let answer = ask(pod_netns, at(lab.server.ip(family))).unwrap();
        assert_eq!(answer.seen, answer.local);
    }
}

#[test]
fn a_takeover_keeps_the_values_to_go_back_to() {
    let lab = Lab::new();
    let before = state(&lab.client.netns);
    let (old, new) = (lab.attach(), lab.attach());
    let first = Proxy::start(&lab.client, Dns::Off);
    let _first_pod = first.enroll(&old).unwrap();
    let second = Proxy::start(&lab.client, Dns::Off);
    let pod = second.enroll(&new).unwrap();
    second.remove(pod);
    assert_eq!(state(&lab.client.netns), before);
}

/// Ids of programs and maps behind the pins of an instance, including programs behind links.
fn pinned_ids(lab: &Lab) -> (Vec<u32>, Vec<u32>) {
    let (mut programs, mut maps) = (Vec::new(), Vec::new());
    let mut directories = vec![lab.instance.pins()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path
                .file_name()
                .unwrap()
                .as_encoded_bytes()
                .starts_with(b"link_")
            {
                let link = FdLink::from(PinnedLink::from_pin(&path).unwrap());
                programs.push(link.info().unwrap().program_id());
            } else {
                let map = aya::maps::MapData::from_pin(&path).unwrap();
                maps.push(map.info().unwrap().id());
            }
        }
    }
    (programs, maps)
}

#[test]
fn final_removal_leaves_nothing_in_the_kernel() {
    let lab = Lab::new();
    let before = [state(&lab.client.netns), state(&lab.server.netns)];
    let node = lab.attach();
    let (near, far) = (
        Proxy::start(&lab.client, Dns::On),
        Proxy::start(&lab.server, Dns::Off),
    );
    let pods = (near.enroll(&node).unwrap(), far.enroll(&node).unwrap());
    let (programs, maps) = pinned_ids(&lab);
    assert_eq!(programs.len(), 9 + 2, "hooks and two socket lookups");
    assert_eq!(maps.len(), 6 + 2 * 7);
    drop((near, far, pods));

    drop(node);

    let known = [lab.client.netns.clone(), lab.server.netns.clone()];
    let removed = remove_instance("/sys/fs/bpf".as_ref(), &lab.instance.0, &known).unwrap();
    assert_eq!(removed.pods.len(), 2);
    assert_eq!(removed.unreachable, [0_u64; 0]);
    assert!(!lab.instance.pins().exists());
    assert_eq!([state(&lab.client.netns), state(&lab.server.netns)], before);
    // The kernel frees them after a grace period.
    eventually("all programs and maps are freed", || {
        let programs_left = loaded_programs()
            .flatten()
            .any(|p| programs.contains(&p.id()));
        let maps_left = loaded_maps().flatten().any(|m| maps.contains(&m.id()));
        !programs_left && !maps_left
    });
}

#[test]
fn leftovers_are_removed_without_attaching() {
    let lab = Lab::new();
    let before = state(&lab.client.netns);
    {
        let node = lab.attach();
        let proxy = Proxy::start(&lab.client, Dns::Off);
        proxy.enroll(&node).unwrap();
    }
    let known = [lab.client.netns.clone()];
    let removed = remove_instance("/sys/fs/bpf".as_ref(), &lab.instance.0, &known).unwrap();
    assert_eq!(removed.pods, [lab.client.netns.cookie()]);
    assert!(!lab.instance.pins().exists());
    assert_eq!(state(&lab.client.netns), before);
}

#[test]
fn a_living_pod_that_cannot_be_found_stays_captured() {
    let lab = Lab::new();
    {
        let node = lab.attach();
        let proxy = Proxy::start(&lab.client, Dns::Off);
        proxy.enroll(&node).unwrap();
    }
    // No process is in the namespace, and nobody names it.
    let removed = remove_instance("/sys/fs/bpf".as_ref(), &lab.instance.0, &[]).unwrap();
    assert_eq!(removed.pods, [0_u64; 0]);
    assert_eq!(removed.unreachable, [lab.client.netns.cookie()]);
    assert!(
        ask(&lab.client.netns, at(lab.server.v4)).is_err(),
        "refused"
    );
}

#[test]
fn a_pod_left_by_an_earlier_process_can_be_released() {
    let lab = Lab::new();
    app::serve(&lab.server.netns, PORT);
    let before = state(&lab.client.netns);
    {
        let node = lab.attach();
        let proxy = Proxy::start(&lab.client, Dns::Off);
        proxy.enroll(&node).unwrap();
    }
    let node = lab.attach();
    assert_eq!(node.pinned_pods().unwrap(), [lab.client.netns.cookie()]);
    block_on(node.release(&lab.client.netns)).unwrap();
    block_on(node.release(&lab.client.netns)).unwrap();
    assert_eq!(node.pinned_pods().unwrap(), [0_u64; 0]);
    assert_eq!(state(&lab.client.netns), before);
    ask(&lab.client.netns, at(lab.server.v4)).unwrap();
}

#[test]
fn pods_whose_namespace_is_gone_are_collected() {
    let lab = Lab::new();
    let node = lab.attach();
    let stays = Proxy::start(&lab.client, Dns::Off);
    let _pod = stays.enroll(&node).unwrap();
    let cookie = {
        let netns = namespace();
        let own: IpAddr = "10.9.0.2".parse().unwrap();
        let proxy = Proxy::start_in(&netns, &[own], Dns::Off);
        proxy.enroll(&node).unwrap();
        netns.cookie()
    };
    assert!(node.pinned_pods().unwrap().contains(&cookie));
    // The kernel takes a namespace down in the background.
    let mut collected = Vec::new();
    eventually("the pins are collected", || {
        collected.extend(node.collect_garbage().unwrap());
        !collected.is_empty()
    });
    assert_eq!(collected, [cookie]);
    assert_eq!(node.pinned_pods().unwrap(), [lab.client.netns.cookie()]);
    assert!(
        !lab.instance
            .pins()
            .join("pods")
            .join(cookie.to_string())
            .exists()
    );
}
