use rand::RngExt;

use super::*;

fn full() -> Baggage {
    Baggage {
        cluster: "Kubernetes".into(),
        namespace: "shop".into(),
        kind: WorkloadKind::Deployment,
        workload: "web".into(),
        service: "web".into(),
        revision: "v1".into(),
        region: "eu-west".into(),
        zone: "a".into(),
    }
}

#[test]
fn writes_what_istio_writes() {
    assert_eq!(
        full().encode(),
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,\
         service.version=v1,cloud.region=eu-west,cloud.availability_zone=a"
    );
    let small = Baggage {
        kind: WorkloadKind::CronJob,
        workload: "tidy".into(),
        ..Baggage::default()
    };
    assert_eq!(small.encode(), "k8s.cronjob.name=tidy");
    let forwarded = Forwarded {
        client: "10.0.0.1:4000".parse().unwrap(),
        host: Some("web.shop.svc.cluster.local".into()),
    };
    assert_eq!(
        forwarded.to_string(),
        "for=\"10.0.0.1:4000\";host=web.shop.svc.cluster.local"
    );
    let v6 = Forwarded {
        client: "[2001:db8::1]:4000".parse().unwrap(),
        host: None,
    };
    assert_eq!(v6.to_string(), "for=\"[2001:db8::1]:4000\"");
    let text = Traceparent::random().to_string();
    assert_eq!(text.len(), 55);
    assert!(text.starts_with("00-") && text.ends_with("-00"));
}

#[test]
fn baggage_round_trips_and_tolerates_what_the_standard_allows() {
    assert_eq!(Baggage::parse(full().encode().as_bytes()), Ok(full()));
    assert_eq!(Baggage::parse(b""), Ok(Baggage::default()));
    let odd = Baggage {
        workload: "a,b;c=d %\u{e9}".into(),
        ..Baggage::default()
    };
    assert_eq!(odd.encode(), "k8s.deployment.name=a%2Cb%3Bc=d%20%25%C3%A9");
    assert_eq!(Baggage::parse(odd.encode().as_bytes()), Ok(odd));
    let spaced = Baggage::parse(b" service.name = web ;p=1;q , other=x,cloud.region=").unwrap();
    assert_eq!(spaced.service, "web");
    assert!(spaced.region.is_empty());
}

#[test]
fn baggage_rejects() {
    use HeaderError::{Character, Malformed, Repeated, TooLong};
    for (bad, why) in [
        ("service.name", Malformed),
        (",", Malformed),
        ("=x", Malformed),
        ("service.name=a,service.name=b", Repeated),
        ("k8s.pod.name=a,k8s.job.name=b", Repeated),
        ("service.name=a b", Character),
        ("service.name=%0a", Character),
        ("service.name=%ff", Character),
        ("service.name=%4", Malformed),
        ("service.name=%zz", Malformed),
        ("service.name=\u{7}", Character),
        (&"a=b,".repeat(181), TooLong),
        (&"a".repeat(8193), TooLong),
    ] {
        assert_eq!(Baggage::parse(bad.as_bytes()), Err(why), "{bad:.40}");
    }
}

#[test]
fn forwarded_parses_one_hop_with_an_address() {
    let parse = |text: &str| Forwarded::parse(text.as_bytes());
    let plain = parse("for=\"10.0.0.1:4000\"").unwrap();
    assert_eq!(plain.client, "10.0.0.1:4000".parse().unwrap());
    assert_eq!(plain.host, None);
    let odd =
        parse("proto=http; By=x;FOR=\"[::ffff:10.0.0.1]:4\\000\";host=\"Web.Shop:80\"").unwrap();
    assert_eq!(odd.client, "10.0.0.1:4000".parse().unwrap());
    assert_eq!(odd.host.unwrap(), "web.shop:80");
    assert!(parse("for=10.0.0.1:4000").is_ok());
    for bad in [
        "",
        "for",
        "for=",
        "for=\"",
        "for=\"10.0.0.1:1\\",
        "for=10.0.0.1",
        "for=unknown",
        "for=_hidden",
        "host=web",
        "for=\"10.0.0.1:1\";for=\"10.0.0.1:1\"",
        "for=\"10.0.0.1:1\", for=\"10.0.0.2:1\"",
        "for=\"10.0.0.1:1\"x",
        "for=\"10.0.0.1:1\";",
        "for=\"10.0.0.1:1\";host=a b",
        "for=\"10.0.0.1:1\";host=\"a\u{e9}\"",
        &"a=b;".repeat(9),
        &"a".repeat(2000),
    ] {
        assert!(parse(bad).is_err(), "{bad:.60}");
    }
}

#[test]
fn traceparent_parses_the_standard_form() {
    let good = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01";
    let parsed = Traceparent::parse(good.as_bytes()).unwrap();
    assert_eq!(parsed.to_string(), good);
    assert!(Traceparent::parse(format!("01{}-more", &good[2..]).as_bytes()).is_ok());
    for bad in [
        "",
        "00",
        &good[..54],
        &good.to_uppercase(),
        &format!("{good}-more"),
        &format!("ff{}", &good[2..]),
        "00-00000000000000000000000000000000-0123456789abcdef-01",
        "00-0123456789abcdef0123456789abcdef-0000000000000000-01",
        "00-+123456789abcdef0123456789abcdef-0123456789abcdef-01",
    ] {
        assert!(Traceparent::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

/// Mutations of valid values and plain noise: no panic, and what parses can be written and read back.
#[test]
fn parsers_take_any_bytes() {
    let mut rng = rand::rng();
    let seeds = [
        full().encode(),
        "for=\"10.0.0.1:4000\";host=web.shop".to_owned(),
        Traceparent::random().to_string(),
        "10.0.0.1:80".to_owned(),
        "[2001:db8::1]:443".to_owned(),
    ];
    for round in 0..40_000 {
        let mut bytes = seeds[round % seeds.len()].clone().into_bytes();
        for _ in 0..rng.random_range(0..6) {
            let at = rng.random_range(0..=bytes.len());
            match rng.random_range(0..4) {
                0 if at < bytes.len() => bytes[at] = rng.random(),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at, b",;=\"%\\ :-[]"[rng.random_range(0..11)]),
                _ => bytes.truncate(at),
            }
        }
        if let Ok(parsed) = Baggage::parse(&bytes) {
            assert_eq!(Baggage::parse(parsed.encode().as_bytes()), Ok(parsed));
        }
        if let Ok(parsed) = Forwarded::parse(&bytes) {
            assert_eq!(Forwarded::parse(parsed.to_string().as_bytes()), Ok(parsed));
        }
        if let Ok(parsed) = Traceparent::parse(&bytes) {
            assert_eq!(
                Traceparent::parse(parsed.to_string().as_bytes()),
                Ok(parsed)
            );
        }
        if let Ok(text) = str::from_utf8(&bytes)
            && let Ok(parsed) = text.parse::<leyline_types::HboneAuthority>()
        {
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }
}
