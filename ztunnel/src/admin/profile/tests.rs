use std::{io::Read, time::SystemTime};

use flate2::read::GzDecoder;
use http_body_util::BodyExt;
use prost::Message;

use super::*;

#[test]
fn settings_have_bounds() {
    let second = Duration::from_secs(1);
    assert_eq!(settings(""), Some((10 * second, 100)));
    assert_eq!(settings("seconds=1&frequency=1000"), Some((second, 1000)));
    for bad in [
        "seconds=0",
        "seconds=301",
        "frequency=0",
        "frequency=1001",
        "seconds",
        "x=1",
        "seconds=-1",
    ] {
        assert_eq!(settings(bad), None, "{bad}");
    }
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut unpacked).unwrap();
    unpacked
}

#[test]
fn stacks_are_bounded() {
    let mut stacks = HashMap::new();
    for address in 0..=MOST_STACKS as u64 {
        add(&mut stacks, 1, vec![address]);
        add(&mut stacks, 1, vec![0]);
    }
    assert_eq!(stacks.len(), MOST_STACKS + 1);
    assert_eq!(stacks[&(1, Box::default())], 1);
}

/// Does something that takes time, under a name to be found.
#[inline(never)]
fn busy_for_the_profile(until: SystemTime) -> u64 {
    let mut sum = 0_u64;
    while SystemTime::now() < until {
        for step in 0..10_000_u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(step));
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_time_is_spent_is_told() {
    let until = SystemTime::now() + Duration::from_secs(3);
    let work = spawn_blocking(move || busy_for_the_profile(until));
    let answer = cpu("seconds=1&frequency=200").await;
    let (status, body) = (answer.status(), answer.into_body().collect().await);
    let body = body.unwrap().to_bytes();
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let profile = encode::Profile::decode(&*unpacked(&body)).unwrap();
    work.await.unwrap();
    let running = RUNNING.lock().await;
    assert_eq!(cpu("").await.status(), StatusCode::CONFLICT);
    drop(running);
    assert_eq!(profile.period, 5_000_000);
    assert_eq!(profile.string_table[0], "");
    let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
    let name = |location: &u64| {
        let location = &profile.location[usize::try_from(*location).unwrap() - 1];
        let function = usize::try_from(location.line[0].function_id).unwrap() - 1;
        text(profile.function[function].name)
    };
    let names = |sample: &encode::Sample| sample.location_id.iter().map(name).collect::<Vec<_>>();
    let stacks: Vec<Vec<&str>> = profile.sample.iter().map(names).collect();
    // The function, and from whom it was called through libraries and runtime.
    let found = stacks.iter().any(|stack| {
        let at = stack
            .iter()
            .position(|name| name.contains("busy_for_the_profile"));
        at.is_some_and(|at| {
            stack[at..]
                .iter()
                .any(|name| name.contains("tokio::runtime"))
        })
    });
    assert!(found, "{stacks:#?}");
}
