//! Reading container logs: history with tail and since, then following.
//!
//! History is bounded by rotation (20 MiB per run). Following looks for more every 100 ms while somebody listens, survives
//! rotation, and ends when the run has ended and everything was read.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use jiff::{SignedDuration, Timestamp};
use lab_kubernetes::{KubeletError, LogOptions};

use crate::{
    container::{log::rotated, runtime::Running},
    lab::state::StateDir,
    pod::table::{ContainerView, PodView},
};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const CHUNK: usize = 256 * 1024;

/// The log of a container as a stream of bytes.
pub(super) fn stream(
    state: &StateDir,
    pod: &PodView,
    container: &ContainerView,
    options: &LogOptions,
) -> Result<BoxStream<'static, Result<Bytes, KubeletError>>, KubeletError> {
    let Some(mut attempt) = container.attempt else {
        return Err(KubeletError::BadRequest(format!(
            "container \"{}\" in pod \"{}\" is waiting to start: {}",
            container.name,
            pod.name,
            container.waiting.as_deref().unwrap_or("ContainerCreating")
        )));
    };
    if options.previous {
        let missing = || {
            KubeletError::BadRequest(format!(
                "previous terminated container \"{}\" in pod \"{}\" not found",
                container.name, pod.name
            ))
        };
        // A container that waits for its restart shows its last run as the current log, too.
        if container.running.is_some() || container.waiting.is_none() {
            attempt = attempt.checked_sub(1).ok_or_else(missing)?;
        }
    }
    let filter = Filter::new(options)?;
    let path = state
        .container_logs(&pod.namespace, &pod.name, &pod.uid, &container.name)
        .join(format!("{attempt}.log"));
    let running = container
        .running
        .clone()
        .filter(|_| options.follow && !options.previous);
    let history = history(&path, &filter, options.tail_lines);
    let (history, position) =
        history.map_err(|error| KubeletError::Internal(format!("{}: {error}", path.display())))?;
    let limit = options
        .limit_bytes
        .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let first = stream::iter((!history.is_empty()).then(|| Ok(Bytes::from(history))));
    let rest = match running {
        Some(running) => follow(Tail {
            path,
            position,
            filter,
            rest: Vec::new(),
            running,
        })
        .boxed(),
        None => stream::empty().boxed(),
    };
    Ok(limited(first.chain(rest), limit).boxed())
}

/// Stops after so many bytes.
fn limited(
    stream: impl futures::Stream<Item = Result<Bytes, KubeletError>>,
    limit: Option<usize>,
) -> impl futures::Stream<Item = Result<Bytes, KubeletError>> {
    stream.scan(limit, |left, item| {
        let item = match (item, left.as_mut()) {
            (_, Some(0)) => None,
            (Ok(bytes), Some(left)) => {
                let take = bytes.len().min(*left);
                *left -= take;
                Some(Ok(bytes.slice(..take)))
            }
            (item, _) => Some(item),
        };
        futures::future::ready(item)
    })
}

/// Which lines, and how they are shown.
#[derive(Clone, Debug)]
struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
}

impl Filter {
    fn new(options: &LogOptions) -> Result<Self, KubeletError> {
        let since = match (&options.since_time, options.since_seconds) {
            (Some(text), _) => Some(text.parse().map_err(|_| {
                KubeletError::BadRequest(format!("sinceTime {text:?} is not an RFC 3339 time"))
            })?),
            (None, Some(seconds)) => {
                let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX / 4));
                Some(
                    Timestamp::now()
                        .checked_sub(ago)
                        .unwrap_or(Timestamp::UNIX_EPOCH),
                )
            }
            (None, None) => None,
        };
        Ok(Self {
            since,
            timestamps: options.timestamps,
        })
    }

    /// Turns `TIME STREAM TAG TEXT` into what the user sees; `None` for lines that are too old.
    fn show(&self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        let text = parts.next().unwrap_or_default();
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time)
                .ok()
                .and_then(|time| time.parse::<Timestamp>().ok());
            if at.is_some_and(|at| at < since) {
                return false;
            }
        }
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if tag == b"F" {
            out.push(b'\n');
        }
        true
    }
}

