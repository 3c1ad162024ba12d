//! Service registries: one file per adapter.

mod kubernetes;

use mesh_service::{Condition, Drain};

pub(crate) use kubernetes::Kubernetes;

use crate::inputs::{Intake, RegistryState};

/// Something that knows services, their endpoints and the workloads behind them.
pub(crate) trait Registry: Send + 'static {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// Reads for ever: writes a complete state once everything has been listed, then every change. Keeps trying when
    /// its server is away, and says so in `condition`.
    fn run(
        self,
        intake: Intake,
        condition: Condition,
        drain: Drain,
    ) -> impl Future<Output = ()> + Send;
}

/// No services at all: with `--configDir`, everything comes from ServiceEntries.
pub(crate) struct Mock;

impl Registry for Mock {
    fn name(&self) -> &'static str {
        "Mock"
    }

    async fn run(self, intake: Intake, condition: Condition, drain: Drain) {
        intake.set_registry(RegistryState::default(), crate::source::Event::Config);
        condition.met();
        drain.begun().await;
    }
}
