use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn response(code: ResponseCode, answers: &[u32], soa: Option<(u32, u32)>) -> Vec<u8> {
    let mut message = Message::response(7, OpCode::Query);
    message.add_query(Query::query(name("Www.example.com."), RecordType::A));
    message.metadata.response_code = code;
    for ttl in answers {
        let data = RData::A(A::new(192, 0, 2, 1));
        message.add_answer(Record::from_rdata(name("www.example.com."), *ttl, data));
    }
    if let Some((ttl, minimum)) = soa {
        let soa = SOA::new(name("ns.x."), name("root.x."), 1, 2, 3, 4, minimum);
        message.add_authority(Record::from_rdata(
            name("example.com."),
            ttl,
            RData::SOA(soa),
        ));
    }
    message.to_vec().unwrap()
}

#[test]
fn lifetimes_are_what_the_records_allow() {
    let check = |message: &[u8], expected: Option<u32>| {
        assert_eq!(Lifetime::of(message).map(|life| life.ttl), expected);
    };
    check(
        &response(ResponseCode::NoError, &[60, 30, 90], None),
        Some(30),
    );
    check(&response(ResponseCode::NoError, &[60, 0], None), None);
    check(&response(ResponseCode::NoError, &[u32::MAX], None), None);
    check(
        &response(ResponseCode::NoError, &[1 << 30], None),
        Some(3600),
    );
    check(
        &response(ResponseCode::NoError, &[], Some((300, 60))),
        Some(60),
    );
    check(
        &response(ResponseCode::NXDomain, &[], Some((20, 60))),
        Some(20),
    );
    check(&response(ResponseCode::NXDomain, &[], None), None);
    check(&response(ResponseCode::ServFail, &[60], None), None);
    check(&cut(&response(ResponseCode::NoError, &[60], None)), None);
}

#[test]
fn records_get_older() {
    let mut message = response(ResponseCode::NoError, &[60, 30], None);
    let lifetime = Lifetime::of(&message).unwrap();
    lifetime.age(&mut message, 20);
    let aged = Message::from_vec(&message).unwrap();
    let ttls: Vec<u32> = aged.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [40, 10]);
}

#[test]
fn a_response_must_be_to_the_same_question() {
    let query = {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(Query::query(name("wWw.example.com."), RecordType::A));
        message.to_vec().unwrap()
    };
    let good = response(ResponseCode::NoError, &[60], None);
    assert!(responds_to(&good, &query));
    assert!(!responds_to(&query, &query));
    let mut other = good.clone();
    set_id(&mut other, 8);
    assert!(!responds_to(&other, &query));
    let mut other = good;
    other[HEADER + 1] = b'x';
    assert!(!responds_to(&other, &query));
    assert!(!responds_to(&[], &query));
}

#[test]
fn a_cut_response_keeps_the_question() {
    let whole = response(ResponseCode::NoError, &[60], None);
    let short = Message::from_vec(&cut(&whole)).unwrap();
    assert!(short.metadata.truncation);
    assert_eq!((short.queries.len(), short.answers.len()), (1, 0));
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..80, with: u8) {
        let mut near = response(ResponseCode::NoError, &[60, 30], Some((5, 5)));
        if let Some(byte) = near.get_mut(at) {
            *byte = with;
        }
        near.extend_from_slice(&bytes);
        for mut message in [bytes, near] {
            if let Some(lifetime) = Lifetime::of(&message) {
                lifetime.age(&mut message, 9);
            }
            admit_name(&mut message);
            set_id(&mut message, 1);
            let short = cut(&message);
            prop_assert!(short.len() <= message.len());
            responds_to(&message, &short);
        }
    }
}
