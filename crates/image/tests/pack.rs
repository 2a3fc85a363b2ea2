//! `pack` as `make image` calls it.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{NAME, PROGRAMS};
use serde_json::Value;
use tempfile::TempDir;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[expect(clippy::disallowed_methods, reason = "the program under test is run as make runs it")]
fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).current_dir(REPOSITORY).output().unwrap()
}

fn pack(words: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_pack"), &[&["--release", "0.1.0", "--time", "1000000000"], words].concat())
}

/// A directory with programs that are nothing but an ELF header.
fn programs(dir: &TempDir, name: &str, machine: u8) -> PathBuf {
    let dir = dir.path().join(name);
    fs::create_dir(&dir).unwrap();
    let mut program = b"\x7fELF\x02\x01".to_vec();
    program.resize(64, 0);
    program[18] = machine;
    for name in PROGRAMS {
        fs::write(dir.join(name), &program).unwrap();
    }
    dir
}

fn unpack(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let archive = fs::read(archive).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), content);
    }
    files
}

#[test]
fn programs_for_two_processors_are_one_archive_under_the_manifests_name() {
    let dir = tempfile::tempdir().unwrap();
    let (amd, arm) = (programs(&dir, "amd", 62), programs(&dir, "arm", 183));
    let out = dir.path().join("image.tar");
    let [out_text, amd, arm] = [&out, &amd, &arm].map(|path| path.to_str().unwrap());
    let said = pack(&["image", "--out", out_text, "--revision", "abc", amd, arm]);
    assert!(said.status.success(), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("(amd64, arm64)"), "{said:?}");
    let files = unpack(&out);
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], NAME);
    let texts = files.values().map(|content| String::from_utf8_lossy(content));
    let revisions =
        texts.filter(|text| text.contains(r#""org.opencontainers.image.revision":"abc""#)).count();
    assert_eq!(revisions, 5, "of the index, and of manifest and configuration of each");
}

#[test]
fn a_missing_program_and_two_of_a_kind_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (programs(&dir, "one", 62), programs(&dir, "other", 62));
    let out = dir.path().join("image.tar");
    let [out_text, one_text, other_text] = [&out, &one, &other].map(|path| path.to_str().unwrap());
    let refused = |said: Output, text: &str| {
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && error.contains(text), "want {text:?}: {error}");
        assert!(!out.exists());
    };
    refused(pack(&["image", "--out", out_text, one_text, other_text]), "for the same processor");
    fs::remove_file(one.join("flannelctl")).unwrap();
    refused(pack(&["image", "--out", out_text, one_text]), "`make build` builds it");
    fs::write(one.join("flannelctl"), "#!/bin/sh\n").unwrap();
    refused(pack(&["image", "--out", out_text, one_text]), "flannelctl cannot be in an image");
}

#[test]
fn the_bill_of_these_programs_names_what_they_are_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let (metadata, out) = (dir.path().join("metadata.json"), dir.path().join("bill.json"));
    // Without it, cargo wants what other platforms need as well, which is nowhere offline.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let words = ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", &platform];
    let printed = run(env!("CARGO"), &words);
    assert!(printed.status.success(), "{printed:?}");
    fs::write(&metadata, printed.stdout).unwrap();
    let [metadata, out] = [&metadata, &out].map(|path| path.to_str().unwrap());
    let said = pack(&["sbom", "--metadata", metadata, "--out", out, "flanneld", "plugins", "flannelctl"]);
    assert!(said.status.success(), "{said:?}");

    let bill: Value = serde_json::from_slice(&fs::read(out).unwrap()).unwrap();
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components.iter().map(|one| one["name"].as_str().unwrap()).collect();
    for used in ["flanneld", "fabric", "kernel", "plugins", "serde_json", "tokio"] {
        assert!(names.contains(used), "{used} is missing: {names:?}");
    }
    for unused in ["proptest", "flannel-rs-tests", "flannel-rs-benches", "image", "serde_derive"] {
        assert!(!names.contains(unused), "{unused} is in none of them");
    }
    for component in components {
        let ours = Path::new(REPOSITORY).join("crates").join(component["name"].as_str().unwrap()).exists();
        assert!(component["licenses"].is_array(), "{component} has no license");
        assert_eq!(component["hashes"].is_array(), !ours, "{component}");
    }
}
