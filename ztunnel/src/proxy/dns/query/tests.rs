use proptest::prelude::*;

use super::*;

fn bytes(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).unwrap();
    message.add_query(hickory_proto::op::Query::query(name, kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Query {
    match Query::parse(&bytes(name, kind, payload), DnsProtocol::Udp) {
        Parsed::Query(query) => query,
        _ => panic!("no query"),
    }
}

fn read(response: Option<Vec<u8>>) -> Message {
    Message::from_vec(&response.unwrap()).unwrap()
}

#[test]
fn answers_have_the_wanted_family_and_the_alias() {
    let addresses = ["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    let asked = query("Server.Shop.", RecordType::A, None);
    assert_eq!(asked.name(), "server.shop");
    let plain = read(asked.answered(None, &addresses));
    assert_eq!(plain.answers.len(), 1);
    assert_eq!(
        plain.answers[0].to_string(),
        "Server.Shop. 30 IN A 10.0.0.1"
    );
    let metadata = plain.metadata;
    assert!(metadata.authoritative && metadata.recursion_available && metadata.recursion_desired);
    assert!(plain.edns.is_none());

    let asked = query("server.shop.example.", RecordType::AAAA, Some(100));
    let aliased = read(asked.answered(Some("server.shop"), &addresses));
    let lines: Vec<String> = aliased.answers.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "server.shop.example. 30 IN CNAME server.shop.",
            "server.shop. 30 IN AAAA 2001:db8::1",
        ]
    );
    assert_eq!(aliased.edns.unwrap().max_payload(), 512);

    let none = read(query("a.", RecordType::AAAA, None).answered(None, &addresses[..1]));
    assert_eq!(none.metadata.response_code, ResponseCode::NoError);
    assert!(none.answers.is_empty());
}

#[test]
fn what_a_datagram_cannot_hold_is_cut() {
    let addresses = vec!["10.0.0.1".parse().unwrap(); 100];
    let cut = read(query("a.b.", RecordType::A, None).answered(None, &addresses));
    assert!(cut.metadata.truncation);
    let whole = read(query("a.b.", RecordType::A, Some(4096)).answered(None, &addresses));
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
}

#[test]
fn other_messages_are_refused_or_dropped() {
    let code = |bytes: &[u8]| match Query::parse(bytes, DnsProtocol::Udp) {
        Parsed::Refused(response) => Some(Message::from_vec(&response).unwrap().metadata),
        Parsed::Query(_) | Parsed::Malformed => None,
    };
    let good = bytes("a.b.", RecordType::A, None);
    let mut notify = good.clone();
    notify[2] |= 4 << 3;
    assert_eq!(code(&notify).unwrap().response_code, ResponseCode::NotImp);
    assert_eq!(code(&notify).unwrap().id, 7);
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(code(&two).unwrap().response_code, ResponseCode::FormErr);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert!(matches!(
        Query::parse(&response, DnsProtocol::Udp),
        Parsed::Malformed
    ));
    assert!(matches!(
        Query::parse(&good[..11], DnsProtocol::Udp),
        Parsed::Malformed
    ));
}

proptest! {
    #[test]
    fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..60, with: u8) {
        let mut near = self::bytes("server.shop.", RecordType::A, Some(1232));
        if let Some(byte) = near.get_mut(at) {
            *byte = with;
        }
        for message in [bytes, near] {
            if let Parsed::Query(query) = Query::parse(&message, DnsProtocol::Udp) {
                let response = query.answered(None, &["10.0.0.1".parse().unwrap()]);
                prop_assert!(response.is_none_or(|response| response.len() <= query.limit()));
                query.failed();
                query.cache_flags();
                query.name();
            }
        }
    }
}
