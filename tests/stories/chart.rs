//! Helm's chart, kustomize's base and the plain manifest say the same.

use anyhow::{Context, Result, ensure};
use fabric::config::NetworkConfig;
use flannel_rs_tests::kubernetes::{Manifests, is_available};
use serde_json::{Value, json};

/// Every value of ours that asks for more than the plain manifest has.
const EVERYTHING: [&str; 6] = [
    "--set=flannel.backend=udp",
    "--set=flannel.events=true",
    "--set-json=flannel.startupTaints=[\"flannel.alpha.coreos.com/not-ready\"]",
    "--set=flannel.allocateNodeCidrs=true",
    "--set=flannel.hostIptables=true",
    "--set=flannel.hostSysctls=true",
];

#[test]
fn the_chart_makes_the_manifest() -> Result<()> {
    if !is_available() {
        return Ok(());
    }
    let manifests = Manifests::new()?;
    let mut plain = manifests.objects(&manifests.plain())?;
    // The namespace of a chart is whoever installs it's to make.
    plain.retain(|object| !object.contains("\nkind: Namespace\n"));
    let chart = manifests.objects(&manifests.chart(&[])?)?;
    assert_eq!(chart, plain);
    assert_eq!(chart.len(), 5);
    Ok(())
}

#[test]
fn values_of_the_chart_and_components_of_kustomize_make_the_same() -> Result<()> {
    if !is_available() {
        return Ok(());
    }
    let manifests = Manifests::new()?;
    let mut chart = manifests.objects(&manifests.chart(&EVERYTHING)?)?;
    let mut kustomized = manifests.objects(&manifests.kustomization(&manifests.components()?)?)?;
    // What the network is called and how it is configured is no component's.
    for objects in [&mut chart, &mut kustomized] {
        objects.retain(|object| {
            !["Namespace", "ConfigMap"].iter().any(|kind| object.contains(&format!("\nkind: {kind}\n")))
        });
    }
    // A patch puts what is new first, a template where it is read best.
    assert_eq!(sorted_lines(&chart), sorted_lines(&kustomized));
    assert_ne!(chart, manifests.objects(&manifests.chart(&[])?)?);
    Ok(())
}

#[test]
fn the_chart_is_sound_and_everything_is_of_one_version() -> Result<()> {
    if !is_available() {
        return Ok(());
    }
    let manifests = Manifests::new()?;
    manifests.lint(&[])?;
    manifests.lint(&[&EVERYTHING[..], &["--set=netpol.enabled=true"]].concat())?;

    let version = env!("CARGO_PKG_VERSION");
    let chart = include_str!("../../deploy/chart/flannel/Chart.yaml");
    for line in [format!("version: {version}"), format!("appVersion: v{version}")] {
        ensure!(chart.lines().any(|there| there == line), "Chart.yaml has no {line:?}");
    }
    let plain = manifests.objects(&manifests.plain())?.join("\n");
    let images: Vec<&str> = plain
        .lines()
        .filter_map(|line| line.trim_start_matches(['-', ' ']).strip_prefix("image: "))
        .collect();
    let image = format!("ghcr.io/flannel-rs/flannel-rs:v{version}");
    assert_eq!(images, [&image, &image]);
    Ok(())
}

