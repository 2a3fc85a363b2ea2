//! A real API server accepts every manifest that there is in `deploy/`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::kubernetes::{ApiServer, is_available};
use lab::{Topology, story};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

#[test]
fn every_manifest_is_accepted() {
    if !is_available() {
        return;
    }
    story(Topology::alloc(1), |lab| {
        // It has the namespace that the manifests are for: one that is created on trial is not there.
        let api = ApiServer::start(lab)?;
        let mut accepted = 0;
        for entry in fs::read_dir(DEPLOY).context("reading deploy/")? {
            accepted += usize::from(is_accepted(&api, &entry?.path())?);
        }
        ensure!(accepted > 0, "there is no manifest in deploy/");
        Ok(())
    });
}

/// Whether it is a manifest at all; fails if the server refuses it.
fn is_accepted(api: &ApiServer, path: &Path) -> Result<bool> {
    let flag = match path.extension().and_then(|extension| extension.to_str()) {
        Some("yml" | "yaml") => "-f",
        _ if path.join("kustomization.yaml").exists() || path.join("kustomization.yml").exists() => "-k",
        _ => return Ok(false),
    };
    let said = api.kubectl(&["apply", "--dry-run=server", flag, &path.display().to_string()])?;
    ensure!(said.contains("(server dry run)"), "{}: {said}", path.display());
    Ok(true)
}
