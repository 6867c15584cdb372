//! The access log of a connection that is carried by one task.

use std::fmt::Display;

use leyline_telemetry::traffic::{AccessLog, Carrier, Connection, ResponseFlag};

/// Tells a connection that was cut from one that ended: at the deadline of a drain, tasks are dropped where they are, and
/// what they have written so far must not be reported as a complete connection.
#[derive(Debug)]
pub(super) struct Record {
    log: AccessLog,
    ended: bool,
}

impl Record {
    /// Counts the connection as opened.
    pub(super) fn open(connection: Connection) -> Self {
        Self::open_carried_by(connection, Carrier::Wire)
    }

    /// The same, of a connection that need not go by the wire.
    pub(super) fn open_carried_by(connection: Connection, carrier: Carrier) -> Self {
        Self {
            log: AccessLog::open_carried_by(connection, carrier),
            ended: false,
        }
    }

    /// For the bytes that are moved.
    pub(super) fn log(&self) -> &AccessLog {
        &self.log
    }

    /// The destination could not be reached, and another is tried.
    pub(super) fn redirect(&mut self, flag: ResponseFlag, connection: Connection) {
        self.log.redirect(flag, connection);
    }

    /// The connection has ended, well or not.
    pub(super) fn end<E: Display>(mut self, result: Result<(), (ResponseFlag, E)>) {
        self.ended = true;
        if let Err((flag, error)) = result {
            self.log.fail(flag, error);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            let error = "connection closed due to connection drain";
            self.log.fail(ResponseFlag::None, error);
        }
    }
}
