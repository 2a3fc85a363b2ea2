//! Where the programs of Kubernetes are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The programs of Kubernetes, in the version that `tests/kubernetes/go.mod` pins.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
}

/// What `.ci/kubernetes` builds.
const PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

impl Programs {
    /// Looks where `.ci/kubernetes` puts them.
    pub fn find() -> Result<Programs> {
        let cache = env::var_os("FLANNEL_KUBERNETES_CACHE").map(PathBuf::from).or_else(|| {
            let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
            cache.map(|cache| cache.join("flannel-rs/kubernetes"))
        });
        let directory = cache.context("neither HOME nor XDG_CACHE_HOME is set")?.join(version()?);
        for program in PROGRAMS {
            ensure!(
                directory.join(program).is_file(),
                "there is no {program} in {}: build it with `make setup`, which needs Go",
                directory.display()
            );
        }
        Ok(Programs { directory })
    }

    /// The path of one of them.
    pub fn path(&self, program: &str) -> String {
        self.directory.join(program).display().to_string()
    }
}

/// The version that tests run.
fn version() -> Result<&'static str> {
    include_str!("../../kubernetes/go.mod")
        .lines()
        .find_map(|line| line.strip_prefix("require k8s.io/kubernetes "))
        .context("tests/kubernetes/go.mod requires no k8s.io/kubernetes")
}

/// Whether Kubernetes has been built and namespaces can be made; if not, the test is skipped, and this
/// says why. In CI that is a failure.
#[expect(
    clippy::print_stderr,
    reason = "only what the macros print is shown beside the test that printed it"
)]
pub fn is_available() -> bool {
    let Err(reason) = lab::permitted().and_then(|()| Programs::find()) else { return true };
    assert!(env::var_os("CI").is_none(), "in CI nothing may be skipped: {reason:#}");
    eprintln!("skipped: {reason:#}");
    false
}
