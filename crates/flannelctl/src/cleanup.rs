//! `flannelctl cleanup`: takes away what flanneld leaves behind on purpose when it ends.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use fabric::LinkName;
use fabric::dataplane::{self, Change, Dataplane, Observed, ObservedLinkKind, Prune};
use fabric::instance::Instance;
use fabric::lease::Subnets;
use fabric::ownership::Ownership;
use fabric::status::Files;
use kernel::nftables::Nftables;
use kernel::{Kernel, Linux, takeover};
use serde_json::json;

use crate::output::{self, Output, Tone};
use crate::plan::{self, Decided};

pub(crate) fn run(subnet_file: &Path, dry_run: bool, out: &mut Output) -> Result<ExitCode> {
    let files = Files::beside(subnet_file);
    let _none_may_start = refuse_while_running(&files)?;
    let ownership = ownership(&files)?;
    let observed = plan::observe(&ownership, Vec::new())?;
    let changes = removals(observed.clone(), &ownership);
    let files = present(&files);

    if out.is_json() {
        let commands: Vec<String> = changes.iter().map(Change::to_string).collect();
        out.json(&json!({ "dry_run": dry_run, "changes": commands, "files": files }))?;
    } else {
        changes.iter().try_for_each(|change| out.line(change))?;
        files.iter().try_for_each(|file| out.line(format!("rm {}", file.display())))?;
        for left in left_to_others(&observed, &ownership) {
            out.line(out.toned(Tone::Quiet, format!("# {left}")))?;
        }
    }
    if dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let failures = Linux::open()?.apply(&changes);
    for failure in &failures {
        output::complain(&format!("{}: {}", failure.change, failure.error));
    }
    if !failures.is_empty() {
        // The files say what is flannel's: with them a second try can succeed.
        bail!("{} of {} changes failed; the files were kept", failures.len(), changes.len());
    }
    for file in &files {
        fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
    }
    if !out.is_json() {
        let nothing = changes.is_empty() && files.is_empty();
        out.line(if nothing { "there is nothing of flannel here" } else { "done" })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes flanneld's lock, which it holds while it runs.
fn refuse_while_running(files: &Files) -> Result<Option<File>> {
    let lock = match File::open(&files.lock) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", files.lock.display())),
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&files.lock).unwrap_or_default();
            bail!("flanneld runs here (process {}) and would put everything back: stop it first", pid.trim())
        }
        Err(TryLockError::Error(error)) => Err(error).context("looking whether flanneld runs"),
    }
}

/// What is ours, from what flanneld wrote down; without that, from the names of devices alone.
fn ownership(files: &Files) -> Result<Ownership> {
    if let Ok(decided) = Decided::read(files) {
        return Ok(decided.intent.ownership());
    }
    // The routes of the original cannot be told from those of others without the network.
    let nobody = Ownership::new([], [], Subnets::default());
    let observed = plan::observe(&nobody, Vec::new())?;
    let ownership = Ownership::new(flannel_devices(&observed), [], Subnets::default());
    Ok(ownership.of_instance(&Instance::of(&files.subnet)))
}

/// Devices of the kinds that flannel makes, which are called as it calls its own.
fn flannel_devices(observed: &Observed) -> BTreeSet<LinkName> {
    let numbered = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    let is_flannels = |name: &str, kind: &ObservedLinkKind| match kind {
        ObservedLinkKind::Vxlan { .. } => {
            name.strip_prefix("flannel.").or_else(|| name.strip_prefix("flannel-v6.")).is_some_and(numbered)
        }
        ObservedLinkKind::Tun { frames, .. } => name == "flannel0" && !frames,
        // As kernels before 4.17 say it.
        ObservedLinkKind::Other(kind) => name == "flannel0" && kind == "tun",
    };
    let flannels = observed.links.iter().filter(|(name, link)| is_flannels(name.as_str(), &link.kind));
    flannels.map(|(name, _)| *name).collect()
}

/// Everything that is ours goes; what is on a device goes with it.
fn removals(mut observed: Observed, ownership: &Ownership) -> Vec<Change> {
    let devices: Vec<LinkName> =
        ownership.links().filter(|link| observed.links.remove(link).is_some()).collect();
    let mut changes = dataplane::changes(&Dataplane::default(), &observed, ownership, Prune::Yes);
    changes.extend(devices.into_iter().map(Change::DeleteLink));
    changes
}

