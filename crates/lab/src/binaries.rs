//! Which programs a lab runs.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The programs that nodes run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binaries {
    /// The daemon.
    pub flanneld: PathBuf,
    /// The plugins, as one multi-call binary.
    pub flannel_cni: PathBuf,
}

/// Names a directory that holds the binaries, before every other place.
const VARIABLE: &str = "FLANNEL_BIN_DIR";

impl Binaries {
    /// Looks in `$FLANNEL_BIN_DIR`, beside the running program, and one directory up from it, which is
    /// where cargo puts the binaries of a workspace as seen from a test.
    pub fn find() -> Result<Binaries> {
        let mut places: Vec<PathBuf> = env::var_os(VARIABLE).map(PathBuf::from).into_iter().collect();
        if places.is_empty() {
            let exe = env::current_exe()?;
            places.extend(exe.ancestors().skip(1).take(2).map(Path::to_owned));
        }
        for place in &places {
            let found = Binaries { flanneld: place.join("flanneld"), flannel_cni: place.join("flannel-cni") };
            if found.flanneld.is_file() && found.flannel_cni.is_file() {
                return Ok(found);
            }
        }
        let places = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        bail!(
            "no flanneld and flannel-cni in {places}: build them first, with `make build` or \
             `cargo build --workspace --bins`, or name their directory in {VARIABLE}"
        )
    }
}
