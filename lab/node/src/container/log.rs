//! Container logs in the CRI format: `TIME STREAM TAG TEXT`, rotated by size.
//!
//! Written by the shim alone. `TAG` is `F` for a full line and `P` for a part of a line longer than 16 KiB. At 10 MiB the
//! file becomes `N.log.1` (replacing the previous one), so a container's logs never exceed 20 MiB.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

const ROTATE_AT: u64 = 10 * 1024 * 1024;
const LONGEST_LINE: usize = 16 * 1024;

/// Writer of one container's log file.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    out: Vec<u8>,
}

/// One output stream of the container; keeps the line that has not ended yet.
#[derive(Debug)]
pub(crate) struct Stream {
    name: &'static str,
    partial: Vec<u8>,
}

impl Stream {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            partial: Vec::new(),
        }
    }
}

/// The name of the rotated predecessor of a log file.
pub(crate) fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl LogWriter {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            out: Vec::new(),
        })
    }

    /// Appends a chunk of output; complete lines are written at once.
    pub(crate) fn write(&mut self, stream: &mut Stream, chunk: &[u8]) -> io::Result<()> {
        let now = format!("{:.9}", Timestamp::now());
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            stream.partial.extend_from_slice(&rest[..end]);
            self.flush_partial(stream, &now, 'F');
            rest = &rest[end + 1..];
        }
        stream.partial.extend_from_slice(rest);
        while stream.partial.len() > LONGEST_LINE {
            let tail = stream.partial.split_off(LONGEST_LINE);
            self.flush_partial(stream, &now, 'P');
            stream.partial = tail;
        }
        self.flush()
    }

    /// Ends a stream: an unterminated last line still is a line.
    pub(crate) fn finish(&mut self, stream: &mut Stream) -> io::Result<()> {
        if !stream.partial.is_empty() {
            let now = format!("{:.9}", Timestamp::now());
            self.flush_partial(stream, &now, 'F');
        }
        self.flush()
    }

    fn flush_partial(&mut self, stream: &mut Stream, now: &str, tag: char) {
        self.out
            .extend_from_slice(format!("{now} {} {tag} ", stream.name).as_bytes());
        self.out.append(&mut stream.partial);
        self.out.push(b'\n');
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.write_out();
        // What could not be written (disk full) is lost, rather than kept in memory until the disk has room again.
        self.out.clear();
        written
    }

    fn write_out(&mut self) -> io::Result<()> {
        if self.size >= ROTATE_AT {
            fs::rename(&self.path, rotated(&self.path))?;
            self.file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(&self.out)?;
        self.size += self.out.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_full_disk_refuses_is_not_kept() {
        let mut log = LogWriter::open(Path::new("/dev/full")).unwrap();
        let mut out = Stream::new("stdout");
        let error = log.write(&mut out, b"lost\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(log.out.is_empty());
        assert!(log.write(&mut out, b"lost, too\n").is_err());
    }

    #[test]
    fn lines_are_joined_across_chunks_and_long_ones_split() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogWriter::open(&path).unwrap();
        let mut out = Stream::new("stdout");
        log.write(&mut out, b"he").unwrap();
        log.write(&mut out, b"llo\nnext").unwrap();
        log.write(&mut out, &vec![b'x'; LONGEST_LINE]).unwrap();
        log.finish(&mut out).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let bodies: Vec<_> = text
            .lines()
            .map(|l| l.splitn(4, ' ').skip(1).collect::<Vec<_>>())
            .collect();
        assert_eq!(bodies[0], ["stdout", "F", "hello"]);
        assert_eq!(bodies[1][1], "P");
        assert_eq!(bodies[1][2].len(), LONGEST_LINE);
        assert_eq!(bodies[2][1..], ["F", "xxxx"]);
        assert!(text.starts_with("20"), "a timestamp opens the line");
    }
}
