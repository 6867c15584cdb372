//! Which authority signs now. That of an operator is followed: when its files change it is taken anew, without a restart.
//!
//! The files are looked at once in a while instead of being watched, for Kubernetes replaces a symbolic link above them. A
//! state of the files counts when it was seen twice in a row and all of it fits together: they are not replaced at once.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use leyline_runtime::Drain;
use metrics::{counter, gauge};
use time::OffsetDateTime;
use tokio::{sync::watch, time::sleep};
use tracing::{error, info, warn};

use super::{Authority, CaError, ROOT_FILE, operator::FILES};
use crate::state_dir::StateDir;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The authority of the moment.
pub(crate) type Current = watch::Receiver<Arc<Authority>>;

/// What tells one state of a file from another, through all symbolic links; `None` if it cannot be looked at.
type Seen = Option<(u64, u64, u64, i64, i64)>;

/// Follows the files of an operator's authority.
pub(crate) struct Follower {
    directory: PathBuf,
    state: StateDir,
    current: watch::Sender<Arc<Authority>>,
    /// Of the authority that signs, or that was refused.
    judged: Vec<Seen>,
    last: Vec<Seen>,
}

/// An authority that stays as it is.
pub(crate) fn fixed(authority: Authority) -> Current {
    tell_expiry(&authority);
    watch::Sender::new(Arc::new(authority)).subscribe()
}

impl Follower {
    /// Takes the authority of a directory, and publishes its roots in the state directory.
    ///
    /// # Errors
    /// When it cannot be used, or the state directory holds an authority of its own.
    pub(crate) fn start(
        directory: PathBuf,
        state: StateDir,
        now: OffsetDateTime,
    ) -> Result<(Self, Current), CaError> {
        if state.file(super::KEY_FILE).exists() {
            return Err(CaError::TwoAuthorities(directory));
        }
        let judged = look_at(&directory);
        let authority = Authority::of_operator(&directory, now)?;
        state.replace(ROOT_FILE, authority.roots_pem().as_bytes())?;
        tell_expiry(&authority);
        let (current, receiver) = watch::channel(Arc::new(authority));
        let follower = Self {
            directory,
            state,
            current,
            last: judged.clone(),
            judged,
        };
        Ok((follower, receiver))
    }

    /// Follows until the drain starts.
    pub(crate) async fn run(mut self, drain: Drain) {
        loop {
            tokio::select! {
                () = drain.started() => return,
                () = sleep(LOOK) => {}
            }
            // Small files, read when they have changed: not worth a thread.
            self.look(OffsetDateTime::now_utc());
        }
    }

    pub(super) fn look(&mut self, now: OffsetDateTime) {
        let seen = look_at(&self.directory);
        let settled = seen == self.last;
        self.last = seen;
        if !settled || self.last == self.judged {
            return;
        }
        self.judged = self.last.clone();
        match Authority::of_operator(&self.directory, now) {
            Ok(authority) => self.replace(authority),
            Err(error) => {
                counter!("leyline_ca_reload_failures_total").increment(1);
                error!(directory = %self.directory.display(), %error, "the CA's files are not usable, the last good ones stay in force");
            }
        }
    }

    /// Signs with it first: who then sees the new roots and asks for a certificate gets one of the new issuer.
    fn replace(&mut self, authority: Authority) {
        let old = self.current.borrow().clone();
        if !old.roots_pem().contains(authority.signing_root()) {
            warn!(
                "the root of the new issuer was not published before it signs; proxies that have not seen it refuse its certificates"
            );
        }
        let roots = authority.roots_pem().to_owned();
        let expires = authority.end;
        tell_expiry(&authority);
        self.current.send_replace(Arc::new(authority));
        if let Err(error) = self.state.replace(ROOT_FILE, roots.as_bytes()) {
            error!(%error, "the roots of the CA are not published");
            // The next look tries again.
            self.judged.clear();
        }
        counter!("leyline_ca_reloads_total").increment(1);
        info!(directory = %self.directory.display(), %expires, roots = roots.matches("BEGIN").count(), "the CA's files were read anew");
    }
}

/// Under istiod's names.
fn tell_expiry(authority: &Authority) {
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds fit for thousands of years"
    )]
    let end = authority.end.unix_timestamp() as f64;
    gauge!("citadel_server_cert_chain_expiry_timestamp").set(end);
}

fn look_at(directory: &Path) -> Vec<Seen> {
    let seen = |file: &&str| {
        let file = fs::metadata(directory.join(file)).ok()?;
        let (seconds, nanoseconds) = (file.mtime(), file.mtime_nsec());
        Some((file.dev(), file.ino(), file.size(), seconds, nanoseconds))
    };
    FILES.iter().map(seen).collect()
}
