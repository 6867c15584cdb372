//! The checks of the demo, each on a mesh of its own.

use leyline_tests::checks::Check;

use crate::support::{bookstore, enrolled_with, mesh};

macro_rules! checks {
    ($($name:ident: $check:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let mut mesh = mesh().await;
            let seen = $check.run(&mut mesh).await;
            assert!(seen.is_ok(), "{:#}", seen.unwrap_err());
            mesh.stop().await.unwrap();
        }
    )*};
}

checks! {
    a_label_enrols_and_releases_running_pods: Check::Enrolment;
    the_wire_shows_no_secret: Check::Wire;
    both_sides_know_each_other: Check::Identity;
    strict_refuses_plain_text: Check::Modes;
    policies_act_also_on_live_connections: Check::Policy;
    every_way_of_talking_works: Check::Traffic;
    dead_programs_leak_nothing: Check::Failure;
    wrong_input_is_reported: Check::Input;
    foreign_peers_are_served_or_refused: Check::Foreign;
}

/// All on one mesh, as the demo makes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_keeps_the_promises_of_the_demo() {
    let mut mesh = bookstore().await;
    for check in Check::WAYPOINT {
        let seen = check.run(&mut mesh).await;
        assert!(seen.is_ok(), "{check:?}: {:#}", seen.unwrap_err());
    }
    mesh.stop().await.unwrap();
}

/// Forced: this kernel would take the other variant by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_lookup_of_kernels_before_5_17_carries_all_traffic() {
    let variant = [("LEYLINE_STEER", "before-5.17")];
    let mut mesh = enrolled_with(&["node-a", "node-b"], &variant).await;
    for check in [Check::Modes, Check::Traffic] {
        let seen = check.run(&mut mesh).await;
        assert!(seen.is_ok(), "{:#}", seen.unwrap_err());
    }
    mesh.stop().await.unwrap();
}
