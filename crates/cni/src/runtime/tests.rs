use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

/// A runtime whose plugins are scripts that write down how they were called.
struct Bench {
    directory: tempfile::TempDir,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime {
            path: directory.path().display().to_string(),
            cache: Cache::at(directory.path().join("cache")),
        };
        Bench { directory, runtime }
    }

    /// A plugin that answers `answer` and then runs `more`.
    fn plugin(&self, name: &str, answer: &str, more: &str) {
        let path = self.directory.path().join(name);
        let log = self.log_file().display().to_string();
        let script = format!(
            "#!/bin/sh\nread -r line\nprintf '{name} %s %s %s\\n' \"$CNI_COMMAND\" \"$CNI_ARGS\" \"$line\" >> {log}\n\
             printf '%s' '{answer}'\n{more}\n"
        );
        // Written under another name, lest a program that is just started by another test holds it.
        let temporary = path.with_extension("new");
        fs::write(&temporary, script).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("calls.log")
    }

    /// The calls since the last look.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let _ = fs::remove_file(self.log_file());
        log.lines().map(str::to_owned).collect()
    }
}

fn chain(version: &str) -> NetworkList {
    let list = json!({
        "cniVersion": version,
        "name": "net",
        "plugins": [{"type": "one"}, {"type": "two", "capabilities": {"portMappings": true, "mac": false}}],
    });
    NetworkList::parse(list.to_string().as_bytes()).unwrap()
}

fn sandbox() -> Sandbox {
    Sandbox {
        container_id: "pod".into(),
        netns: "/run/netns/pod".into(),
        ifname: "eth0".into(),
        args: vec![("K".into(), "V".into())],
        capability_args: json!({"portMappings": [80], "mac": "m", "bandwidth": 1})
            .as_object()
            .unwrap()
            .clone(),
    }
}

const ANSWER: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}"#;

#[test]
fn results_go_down_the_chain_and_come_back_up_at_del() {
    let bench = Bench::new();
    bench.plugin("one", ANSWER, "");
    bench.plugin("two", ANSWER, "");
    let (list, sandbox, runtime) = (chain("1.0.0"), sandbox(), &bench.runtime);

    let result = runtime.add(&list, &sandbox).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
    assert_eq!(
        bench.calls(),
        [
            r#"one ADD K=V {"cniVersion":"1.0.0","name":"net","type":"one"}"#.to_owned(),
            format!(
                r#"two ADD K=V {{"capabilities":{{"mac":false,"portMappings":true}},"cniVersion":"1.0.0","name":"net","prevResult":{ANSWER},"runtimeConfig":{{"portMappings":[80]}},"type":"two"}}"#
            ),
        ]
    );
    runtime.check(&list, &sandbox).unwrap();
    let checked = bench.calls();
    assert!(checked.iter().all(|call| call.contains("CHECK") && call.contains("prevResult")), "{checked:?}");

    runtime.del(&list, &sandbox).unwrap();
    let deleted = bench.calls();
    assert!(deleted[0].starts_with("two DEL") && deleted[1].starts_with("one DEL"), "{deleted:?}");
    assert!(deleted.iter().all(|call| call.contains("prevResult")), "{deleted:?}");
    assert_eq!(runtime.cache.attachments("net").unwrap(), []);

    // Nothing is remembered any more, and nothing is to be told.
    let error = runtime.check(&list, &sandbox).unwrap_err();
    assert_eq!(error.code, code::UNKNOWN_CONTAINER);
    runtime.del(&list, &sandbox).unwrap();
    assert!(bench.calls().iter().all(|call| !call.contains("prevResult")));
}

#[test]
fn a_chain_that_fails_is_taken_apart_unless_it_stood_before() {
    let bench = Bench::new();
    bench.plugin("one", ANSWER, "");
    bench.plugin("two", r#"{"code":11,"msg":"later"}"#, "exit 1");
    let (list, sandbox, runtime) = (chain("1.0.0"), sandbox(), &bench.runtime);
    let error = runtime.add(&list, &sandbox).unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (11, r#"plugin type="two" failed (add): later"#));
    let verbs = |calls: Vec<String>| -> Vec<String> {
        calls.iter().map(|call| call.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(verbs(bench.calls()), ["one ADD", "two ADD", "two DEL"]);

    bench.plugin("two", ANSWER, "");
    runtime.add(&list, &sandbox).unwrap();
    bench.calls();
    bench.plugin("two", r#"{"code":11,"msg":"later"}"#, "exit 1");
    runtime.add(&list, &sandbox).unwrap_err();
    assert_eq!(verbs(bench.calls()), ["one ADD", "two ADD"]);
    assert_eq!(runtime.cache.attachments("net").unwrap().len(), 1);
}

#[test]
fn garbage_is_what_nobody_keeps() {
    let bench = Bench::new();
    bench.plugin("one", ANSWER, "");
    bench.plugin("two", ANSWER, "");
    let (list, runtime) = (chain("1.1.0"), &bench.runtime);
    for pod in ["a", "b"] {
        runtime.add(&list, &Sandbox { container_id: pod.into(), ..sandbox() }).unwrap();
    }
    bench.calls();
    let kept = vec![Attachment { container_id: "b".into(), ifname: "eth0".into() }];
    runtime.gc(&list, &Keep::Only(kept)).unwrap();
    let calls = bench.calls();
    assert_eq!(calls.len(), 4, "{calls:?}");
    assert!(calls[2].starts_with("one GC  "), "{calls:?}");
    assert!(calls[2].contains(r#""cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]"#));
    let left = runtime.cache.attachments("net").unwrap();
    assert_eq!(left.iter().map(|entry| &*entry.container_id).collect::<Vec<_>>(), ["b"]);

    // Plugins before 1.1.0 know no GC; what is remembered is detached all the same.
    runtime.gc(&chain("1.0.0"), &Keep::Nothing).unwrap();
    assert!(bench.calls().iter().all(|call| call.contains(" DEL ")));
    assert_eq!(runtime.cache.attachments("net").unwrap(), []);
}

#[test]
fn status_passes_the_plugins_own_error_and_versions_are_told() {
    let bench = Bench::new();
    bench.plugin("one", r#"{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}"#, "");
    bench.plugin("two", r#"{"code":50,"msg":"no addresses"}"#, "exit 1");
    assert_eq!(bench.runtime.versions("one").unwrap(), ["0.4.0", "1.0.0"]);
    bench.calls();
    assert_eq!(bench.runtime.status(&chain("1.1.0")).unwrap_err(), Error::new(50, "no addresses"));
    bench.calls();
    bench.runtime.status(&chain("1.0.0")).unwrap();
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn names_that_no_plugin_would_take_are_refused_before_any_is_called() {
    let bench = Bench::new();
    bench.plugin("one", ANSWER, "");
    bench.plugin("two", ANSWER, "");
    for (container, ifname) in [("../x", "eth0"), ("pod", "a/b"), ("", "eth0")] {
        let wrong = Sandbox { container_id: container.into(), ifname: ifname.into(), ..sandbox() };
        assert_eq!(bench.runtime.add(&chain("1.0.0"), &wrong).unwrap_err().code, code::INVALID_ENVIRONMENT);
    }
    assert_eq!(bench.calls(), [""; 0]);
    let check = bench.runtime.check(&chain("0.3.1"), &sandbox()).unwrap_err();
    assert!(check.msg.contains("0.3.1"), "{check}");
}
