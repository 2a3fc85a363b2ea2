//! `flannelctl cni` and `mk-docker-opts`, with our plugins, in a namespace of their own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::{Namespace, permitted};
use serde_json::{Value, json};

/// A host's namespace, one of a container, and the files that would be machine-wide.
struct Host {
    host: Namespace,
    pod: Namespace,
    dir: tempfile::TempDir,
}

impl Host {
    #[expect(clippy::print_stderr, reason = "only what the macros print is shown beside the test")]
    fn up(name: &str) -> Option<Host> {
        if let Err(reason) = permitted() {
            assert!(std::env::var_os("CI").is_none(), "in CI nothing may be skipped: {reason:#}");
            eprintln!("skipped: {reason:#}");
            return None;
        }
        let id = std::process::id();
        let host = Namespace::create(&format!("ctl{id}-{name}")).expect("a namespace");
        let pod = Namespace::create(&format!("ctl{id}-{name}-pod")).expect("a namespace");
        let host = Host { host, pod, dir: tempfile::tempdir().expect("a directory") };
        fs::create_dir(host.path("net.d")).expect("files can be written");
        let list = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "plugins": [
                {
                    "type": "bridge", "bridge": "br0", "isGateway": true,
                    "capabilities": {"mac": true},
                    "ipam": {
                        "type": "host-local", "dataDir": host.path("ipam"),
                        "ranges": [[{"subnet": "10.77.0.0/24"}]],
                    },
                },
                {"type": "loopback"},
            ],
        });
        fs::write(host.path("net.d/10-net.conflist"), list.to_string()).expect("files can be written");
        let installed = host.ctl(&["install", "--no-conf", "--dir", &host.text("bin")]);
        assert!(installed.status.success(), "{installed:?}");
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `flannelctl cni VERB`, as cnitool is called.
    #[expect(clippy::disallowed_methods, reason = "the program under test is run as a person runs it")]
    fn ctl(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannelctl"));
        command
            .arg("cni")
            .args(words)
            .env("CNI_PATH", self.path("bin"))
            .env("NETCONFPATH", self.path("net.d"));
        command.env("CNI_ARGS", "IgnoreUnknown=1;K=V").env("CAP_ARGS", r#"{"mac":"c2:11:22:33:44:55"}"#);
        self.host.within(|| command.output()).expect("a namespace").expect("flannelctl can be started")
    }

    fn net(&self, verb: &str, more: &[&str]) -> Output {
        let cache = self.text("cache");
        self.ctl(
            &[&[verb, "net", &self.pod.path().display().to_string(), "--cache-dir", &cache], more].concat(),
        )
    }

    fn remembered(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache/results")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    fn reserved(&self) -> usize {
        let entries = fs::read_dir(self.path("ipam/net")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.77.")).count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = (self.pod.destroy(), self.host.destroy());
    }
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_namespace_is_attached_checked_and_detached() {
    let Some(host) = Host::up("attach") else { return };
    succeeds(&host.net("status", &[]));
    let result: Value = serde_json::from_str(&succeeds(&host.net("add", &[]))).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.77.0.2/24");
    let links = host.pod.run(&["ip", "link", "show", "eth0"]).unwrap();
    assert!(links.contains("c2:11:22:33:44:55"), "the capability did not arrive: {links}");

    let [file] = &host.remembered()[..] else { panic!("{:?}", host.remembered()) };
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("net-cnitool-") && name.ends_with("-eth0"), "{name}");
    let entry: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!((&entry["kind"], &entry["result"]), (&json!("cniCacheV1"), &result));
    assert_eq!(entry["cniArgs"], json!([["IgnoreUnknown", "1"], ["K", "V"]]));

    succeeds(&host.net("check", &[]));
    host.pod.run(&["ip", "address", "flush", "dev", "eth0"]).unwrap();
    assert!(!host.net("check", &[]).status.success(), "CHECK does not see that the address is gone");
    succeeds(&host.net("del", &[]));
    succeeds(&host.net("del", &[]));
    assert_eq!((host.remembered().len(), host.reserved()), (0, 0));
    assert!(host.pod.run(&["ip", "link", "show", "eth0"]).is_err());
}

#[test]
fn garbage_is_what_has_no_namespace_any_more() {
    let Some(host) = Host::up("garbage") else { return };
    succeeds(&host.net("add", &[]));
    succeeds(&host.net("gc", &[]));
    assert_eq!((host.remembered().len(), host.reserved()), (1, 1), "GC took what lives");
    host.pod.destroy().unwrap();
    succeeds(&host.net("gc", &[]));
    assert_eq!((host.remembered().len(), host.reserved()), (0, 0));
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_left() {
    let Some(host) = Host::up("wrong") else { return };
    let says = |output: Output, text: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(text), "want {text:?}: {said}");
    };
    says(host.ctl(&["add", "nope", "/run/netns/none"]), r#"no net configuration with name "nope""#);
    says(host.net("add", &["-i", "a/b"]), "interface name contains /");
    says(host.net("check", &[]), "is not attached");
    // The address is reserved by then, and given back.
    fs::remove_file(host.path("bin/loopback")).unwrap();
    says(host.net("add", &[]), r#"failed to find plugin "loopback""#);
    symlink("flannel-cni", host.path("bin/loopback")).unwrap();
    succeeds(&host.net("del", &[]));
    assert_eq!((host.remembered().len(), host.reserved()), (0, 0));
}

#[test]
fn foreign_plugins_and_configurations_are_kept_unless_told() {
    let Some(host) = Host::up("install") else { return };
    let (bin, conf) = (host.text("bin"), host.text("conf"));
    let install = |more: &[&str]| host.ctl(&[&["install", "--dir", &bin, "--conf", &conf], more].concat());
    succeeds(&install(&[]));
    assert_eq!(fs::read_link(host.path("bin/bridge")).unwrap(), Path::new("flannel-cni"));
    let again = succeeds(&install(&[]));
    assert!(again.lines().all(|line| line.starts_with("unchanged ")), "{again}");

    fs::remove_file(host.path("bin/bridge")).unwrap();
    fs::write(host.path("bin/bridge"), "foreign").unwrap();
    fs::write(host.path("conf/10-flannel.conflist"), "{}").unwrap();
    let kept = install(&[]);
    let said = String::from_utf8_lossy(&kept.stderr).into_owned();
    assert!(!kept.status.success() && said.contains("bin/bridge") && said.contains("--force"), "{said}");
    assert_eq!(fs::read_to_string(host.path("bin/bridge")).unwrap(), "foreign");

    succeeds(&host.ctl(&["uninstall", "--dir", &bin, "--conf", &conf]));
    let left = |dir: &str| -> Vec<_> {
        fs::read_dir(host.path(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!((left("bin"), left("conf")), (vec!["bridge".into()], vec!["10-flannel.conflist".into()]));

    succeeds(&install(&["--force"]));
    assert_eq!(fs::read_link(host.path("bin/bridge")).unwrap(), Path::new("flannel-cni"));
    succeeds(&host.ctl(&["uninstall", "--dir", &bin, "--conf", &conf]));
    assert_eq!((left("bin").len(), left("conf").len()), (0, 0));
}

#[test]
fn an_init_container_replaces_flannel_and_its_configuration_and_nothing_else() {
    let Some(host) = Host::up("init") else { return };
    let (bin, conf, given) = (host.text("bin"), host.text("conf"), host.text("cni-conf.json"));
    let install =
        || host.ctl(&["install", "--keep-others", "--conf-from", &given, "--dir", &bin, "--conf", &conf]);
    let text = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
    fs::write(host.path("cni-conf.json"), text).unwrap();
    for plugin in ["flannel", "bridge"] {
        let _ = fs::remove_file(host.path("bin").join(plugin));
        fs::write(host.path("bin").join(plugin), "foreign").unwrap();
    }
    fs::create_dir_all(host.path("conf")).unwrap();
    fs::write(host.path("conf/10-flannel.conflist"), "{}").unwrap();
    let said = succeeds(&install());
    assert!(said.contains(&format!("kept {bin}/bridge")), "{said}");
    let program = fs::read(host.path("bin/flannel-cni")).unwrap();
    assert!(fs::read(host.path("bin/flannel")).unwrap() == program, "the plugin is not ours");
    assert_eq!(fs::read_to_string(host.path("bin/bridge")).unwrap(), "foreign");
    assert_eq!(fs::read_to_string(host.path("conf/10-flannel.conflist")).unwrap(), text);

    fs::write(host.path("cni-conf.json"), "{").unwrap();
    let refused = install();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is no list of CNI plugins"), "{said}");
    assert_eq!(fs::read_to_string(host.path("conf/10-flannel.conflist")).unwrap(), text, "the last good one");
}

#[test]
fn the_original_is_installed_over_ours_without_harm_to_other_plugins() {
    let Some(host) = Host::up("back") else { return };
    let (bin, conf) = (host.text("bin"), host.text("conf"));
    let install = |more: &[&str]| host.ctl(&[&["install", "--dir", &bin, "--conf", &conf], more].concat());
    succeeds(&install(&[]));
    let program = fs::read(host.path("bin/flannel-cni")).unwrap();
    // What `cp -f` does, be it of GNU or of busybox: to write where the name leads to.
    fs::write(host.path("bin/flannel"), "the original").unwrap();
    assert!(
        fs::read(host.path("bin/bridge")).unwrap() == program,
        "the other plugins are the original's as well"
    );

    assert!(!install(&[]).status.success(), "the original's plugin is replaced without being told to");
    let said = succeeds(&install(&["--keep-others"]));
    assert!(said.contains(&format!("installed {bin}/flannel\n")), "{said}");
    // A later version finds its earlier one.
    fs::write(host.path("bin/flannel-cni"), "earlier").unwrap();
    fs::write(host.path("bin/flannel"), "earlier").unwrap();
    succeeds(&install(&[]));
    assert!(fs::read(host.path("bin/flannel")).unwrap() == program, "the earlier version is still there");
    succeeds(&host.ctl(&["uninstall", "--dir", &bin, "--conf", &conf]));
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 0);
}

#[test]
fn a_route_to_ones_own_subnet_by_way_of_another_node_is_refused() {
    let Some(host) = Host::up("docker") else { return };
    let run = |command: &str| host.host.run(&command.split(' ').collect::<Vec<_>>()).unwrap();
    fs::write(
        host.path("subnet.env"),
        "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    let (from, to) = (host.text("subnet.env"), host.text("docker.env"));
    let flannelctl = env!("CARGO_BIN_EXE_flannelctl");
    let command = [flannelctl, "mk-docker-opts", "-c", "-f", &from, "-d", &to];
    host.host.run(&command).unwrap();
    let text = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1450\"\n";
    assert_eq!(fs::read_to_string(&to).unwrap(), text);

    run("ip link add br1 type bridge");
    run("ip address add 192.0.2.1/24 dev br1");
    run("ip link set br1 up");
    run("ip route add 10.1.74.0/24 via 192.0.2.2");
    let error = host.host.run(&command).unwrap_err().to_string();
    assert!(error.contains("Your routing table already contains the subnet"), "{error}");
}