fn present(files: &Files) -> Vec<PathBuf> {
    let Files { subnet, status, leases, lock } = files;
    [subnet, status, leases, lock].into_iter().filter(|file| file.exists()).cloned().collect()
}

/// What looks like flannel's and is not removed, and why.
fn left_to_others(observed: &Observed, ownership: &Ownership) -> Vec<String> {
    let mut left = Vec::new();
    for device in flannel_devices(observed).iter().filter(|device| !ownership.owns_link(device)) {
        left.push(format!("{device} is of another network or another flanneld: ip link delete {device}"));
    }
    match Nftables::open().and_then(|mut nftables| takeover::find(&mut nftables)) {
        Ok(found) => left.extend(found.iter().map(|rules| {
            format!("rules of the original flannel, which flanneld takes away when it starts: {rules}")
        })),
        Err(error) => left.push(format!("whether the original flannel left rules cannot be told: {error}")),
    }
    if observed.links.keys().any(|name| name.as_str() == "cni0") {
        left.push("cni0 and the addresses of pods are the CNI plugins': delete the pods first, then ip link delete cni0".to_owned());
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::dataplane::{NextHop, ObservedLink, Route, Target};
    use fabric::ownership::ROUTE_PROTOCOL;

    fn vxlan() -> ObservedLink {
        let kind = ObservedLinkKind::Vxlan {
            vni: 1,
            underlay: None,
            local: None,
            port: 8472,
            learning: false,
            gbp: false,
        };
        ObservedLink { index: 7, mtu: 1450, mac: None, up: true, kind }
    }

    #[test]
    fn what_is_on_a_device_goes_with_it_and_other_routes_of_ours_go_too() {
        let (device, eth0): (LinkName, LinkName) = ("flannel.1".parse().unwrap(), "eth0".parse().unwrap());
        let route = |destination: &str, link, protocol| Route {
            destination: destination.parse().unwrap(),
            metric: 0,
            target: Target::Via(NextHop { gateway: "192.0.2.1".parse().unwrap(), link, onlink: false }),
            protocol,
        };
        let mut observed = Observed::default();
        observed.links.insert(device, vxlan());
        observed.links.insert(eth0, ObservedLink { kind: ObservedLinkKind::Other(String::new()), ..vxlan() });
        observed.routes.insert(route("10.5.1.0/24", device, ROUTE_PROTOCOL));
        observed.routes.insert(route("10.5.2.0/24", eth0, ROUTE_PROTOCOL));
        observed.routes.insert(route("10.6.0.0/16", eth0, 4));
        let ownership = Ownership::new([device], [], Subnets::default());
        let texts: Vec<String> = removals(observed, &ownership).iter().map(Change::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].starts_with("ip route delete 10.5.2.0/24"), "{texts:?}");
        assert_eq!(texts[1], "ip link delete flannel.1");
    }

    #[test]
    fn only_names_of_flannels_form_are_taken_for_its_devices() {
        let mut observed = Observed::default();
        for name in ["flannel.1", "flannel-v6.4096", "flannel.", "flannel.x", "flannel0", "vxlan1"] {
            observed.links.insert(name.parse().unwrap(), vxlan());
        }
        fn names(observed: &Observed) -> Vec<String> {
            flannel_devices(observed).iter().map(LinkName::to_string).collect()
        }
        assert_eq!(names(&observed), ["flannel-v6.4096", "flannel.1"]);
        let tun = |frames| ObservedLinkKind::Tun { frames, multi_queue: true };
        for kind in [tun(false), ObservedLinkKind::Other("tun".to_owned())] {
            for link in observed.links.values_mut() {
                link.kind.clone_from(&kind);
            }
            assert_eq!(names(&observed), ["flannel0"], "{kind:?}");
        }
        for kind in [tun(true), ObservedLinkKind::Other("bridge".to_owned())] {
            for link in observed.links.values_mut() {
                link.kind.clone_from(&kind);
            }
            assert_eq!(names(&observed), [""; 0], "{kind:?}");
        }
    }
}
