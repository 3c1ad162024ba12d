//! Images are names of local programs.
//!
//! Resolution, first match wins: the `--images` map; the mesh's own binaries by the last path segment of the image name;
//! a program of that name on the host. Nothing is ever downloaded.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Deserialize;

use crate::{container::Binary, tools};

/// Image names of the mesh, and the binary each stands for.
const BUILT_IN: &[(&str, &str)] = &[
    ("pilot", "pilot-discovery"),
    ("proxyv2", "pilot-agent"),
    ("proxy_init", "istio-iptables"),
    ("bookinfo", "bookinfo"),
    ("meshload", "meshload"),
    ("istioctl", "istioctl"),
    ("mixer-policy", "mixer-policy"),
    ("mixer-telemetry", "mixer-telemetry"),
    ("citadel", "citadel"),
    ("galley", "galley"),
    ("sidecar-injector", "sidecar-injector"),
];
/// The image that also carries Envoy.
const WITH_ENVOY: &str = "pilot-agent";

/// One entry of the `--images` file: `IMAGE: /path` or `IMAGE: {binary: /path, entrypoint: […]}`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum MapEntry {
    Path(PathBuf),
    Full {
        binary: PathBuf,
        #[serde(default)]
        entrypoint: Vec<String>,
    },
}

/// A resolved image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Command used when the container gives none.
    pub(crate) entrypoint: Vec<String>,
    /// Binaries to show in the container, name and host path.
    pub(crate) binaries: Vec<(String, PathBuf)>,
}

impl Image {
    /// The binaries as mounts.
    pub(crate) fn mounts(&self) -> Vec<Binary> {
        self.binaries
            .iter()
            .map(|(name, path)| Binary {
                name: name.clone(),
                path: path.clone(),
            })
            .collect()
    }

    /// An identity for `imageID`.
    pub(crate) fn id(&self) -> String {
        self.binaries.first().map_or_else(
            || self.entrypoint.join(" "),
            |(_, path)| format!("file://{}", path.display()),
        )
    }
}

/// Resolver, built once from the daemon's flags.
#[derive(Debug)]
pub(crate) struct Images {
    map: BTreeMap<String, MapEntry>,
    bin_dir: PathBuf,
    envoy: Option<PathBuf>,
}

impl Images {
    /// Reads the `--images` file, if there is one.
    pub(crate) fn load(
        file: Option<&Path>,
        bin_dir: PathBuf,
        envoy: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let map = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?;
                serde_saphyr::from_str(&text).with_context(|| {
                    format!(
                        "{}: expected a YAML map of image name to program path",
                        path.display()
                    )
                })?
            }
            None => BTreeMap::new(),
        };
        Ok(Self {
            map,
            bin_dir,
            envoy,
        })
    }

    /// Resolves an image name; the error is what the user sees as the waiting message.
    pub(crate) fn resolve(&self, image: &str) -> Result<Image, String> {
        let short = short_name(image);
        if let Some(entry) = self.map.get(image).or_else(|| self.map.get(short)) {
            let (binary, entrypoint) = match entry {
                MapEntry::Path(path) => (path, &[][..]),
                MapEntry::Full { binary, entrypoint } => (binary, entrypoint.as_slice()),
            };
            if !binary.is_file() {
                return Err(format!(
                    "image \"{image}\": {} (named by the images file) does not exist",
                    binary.display()
                ));
            }
            return Ok(self.image_of(short, binary.clone(), entrypoint.to_vec()));
        }
        if let Some((_, binary)) = BUILT_IN.iter().find(|(name, _)| *name == short) {
            let path = self.bin_dir.join(binary);
            if !path.is_file() {
                return Err(format!(
                    "image \"{image}\": there is no {binary} in {} (build it, or give --bin-dir)",
                    self.bin_dir.display()
                ));
            }
            return Ok(self.image_of(binary, path, Vec::new()));
        }
        match tools::which(short) {
            // Programs of the system are in every container's /usr anyway.
            Some(path)
                if path.starts_with("/usr")
                    || path.starts_with("/bin")
                    || path.starts_with("/sbin") =>
            {
                Ok(Image {
                    entrypoint: vec![short.to_owned()],
                    binaries: Vec::new(),
                })
            }
            Some(path) => Ok(self.image_of(short, path, Vec::new())),
            None => Err(format!(
                "image \"{image}\" is not known here: accepted are {}, names in the --images file, and programs on this \
                 machine's PATH (there is no \"{short}\")",
                BUILT_IN
                    .iter()
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }

    fn image_of(&self, name: &str, path: PathBuf, entrypoint: Vec<String>) -> Image {
        let entrypoint = if entrypoint.is_empty() {
            vec![format!("/usr/local/bin/{name}")]
        } else {
            entrypoint
        };
        let is_proxy = name == WITH_ENVOY;
        let mut binaries = vec![(name.to_owned(), path)];
        if is_proxy && let Some(envoy) = &self.envoy {
            binaries.push(("envoy".to_owned(), envoy.clone()));
        }
        Image {
            entrypoint,
            binaries,
        }
    }
}

/// `docker.io/istio/pilot:1.4.10@sha256:…` → `pilot`.
fn short_name(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split(':').next().unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_reduced_to_the_last_segment() {
        assert_eq!(
            short_name("localhost:5000/istio/pilot:1.4.10@sha256:00"),
            "pilot"
        );
        assert_eq!(short_name("sleep"), "sleep");
    }

    #[test]
    fn system_programs_resolve_and_unknown_ones_say_what_is_accepted() {
        let images = Images::load(None, "/nonexistent".into(), None).unwrap();
        assert_eq!(images.resolve("bash:5").unwrap().entrypoint, ["bash"]);
        let message = images.resolve("no/such-image:1").unwrap_err();
        assert!(
            message.contains("such-image") && message.contains("proxyv2"),
            "{message}"
        );
        assert!(
            images
                .resolve("istio/pilot")
                .unwrap_err()
                .contains("--bin-dir")
        );
    }
}