#[test]
fn values_of_the_originals_chart_do_what_they_do_there() -> Result<()> {
    if !is_available() {
        return Ok(());
    }
    let manifests = Manifests::new()?;
    let configuration = |values: &[&str]| -> Result<Value> {
        let text = net_conf(&manifests.objects(&manifests.chart(values)?)?)?;
        NetworkConfig::from_json(&text).with_context(|| text.clone())?;
        Ok(serde_json::from_str(&text)?)
    };
    assert_eq!(
        configuration(&[
            "--set=podCidr=10.1.0.0/16",
            "--set=podCidrv6=fd01::/48",
            "--set=flannel.backend=host-gw"
        ])?,
        json!({
            "Network": "10.1.0.0/16", "IPv6Network": "fd01::/48", "EnableIPv6": true, "EnableNFTables": false,
            "Backend": { "Type": "host-gw" },
        })
    );
    assert_eq!(
        configuration(&["--set=podCidr=", "--set=podCidrv6=fd01::/48", "--set=flannel.enableNFTables=true"])?,
        json!({
            "EnableIPv4": false, "IPv6Network": "fd01::/48", "EnableIPv6": true, "EnableNFTables": true,
            "Backend": { "Type": "vxlan" },
        })
    );
    let all = "vni=9999999,backendPort=4789,mtu=1400,GBP=true,directRouting=true,macPrefix=0E-2A";
    let all = all.split(',').map(|value| format!("--set=flannel.{value}")).collect::<Vec<_>>();
    assert_eq!(
        configuration(&all.iter().map(String::as_str).collect::<Vec<_>>())?["Backend"],
        json!({
            "Type": "vxlan", "VNI": 9_999_999, "Port": 4789, "MTU": 1400, "GBP": true, "DirectRouting": true,
            "MacPrefix": "0E-2A",
        })
    );

    let rendered =
        |values: &[&str]| -> Result<String> { Ok(manifests.objects(&manifests.chart(values)?)?.join("\n")) };
    let without_health = rendered(&["--set=flannel.healthz.port=0"])?;
    ensure!(!without_health.contains("healthz") && !without_health.contains("Probe:"), "{without_health}");
    let plugins_only = rendered(&["--set=flannel.skipCNIConfigInstallation=true"])?;
    ensure!(plugins_only.contains("- --no-conf") && !plugins_only.contains("--conf-from"), "{plugins_only}");
    let placed = rendered(&[
        "--set=flannel.cniBinDir=/var/lib/rancher/k3s/data/cni",
        "--set=flannel.nodeSelector.disk=ssd",
        "--set-json=global.imagePullSecrets=[{\"name\":\"a-secret\"}]",
        "--set=flannel.image.tag=v9",
    ])?;
    for line in [
        "path: /var/lib/rancher/k3s/data/cni",
        "disk: ssd",
        "- name: a-secret",
        "image: ghcr.io/flannel-rs/flannel-rs:v9",
    ] {
        ensure!(placed.contains(line), "no {line:?}: {placed}");
    }
    Ok(())
}

#[test]
fn a_value_that_nobody_knows_is_refused_by_its_name() -> Result<()> {
    if !is_available() {
        return Ok(());
    }
    let manifests = Manifests::new()?;
    for (value, named) in [
        ("flannel.bakend=host-gw", "bakend"),
        ("podCidr=10.244.0.0", "podCidr"),
        ("flannel.mtu=large", "mtu"),
        // As `helm upgrade --reuse-values` has it when a cluster is moved over.
        ("flannel.image.repository=ghcr.io/flannel-io/flannel", "the original's image"),
    ] {
        let error = manifests.chart(&[&format!("--set={value}")]).unwrap_err().to_string();
        ensure!(error.contains(named), "{value}: {error}");
    }
    Ok(())
}

/// The text of net-conf.json among objects.
fn net_conf(objects: &[String]) -> Result<String> {
    let map = objects.iter().find(|object| object.contains("\nkind: ConfigMap\n")).context("no ConfigMap")?;
    let (_, text) = map.split_once("net-conf.json: |\n").context("no net-conf.json in it")?;
    Ok(text.lines().take_while(|line| line.starts_with("    ")).collect())
}

fn sorted_lines(objects: &[String]) -> Vec<Vec<&str>> {
    let mut sorted = Vec::new();
    for object in objects {
        let mut lines: Vec<&str> = object.lines().map(|line| line.trim_start_matches(['-', ' '])).collect();
        lines.sort_unstable();
        sorted.push(lines);
    }
    sorted
}
