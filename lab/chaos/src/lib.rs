//! Failure experiments for the mesh.
//!
//! An [`Experiment`] is a [`Definition`] (what is broken, how, what must be seen) and a script that breaks it. The
//! [`engine`] runs it: it starts a steady load through the ingress gateway, waits until the mesh serves without a
//! failure, lets the script act and observe, undoes every change in reverse order (also after a failure or when the
//! user stops it), and folds the observations into a verdict per declared probe.
//!
//! Who writes: the load generator writes into a [`load::Recorder`], the script into a [`Context`] (events and probe
//! observations). Who reads: the engine's abort watch reads the recorder while the script runs; the [`report`] reads
//! the finished [`Outcome`].
//!
//! Nothing here knows the lab. Everything goes through the Kubernetes API (objects, logs, port-forward) and through
//! HTTP to the ingress address, so the same experiments run against any cluster that a kubeconfig points to.
//!
//! Memory is bounded: outcomes are counted in buckets of 100 ms whose width doubles when there would be too many, and
//! only the first failures are kept as text.

pub mod cluster;
pub mod engine;
mod error;
pub mod experiments;
pub mod load;
pub mod mesh;
mod model;
pub mod pilot;
pub mod report;

pub use engine::{Context, Experiment, Observer, Options};
pub use error::{ChaosError, Result, kube_message};
pub use model::{
    Abort, Definition, Event, Fault, Mode, Outcome, Probe, ProbeResult, Requests, Target, Verdict,
};
