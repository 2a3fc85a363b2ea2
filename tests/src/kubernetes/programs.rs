//! Where the programs of Kubernetes are.

use std::env;
use std::path::{Path, PathBuf};

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
        let module = include_str!("../../kubernetes/go.mod");
        let directory = cache("kubernetes", "FLANNEL_KUBERNETES_CACHE", module, "k8s.io/kubernetes")?;
        PROGRAMS.iter().try_for_each(|program| is_built(&directory.join(program)))?;
        Ok(Programs { directory })
    }

    /// The path of one of them.
    pub fn path(&self, program: &str) -> String {
        self.directory.join(program).display().to_string()
    }
}

/// Where Helm is, in the version that `tests/helm/go.mod` pins.
pub(super) fn helm() -> Result<PathBuf> {
    let module = include_str!("../../helm/go.mod");
    let helm = cache("helm", "FLANNEL_HELM_CACHE", module, "helm.sh/helm/v3")?.join("helm");
    is_built(&helm)?;
    Ok(helm)
}

/// Where programs are kept that are built once: of one version, which a Go module requires.
fn cache(name: &str, variable: &str, module: &str, package: &str) -> Result<PathBuf> {
    let required = format!("require {package} ");
    let version = module.lines().find_map(|line| line.strip_prefix(&required));
    let version = version.with_context(|| format!("tests/{name}/go.mod requires no {package}"))?;
    let cache = env::var_os(variable).map(PathBuf::from).or_else(|| {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
        cache.map(|cache| cache.join("flannel-rs").join(name))
    });
    Ok(cache.context("neither HOME nor XDG_CACHE_HOME is set")?.join(version))
}

fn is_built(program: &Path) -> Result<()> {
    ensure!(
        program.is_file(),
        "there is no {}: build it with `make setup`, which needs Go",
        program.display()
    );
    Ok(())
}

/// Whether Kubernetes and Helm have been built and namespaces can be made; if not, the test is skipped, and this
/// says why. In CI that is a failure.
#[expect(
    clippy::print_stderr,
    reason = "only what the macros print is shown beside the test that printed it"
)]
pub fn is_available() -> bool {
    let Err(reason) = lab::permitted().and_then(|()| Programs::find()).and_then(|_| helm()) else {
        return true;
    };
    assert!(env::var_os("CI").is_none(), "in CI nothing may be skipped: {reason:#}");
    eprintln!("skipped: {reason:#}");
    false
}
