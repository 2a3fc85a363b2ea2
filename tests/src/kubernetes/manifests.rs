//! [`Manifests`]: what people make of `deploy/` by Helm and by kustomize.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::api_server::MANIFEST;
use super::programs::{Programs, helm};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart/flannel");
/// The base of everything that is made with kustomize.
const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
const COMPONENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");

/// The programs that make manifests, and a directory for them.
#[derive(Debug)]
pub struct Manifests {
    helm: PathBuf,
    kubectl: PathBuf,
    dir: tempfile::TempDir,
}

impl Manifests {
    /// Finds the programs.
    pub fn new() -> Result<Manifests> {
        let dir = tempfile::tempdir().context("making a directory for manifests")?;
        Ok(Manifests { helm: helm()?, kubectl: Programs::find()?.path("kubectl").into(), dir })
    }

    /// `deploy/kube-flannel.yml`
    pub fn plain(&self) -> PathBuf {
        PathBuf::from(MANIFEST)
    }

    /// The chart, with further arguments such as `--set=podCidr=…`, in a file.
    pub fn chart(&self, arguments: &[&str]) -> Result<PathBuf> {
        let command = ["template", "flannel", CHART, "--namespace=kube-flannel"];
        let text = self.helm(&[&command, arguments].concat())?;
        let path = self.dir.path().join("chart.yml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Runs Helm; fails with what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run(&self.helm, arguments)
    }

    /// Runs `helm lint`, which calls nothing good enough that is not.
    pub fn lint(&self, arguments: &[&str]) -> Result<String> {
        self.helm(&[&["lint", "--strict", "--quiet", CHART], arguments].concat())
    }

    /// A kustomization of the base and these components, in a directory.
    pub fn kustomization(&self, components: &[PathBuf]) -> Result<PathBuf> {
        let components: Vec<String> = components.iter().map(|path| self.relative(path)).collect();
        self.write_kustomization(&format!(
            "resources: [{}]\ncomponents: [{}]\n",
            self.relative(Path::new(BASE)),
            components.join(", ")
        ))
    }

    /// All components.
    pub fn components(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(COMPONENTS).with_context(|| format!("reading {COMPONENTS}"))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    /// What is in a file or a kustomization, in a form of its own: the same objects give the same text,
    /// one after the other in an order that does not depend on the file's.
    pub fn objects(&self, path: &Path) -> Result<Vec<String>> {
        let dir = if path.is_dir() {
            path.to_owned()
        } else {
            fs::copy(path, self.dir.path().join("objects.yml"))?;
            self.write_kustomization("resources: [objects.yml]\n")?
        };
        let text = self.run(&self.kubectl, &["kustomize", &dir.display().to_string()])?;
        let mut objects: Vec<String> = text.split("\n---\n").map(|text| text.trim_end().to_owned()).collect();
        objects.sort();
        Ok(objects)
    }

    fn write_kustomization(&self, text: &str) -> Result<PathBuf> {
        fs::write(self.dir.path().join("kustomization.yaml"), text)?;
        Ok(self.dir.path().to_owned())
    }

    /// A path as kustomize wants it, which takes none from the root.
    fn relative(&self, path: &Path) -> String {
        let up = self.dir.path().components().skip(1).map(|_| "../").collect::<String>();
        format!("{up}{}", path.strip_prefix("/").unwrap_or(path).display())
    }

    #[expect(clippy::disallowed_methods, reason = "these run in no node of a lab")]
    fn run(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        // Nothing of the home directory has a say.
        for variable in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.dir.path());
        }
        let output = command.args(arguments).output();
        let output = output.with_context(|| format!("running {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{} {}: {said}{}",
            program.display(),
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}
