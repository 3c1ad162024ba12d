//! What the API server asks of a node: logs, exec, port-forward and usage figures.
//!
//! The API server calls, the node (`lab/node`) answers. Streams are plain async readers and
//! writers; the framing that clients speak (WebSocket channels, SPDY) stays on this side.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// Why a node could not do what was asked. The API server turns these into Status answers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KubeletError {
    /// The pod or container does not exist on the node (404).
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense now, e.g. the container has not started (400).
    #[error("{0}")]
    BadRequest(String),
    /// Anything else (500).
    #[error("{0}")]
    Internal(String),
}

/// Options of `pods/log`, as the query string carries them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogOptions {
    /// Container name; `None` only if the pod has exactly one container.
    pub container: Option<String>,
    /// Go on streaming until the container ends.
    pub follow: bool,
    /// The log of the previous instance of the container.
    pub previous: bool,
    /// Prefix every line with its RFC 3339 time.
    pub timestamps: bool,
    /// Only the last n lines.
    pub tail_lines: Option<u64>,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
    /// Only lines younger than this many seconds.
    pub since_seconds: Option<u64>,
    /// Only lines at or after this RFC 3339 time.
    pub since_time: Option<String>,
}

/// Options of `pods/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// Container name; the API server fills in the only or first container when the client names none.
    pub container: Option<String>,
    /// Program and arguments, never empty.
    pub command: Vec<String>,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error.
    pub stderr: bool,
    /// Allocate a terminal; standard error then arrives on standard output.
    pub tty: bool,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code; 128 + signal for a signal.
    pub code: i32,
}

/// A running command. Dropping it kills the command.
pub struct ExecSession {
    /// Present if `ExecOptions::stdin`; dropping or shutting it down is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Present if `ExecOptions::stdout`.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Present if `ExecOptions::stderr` and no terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal size changes (columns, rows); present with a terminal.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// The end of the command. A dropped sender counts as an internal error.
    pub status: oneshot::Receiver<ExitStatus>,
}

/// Both halves of a connection.
pub trait AsyncReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> AsyncReadWrite for T {}

/// Usage of one container, measured over `PodUsage::window_seconds`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Container name.
    pub name: String,
    /// CPU in nanocores (10^9 = one core busy).
    pub cpu_nanocores: u64,
    /// Working set in bytes.
    pub memory_bytes: u64,
}

/// Usage of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Length of the window in seconds (about 10).
    pub window_seconds: u64,
    /// One entry per running container.
    pub containers: Vec<ContainerUsage>,
}

/// The node's side of the API server's streaming requests.
#[async_trait]
pub trait Kubelet: Send + Sync {
    /// Log of a container; the stream ends with the container, or at the end of the log without `follow`.
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, KubeletError>>, KubeletError>;

    /// Starts a command in a container.
    async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        options: ExecOptions,
    ) -> Result<ExecSession, KubeletError>;

    /// Connects to `127.0.0.1:port` inside the pod's network namespace.
    async fn port_forward(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Box<dyn AsyncReadWrite>, KubeletError>;

    /// CPU and memory of every running pod; served as metrics.k8s.io.
    async fn pod_metrics(&self) -> Vec<PodUsage>;
}
