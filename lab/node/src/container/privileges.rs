//! Who a container's processes are: user, groups, capabilities.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde::{Deserialize, Serialize};

/// Identity and capabilities, applied just before exec.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Privileges {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Names without `CAP_`, `ALL` for all.
    pub(crate) add: Vec<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) privileged: bool,
}

/// What container runtimes leave to root, and NET_ADMIN: a pod's network namespace is its own to configure.
const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::NET_ADMIN);

impl Privileges {
    /// The capabilities root may gain in the container.
    fn bounding(&self) -> CapabilitySet {
        if self.privileged {
            return CapabilitySet::all();
        }
        let named = |name: &String| {
            let name = name.trim_start_matches("CAP_");
            if name == "ALL" {
                CapabilitySet::all()
            } else {
                CapabilitySet::from_name(name).unwrap_or(CapabilitySet::empty())
            }
        };
        let dropped = self
            .drop
            .iter()
            .map(named)
            .fold(CapabilitySet::empty(), CapabilitySet::union);
        let added = self
            .add
            .iter()
            .map(named)
            .fold(CapabilitySet::empty(), CapabilitySet::union);
        DEFAULT.difference(dropped).union(added)
    }

    /// Gives up everything the container may not have. Root regains only the bounding set at exec, others nothing.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        let keep = self.bounding();
        for capability in CapabilitySet::all().iter() {
            if !keep.contains(capability) {
                // A kernel older than a capability does not know it; then there is nothing to give up.
                let _ = remove_capability_from_bounding_set(capability);
            }
        }
        // The log pipes were made by root; a program that opens /dev/stdout anew (Envoy's access log) must be let in.
        for stream in [std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
            // A terminal or a file of somebody else's stays as it is: writing to what is open already needs no right.
            let _ = std::os::unix::fs::fchown(stream, Some(self.uid), Some(self.gid));
        }
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups).context("setting supplementary groups")?;
        setgid(Gid::from_raw(self.gid)).with_context(|| format!("becoming group {}", self.gid))?;
        setuid(Uid::from_raw(self.uid)).with_context(|| format!("becoming user {}", self.uid))
    }
}

/// The home directory a process of this user sees.
pub(crate) fn home(uid: u32) -> &'static str {
    if uid == 0 { "/root" } else { "/" }
}
