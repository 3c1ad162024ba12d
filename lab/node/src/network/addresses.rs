//! Pod addresses.
//!
//! Handed out in rising order and not reused before the range wraps, so that a client which still holds the address of
//! a dead pod finds nobody there, rather than somebody else.

use std::{collections::HashSet, fs, net::Ipv4Addr, path::PathBuf};

use parking_lot::Mutex;

/// First and last address of 10.244.0.0/16 that pods may have (the first 16 are the node's).
const FIRST: u32 = u32::from_be_bytes([10, 244, 0, 16]);
const LAST: u32 = u32::from_be_bytes([10, 244, 255, 254]);

/// The allocator. The position survives a restart in a file; losing it only costs the promise above.
#[derive(Debug)]
pub(crate) struct Addresses {
    state: Mutex<State>,
    file: PathBuf,
}

#[derive(Debug)]
struct State {
    used: HashSet<u32>,
    next: u32,
}

impl Addresses {
    /// Reads the position left by an earlier daemon.
    pub(crate) fn open(file: PathBuf) -> Self {
        let next = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse::<Ipv4Addr>().ok())
            .map_or(FIRST, u32::from)
            .clamp(FIRST, LAST);
        Self {
            state: Mutex::new(State {
                used: HashSet::new(),
                next,
            }),
            file,
        }
    }

    /// Marks the address of an adopted pod as taken.
    pub(crate) fn reserve(&self, address: Ipv4Addr) {
        self.state.lock().used.insert(address.into());
    }

    /// The next free address; `None` if all 65,000 are taken.
    pub(crate) fn allocate(&self) -> Option<Ipv4Addr> {
        let mut state = self.state.lock();
        for _ in FIRST..=LAST {
            let candidate = state.next;
            state.next = if candidate >= LAST {
                FIRST
            } else {
                candidate + 1
            };
            if state.used.insert(candidate) {
                // Best effort, see the module's words on reuse.
                let _ = fs::write(&self.file, Ipv4Addr::from(state.next).to_string());
                return Some(candidate.into());
            }
        }
        None
    }

    /// Gives an address back.
    pub(crate) fn release(&self, address: Ipv4Addr) {
        self.state.lock().used.remove(&address.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_not_reused_before_the_range_wraps() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Addresses::open(dir.path().join("next"));
        let first = addresses.allocate().unwrap();
        addresses.release(first);
        let second = addresses.allocate().unwrap();
        assert_ne!(first, second);
        // Nor after a restart.
        let reopened = Addresses::open(dir.path().join("next"));
        reopened.reserve(second);
        let third = reopened.allocate().unwrap();
        assert!(third > second);
    }
}
