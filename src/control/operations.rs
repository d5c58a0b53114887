//! What the relay is asked to do while it runs, and what it does then.

use super::drain::Drain;
use super::socket::protocol::Request;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// What requests reach.
pub(super) struct Operations {
    pub(super) drain: Arc<Drain>,
}

impl Operations {
    /// Does what `request` asks; what came of it.
    ///
    /// # Errors
    ///
    /// Why nothing came of it, and what to do.
    pub(super) async fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Drain(plan) => done(self.drain.begin(plan).await),
            Request::DrainStatus => done(self.drain.status()),
            Request::CancelDrain => done(self.drain.cancel()),
        }
    }
}

fn done(value: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}
