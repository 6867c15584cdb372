use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn id(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

fn names(schedule: &mut Schedule, now: Instant) -> Vec<String> {
    let fetches = std::iter::from_fn(|| schedule.next(now));
    fetches
        .map(|fetch| fetch.identity.service_account().to_string())
        .collect()
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[test]
fn backoff_doubles_up_to_its_maximum() {
    for (failures, random, expected) in [
        (0, 0.5, 1.0),
        (1, 0.5, 2.0),
        (2, 0.0, 3.2),
        (2, 1.0, 4.8),
        (7, 0.5, 128.0),
        (8, 0.5, 150.0),
        (40, 0.0, 120.0),
        (u32::MAX, 1.0, 180.0),
    ] {
        assert_eq!(
            seconds(backoff(failures, random)),
            expected,
            "{failures} {random}"
        );
    }
}

#[test]
fn renewal_is_around_half_life() {
    for (remaining, random, expected) in [
        (HOUR, 0.5, 1800.0),
        (HOUR, 0.0, 1764.0),
        (HOUR, 1.0, 1836.0),
        (Duration::from_millis(10), 0.5, 1.0),
        (Duration::ZERO, 0.5, 1.0),
    ] {
        assert_eq!(
            seconds(renewal_delay(remaining, random)),
            expected,
            "{remaining:?} {random}"
        );
    }
}

#[test]
fn serves_by_priority_then_arrival() {
    let now = Instant::now();
    let mut schedule = Schedule::new(10, 10);
    for (name, priority) in [
        ("a", Priority::Warmup),
        ("b", Priority::Warmup),
        ("c", Priority::RealTime),
        ("d", Priority::Background),
        ("e", Priority::RealTime),
        // Wanted again: moves up, or stays.
        ("d", Priority::RealTime),
        ("c", Priority::Background),
        ("a", Priority::Warmup),
    ] {
        schedule.want(&id(name), priority).unwrap();
    }
    assert_eq!(schedule.queue.len(), 5);
    assert_eq!(names(&mut schedule, now), ["c", "e", "d", "a", "b"]);
    assert_eq!((schedule.queue.len(), schedule.in_flight), (0, 5));
}

#[test]
fn bounds_fetches_and_identities() {
    let now = Instant::now();
    let mut schedule = Schedule::new(2, 3);
    for name in ["a", "b", "c"] {
        schedule.want(&id(name), Priority::Warmup).unwrap();
    }
    assert_eq!(schedule.want(&id("d"), Priority::RealTime), Err(Full));
    let first = schedule.next(now).unwrap();
    assert!(schedule.next(now).is_some());
    assert_eq!(schedule.next(now), None);
    assert!(schedule.succeeded(&first, now, HOUR, 0.5));
    assert_eq!(names(&mut schedule, now), ["c"]);
    schedule.forget(&id("a"));
    schedule.want(&id("d"), Priority::RealTime).unwrap();
}

#[test]
fn renews_at_half_life_and_retries_with_backoff() {
    let start = Instant::now();
    let mut schedule = Schedule::new(8, 8);
    schedule.want(&id("a"), Priority::RealTime).unwrap();
    let fetch = schedule.next(start).unwrap();
    assert_eq!(schedule.wake_at(), None);
    assert!(schedule.succeeded(&fetch, start, HOUR, 0.5));

    let half = start + HOUR / 2;
    assert_eq!(schedule.wake_at(), Some(half));
    assert_eq!(schedule.next(half - Duration::from_secs(1)), None);
    let renewal = schedule.next(half).unwrap();
    assert_eq!(
        schedule.failed(&renewal, half, 0.5),
        Some(Duration::from_secs(1))
    );
    assert_eq!(schedule.wake_at(), Some(half + Duration::from_secs(1)));
    let retry = schedule.next(half + Duration::from_secs(1)).unwrap();
    assert_eq!(
        schedule.failed(&retry, half, 0.5),
        Some(Duration::from_secs(2))
    );
    let retry = schedule.next(half + HOUR).unwrap();
    assert!(schedule.succeeded(&retry, half + HOUR, HOUR, 0.5));
    // A success forgives the failures.
    let renewal = schedule.next(half + 2 * HOUR).unwrap();
    assert_eq!(
        schedule.failed(&renewal, half, 0.5),
        Some(Duration::from_secs(1))
    );
}

#[test]
fn renewals_let_others_go_first_while_the_certificate_is_valid() {
    for (age, order) in [(HOUR / 2, ["new", "old"]), (2 * HOUR, ["old", "new"])] {
        let start = Instant::now();
        let mut schedule = Schedule::new(8, 8);
        schedule.want(&id("old"), Priority::Warmup).unwrap();
        let fetch = schedule.next(start).unwrap();
        schedule.succeeded(&fetch, start, HOUR, 0.5);
        schedule.queue_due(start + age);
        schedule.want(&id("new"), Priority::Warmup).unwrap();
        assert_eq!(names(&mut schedule, start + age), order);
    }
}

#[test]
fn a_forgotten_fetch_changes_nothing() {
    let now = Instant::now();
    let mut schedule = Schedule::new(1, 8);
    schedule.want(&id("a"), Priority::RealTime).unwrap();
    let stale = schedule.next(now).unwrap();
    schedule.forget(&id("a"));
    schedule.want(&id("a"), Priority::RealTime).unwrap();
    // The place is taken until the stale fetch has ended.
    assert_eq!(schedule.next(now), None);
    assert!(!schedule.succeeded(&stale, now, HOUR, 0.5));
    assert_eq!(schedule.wake_at(), None);
    let fresh = schedule.next(now).unwrap();
    assert_eq!(
        schedule.failed(&fresh, now, 0.5),
        Some(Duration::from_secs(1))
    );
    schedule.forget(&id("a"));
    assert_eq!(
        (schedule.wake_at(), schedule.queue.len(), schedule.in_flight),
        (None, 0, 0)
    );
}

#[test]
fn an_expired_certificate_that_is_wanted_is_fetched_at_once() {
    let start = Instant::now();
    let mut schedule = Schedule::new(8, 8);
    schedule.want(&id("a"), Priority::Warmup).unwrap();
    let fetch = schedule.next(start).unwrap();
    schedule.succeeded(&fetch, start, HOUR, 0.5);
    schedule.want(&id("a"), Priority::Warmup).unwrap();
    assert_eq!(schedule.next(start), None);
    schedule.want(&id("a"), Priority::RealTime).unwrap();
    assert_eq!(names(&mut schedule, start), ["a"]);
    assert_eq!(schedule.wake_at(), None);
}

#[test]
fn all_are_renewed_at_once_and_what_is_being_fetched_once_more() {
    let mut schedule = Schedule::new(8, 8);
    let start = Instant::now();
    let mut fetched = |name: &str| {
        schedule.want(&id(name), Priority::Warmup).unwrap();
        let fetch = schedule.next(start).unwrap();
        assert!(schedule.succeeded(&fetch, start, HOUR, 0.5));
    };
    fetched("a");
    fetched("b");
    schedule.want(&id("c"), Priority::Warmup).unwrap();
    let running = schedule.next(start).unwrap();
    schedule.want(&id("d"), Priority::Warmup).unwrap();

    let later = start + Duration::from_secs(60);
    schedule.renew_all(later);
    assert_eq!(names(&mut schedule, later), ["d", "a", "b"]);
    assert!(schedule.succeeded(&running, later, HOUR, 0.5));
    let again = schedule.next(later).unwrap();
    assert_eq!(again.identity, id("c"));
    assert!(schedule.succeeded(&again, later, HOUR, 0.5));
    // Then as ever.
    assert_eq!(schedule.next(later + HOUR / 4), None);
}

#[test]
fn what_changes_during_a_fetch_that_fails_is_seen_at_once() {
    let mut schedule = Schedule::new(8, 8);
    let start = Instant::now();
    schedule.want(&id("a"), Priority::Warmup).unwrap();
    let fetch = schedule.next(start).unwrap();
    schedule.renew_all(start);
    assert_eq!(schedule.failed(&fetch, start, 0.5), Some(Duration::ZERO));
    // Once: after that it is tried again later.
    let fetch = schedule.next(start).unwrap();
    let retry = schedule.failed(&fetch, start, 0.5).unwrap();
    assert_eq!(retry, Duration::from_secs(2));
    assert_eq!(schedule.wake_at(), Some(start + retry));
}

#[test]
fn one_identity_is_renewed_and_no_other() {
    let mut schedule = Schedule::new(8, 8);
    let start = Instant::now();
    for name in ["waits", "other", "runs"] {
        schedule.want(&id(name), Priority::Warmup).unwrap();
    }
    let fetches = [(); 3].map(|()| schedule.next(start).unwrap());
    let [waits, other, runs] = &fetches;
    assert!(schedule.succeeded(waits, start, HOUR, 0.5));
    assert!(schedule.succeeded(other, start, HOUR, 0.5));
    for name in ["waits", "runs", "unknown"] {
        schedule.renew(&id(name), start);
    }
    assert_eq!(names(&mut schedule, start), ["waits"]);
    assert!(schedule.succeeded(runs, start, HOUR, 0.5));
    assert_eq!(names(&mut schedule, start), ["runs"]);
    assert_eq!(schedule.entries.len(), 3);
}
