//! What all controllers stand on: shared stores, keyed queues, the driver that retries, the event recorder.

pub(crate) mod driver;
pub(crate) mod events;
pub(crate) mod queue;
pub(crate) mod store;
