//! Signals that ask the process to end: SIGTERM (Kubernetes) and SIGINT (a terminal).
//!
//! The main function of a binary waits for one, drains, and may take a second one as an order to give up waiting.

use std::{fmt, io};

use tokio::signal::unix::{self, SignalKind};

/// A signal that asked for shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Listens from its creation on, so that no signal is lost between two waits.
#[derive(Debug)]
pub struct ShutdownSignals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl ShutdownSignals {
    /// Replaces the default action (the process dies) of both signals. Needs a runtime.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        // Whichever comes first; the other one stays pending in its own stream.
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    #[tokio::test]
    async fn reports_each_signal() {
        let mut signals = ShutdownSignals::listen().unwrap();
        raise(Number::SIGTERM).unwrap();
        assert_eq!(signals.next().await, Signal::Terminate);
        raise(Number::SIGINT).unwrap();
        assert_eq!(signals.next().await, Signal::Interrupt);
    }
}