/// Everything up to now, and where the file stands.
fn history(path: &Path, filter: &Filter, tail: Option<u64>) -> io::Result<(Vec<u8>, u64)> {
    let mut raw = Vec::new();
    // With few lines wanted the rotated part is still read: rotation may have happened a line ago.
    if let Ok(mut old) = File::open(rotated(path)) {
        old.read_to_end(&mut raw)?;
    }
    let mut position = 0;
    match File::open(path) {
        Ok(mut file) => {
            let before = raw.len();
            file.read_to_end(&mut raw)?;
            position = (raw.len() - before) as u64;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // A line that is just being written belongs to the follower.
    let complete = raw
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    position -= (raw.len() - complete) as u64;
    let lines: Vec<&[u8]> = raw[..complete]
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    let keep = tail.map_or(lines.len(), |tail| {
        usize::try_from(tail).unwrap_or(usize::MAX).min(lines.len())
    });
    let mut out = Vec::new();
    for line in &lines[lines.len() - keep..] {
        filter.show(line, &mut out);
    }
    Ok((out, position))
}

struct Tail {
    path: PathBuf,
    position: u64,
    filter: Filter,
    rest: Vec<u8>,
    running: Running,
}

fn follow(tail: Tail) -> impl futures::Stream<Item = Result<Bytes, KubeletError>> {
    let opened = File::open(&tail.path).ok();
    stream::unfold(
        (tail, opened, false),
        |(mut tail, mut file, mut ended)| async move {
            loop {
                let mut out = Vec::new();
                let more = match tail.read(&mut file, &mut out) {
                    Ok(more) => more,
                    Err(error) => {
                        return Some((
                            Err(KubeletError::Internal(error.to_string())),
                            (tail, None, true),
                        ));
                    }
                };
                if !out.is_empty() {
                    return Some((Ok(Bytes::from(out)), (tail, file, ended)));
                }
                if more {
                    continue;
                }
                if ended {
                    return None;
                }
                tokio::select! {
                    // What was written last is read once more.
                    () = tail.running.state.shim.exited() => ended = true,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        },
    )
}

impl Tail {
    /// Reads what is new; true if there may be more at once.
    fn read(&mut self, file: &mut Option<File>, out: &mut Vec<u8>) -> io::Result<bool> {
        if file.is_none() {
            *file = File::open(&self.path).ok();
        }
        let Some(open) = file else { return Ok(false) };
        open.seek(SeekFrom::Start(self.position))?;
        let before = self.rest.len();
        let n = open.take(CHUNK as u64).read_to_end(&mut self.rest)?;
        self.position += n as u64;
        debug_assert_eq!(self.rest.len(), before + n);
        if n == 0 {
            // Rotated away under us: go on with the new file.
            let current = std::fs::metadata(&self.path).map(|meta| meta.ino()).ok();
            if current.is_some() && current != open.metadata().map(|meta| meta.ino()).ok() {
                *file = None;
                self.position = 0;
                return Ok(true);
            }
            return Ok(false);
        }
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.filter.show(&line[..end], out);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(options: &LogOptions, text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, text).unwrap();
        let filter = Filter::new(options).unwrap();
        String::from_utf8(history(&path, &filter, options.tail_lines).unwrap().0).unwrap()
    }

    const LOG: &str = "2026-01-01T00:00:00.000000000Z stdout F one\n\
                       2026-01-01T00:00:01.000000000Z stderr P tw\n\
                       2026-01-01T00:00:01.000000000Z stderr F o\n\
                       2026-01-01T00:00:02.000000000Z stdout F three\nhalf";

    #[test]
    fn partial_lines_are_joined_and_the_unfinished_one_left() {
        assert_eq!(shown(&LogOptions::default(), LOG), "one\ntwo\nthree\n");
    }

    #[test]
    fn tail_since_and_timestamps() {
        let tail = LogOptions {
            tail_lines: Some(1),
            timestamps: true,
            ..Default::default()
        };
        assert_eq!(shown(&tail, LOG), "2026-01-01T00:00:02.000000000Z three\n");
        let since = LogOptions {
            since_time: Some("2026-01-01T00:00:01Z".into()),
            ..Default::default()
        };
        assert_eq!(shown(&since, LOG), "two\nthree\n");
        let bad = LogOptions {
            since_time: Some("yesterday".into()),
            ..Default::default()
        };
        assert!(
            matches!(Filter::new(&bad), Err(KubeletError::BadRequest(text)) if text.contains("yesterday"))
        );
    }
}
