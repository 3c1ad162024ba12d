//! The newest state of every source, and the task that makes worlds of it.
//!
//! Sources write their own slot and submit an event; the pipeline settles events; [`rebuild`] takes what is in the
//! slots, builds a snapshot, compares it with the last one and publishes a world if anything differs. Nothing is
//! published before every source has been read completely once, and a source that loses its server leaves its slot as it
//! is: no world ever shrinks because somebody could not be reached.
//!
//! Every registry has its own [`Slot`]: what changes in one is one pointer swapped here, and nothing of another is copied.
//! The order of the slots is that of the command line, whoever comes first; a snapshot asks registries in this order.
//!
//! An endpoint event overtakes config that is still settling, so it takes only endpoints and workloads from the slots.

mod build;
mod slots;

pub(crate) use self::{
    build::rebuild,
    slots::{Intake, Slot},
};
