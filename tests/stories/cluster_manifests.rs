//! A real API server accepts every manifest that there is in `deploy/`.

use std::path::Path;

use anyhow::{Result, ensure};
use flannel_rs_tests::kubernetes::{ApiServer, Manifests, is_available};
use lab::{Topology, story};

#[test]
fn every_manifest_is_accepted() {
    if !is_available() {
        return;
    }
    story(Topology::alloc(1), |lab| {
        // It has the namespace that the manifests are for: one that is created on trial is not there.
        let api = ApiServer::start(lab)?;
        let manifests = Manifests::new()?;
        is_accepted(&api, &manifests.plain())?;
        is_accepted(&api, &manifests.chart(&[])?)?;
        is_accepted(&api, &manifests.kustomization(&[])?)?;
        let components = manifests.components()?;
        ensure!(!components.is_empty(), "there are no components");
        for component in &components {
            is_accepted(&api, &manifests.kustomization(std::slice::from_ref(component))?)?;
        }
        is_accepted(&api, &manifests.kustomization(&components)?)?;
        let everything = [
            "--set=flannel.events=true,flannel.hostIptables=true,flannel.hostSysctls=true,netpol.enabled=true",
            "--set-json=flannel.startupTaints=[\"flannel.alpha.coreos.com/not-ready\"]",
            "--set=flannel.allocateNodeCidrs=true,podCidrv6=fd00:244::/56",
        ];
        is_accepted(&api, &manifests.chart(&everything)?)
    });
}

fn is_accepted(api: &ApiServer, path: &Path) -> Result<()> {
    let flag = if path.is_dir() { "-k" } else { "-f" };
    let said = api.kubectl(&["apply", "--dry-run=server", flag, &path.display().to_string()])?;
    ensure!(said.matches("(server dry run)").count() >= 5, "{}: {said}", path.display());
    Ok(())
}
