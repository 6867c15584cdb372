//! The session against a model of a server: whatever happens, in the end both hold the same.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// The server's world changes.
    Set(&'static str, u8),
    Delete(&'static str),
    /// The server tells what changed since its last message.
    Push,
    /// The stream ends, perhaps with messages lost, and a new one begins.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || select(vec!["a", "b", "c", "d"]);
    prop_oneof![
        4 => (name(), 0..6_u8).prop_map(|(name, version)| Step::Set(name, version)),
        2 => name().prop_map(Step::Delete),
        3 => Just(Step::Push),
        1 => Just(Step::Reconnect),
    ]
}

/// A server and an application; versions divisible by three are ones that the application rejects.
#[derive(Default)]
struct World {
    truth: HashMap<String, String>,
    /// What the server has sent on this stream, or was told at its start.
    sent: HashMap<String, String>,
    application: HashMap<String, String>,
    nonce: u32,
}

impl World {
    fn open(&mut self, session: &mut Session) {
        let requests = session.open_stream();
        self.sent = requests[0].initial_resource_versions.clone();
        self.push(session);
    }

    fn push(&mut self, session: &mut Session) {
        let changed: Vec<(&str, &str)> = self
            .truth
            .iter()
            .filter(|(name, version)| self.sent.get(*name) != Some(version))
            .map(|(name, version)| (name.as_str(), version.as_str()))
            .collect();
        let removed: Vec<&str> = self
            .sent
            .keys()
            .filter(|name| !self.truth.contains_key(*name))
            .map(String::as_str)
            .collect();
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let response = apples(&nonce, &changed, &removed);
        self.sent = self.truth.clone();

        let Received::Apply(update, pending) = session.receive(response) else {
            panic!("ignored")
        };
        for name in &update.removed {
            self.application.remove(name);
        }
        let mut rejections = Vec::new();
        for Resource { name, version, .. } in update.resources {
            if is_bad(&version) {
                let reason = "bad".to_owned();
                rejections.push(Rejection { name, reason });
            } else {
                self.application.insert(name, version);
            }
        }
        let any = !rejections.is_empty();
        let request = session.answer(pending, rejections).request.unwrap();
        assert_eq!(request.response_nonce, nonce);
        assert_eq!(request.error_detail.is_some(), any);
    }
}

fn is_bad(version: &str) -> bool {
    version.parse::<u8>().unwrap() % 3 == 0
}

proptest! {
    #[test]
    fn server_and_application_agree(steps in vec(step(), 0..40)) {
        let mut session = session();
        let mut world = World::default();
        world.open(&mut session);
        for step in steps {
            match step {
                Step::Set(name, version) => {
                    world.truth.insert(name.to_owned(), version.to_string());
                }
                Step::Delete(name) => {
                    world.truth.remove(name);
                }
                Step::Push => world.push(&mut session),
                Step::Reconnect => world.open(&mut session),
            }
            let claimed = session.open_stream()[0].initial_resource_versions.clone();
            prop_assert_eq!(&claimed, &world.application, "claims what the application holds");
        }
        world.open(&mut session);
        for (name, version) in &world.truth {
            if !is_bad(version) {
                prop_assert_eq!(world.application.get(name), Some(version));
            }
        }
        for name in world.application.keys() {
            prop_assert!(world.truth.contains_key(name), "{} outlived its removal", name);
        }
    }
}
