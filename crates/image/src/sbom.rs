//! What programs are made of: a bill of materials, as CycloneDX 1.5 in JSON.
//!
//! It is read from `cargo metadata` and `Cargo.lock`, and holds what is compiled into the programs: not
//! what builds or tests them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::archive::date;

/// The packages that programs are made of.
#[derive(Debug)]
pub struct Bill {
    packages: BTreeMap<String, Package>,
    /// By package, what it uses.
    uses: BTreeMap<String, BTreeSet<String>>,
    roots: BTreeSet<String>,
    checksums: BTreeMap<(String, String), String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None for packages of this repository.
    source: Option<String>,
    repository: Option<String>,
    targets: Vec<Target>,
}

#[derive(Debug, Clone, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// None for what is compiled in; `dev` or `build` for the rest.
    kind: Option<String>,
}

impl Bill {
    /// What the packages `roots` are made of. `metadata` is what `cargo metadata --format-version 1` prints,
    /// `lock` the text of `Cargo.lock`.
    pub fn read(metadata: &str, lock: &str, roots: &[String]) -> Result<Bill> {
        let metadata: Metadata =
            serde_json::from_str(metadata).context("reading what cargo metadata printed")?;
        let packages: BTreeMap<String, Package> =
            metadata.packages.into_iter().map(|package| (package.id.clone(), package)).collect();
        let compiled_in = |dependency: &Dependency| {
            dependency.dep_kinds.iter().any(|kind| kind.kind.is_none())
                && packages.get(&dependency.pkg).is_some_and(|package| !package.is_macro())
        };
        let edges: BTreeMap<String, BTreeSet<String>> = metadata
            .resolve
            .nodes
            .into_iter()
            .map(|node| {
                let uses = node.deps.into_iter().filter(compiled_in).map(|dependency| dependency.pkg);
                (node.id, uses.collect())
            })
            .collect();
        let id = |name: &String| {
            let found = packages.values().find(|package| package.source.is_none() && package.name == *name);
            found.map(|package| package.id.clone()).with_context(|| format!("{name} is no package of ours"))
        };
        let roots: BTreeSet<String> = roots.iter().map(id).collect::<Result<_>>()?;

        let mut uses = BTreeMap::new();
        let mut waiting: VecDeque<String> = roots.iter().cloned().collect();
        while let Some(id) = waiting.pop_front() {
            if let Entry::Vacant(vacant) = uses.entry(id) {
                let used = edges.get(vacant.key()).cloned().unwrap_or_default();
                waiting.extend(used.iter().cloned());
                vacant.insert(used);
            }
        }
        Ok(Bill { packages, uses, roots, checksums: checksums(lock) })
    }

    /// How many packages there are.
    pub fn len(&self) -> usize {
        self.uses.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// As CycloneDX for a product of this name and version, made at this time.
    pub fn cyclone_dx(&self, name: &str, version: &str, time: u64) -> Value {
        let product = format!("pkg:generic/{name}@{version}");
        let reference = |id: &String| self.packages.get(id).map(Package::url);
        let components: BTreeMap<String, Value> = self
            .uses
            .keys()
            .filter_map(|id| self.packages.get(id))
            .map(|package| (package.url(), self.component(package)))
            .collect();
        let mut dependencies: BTreeMap<String, Vec<String>> = self
            .uses
            .iter()
            .filter_map(|(id, used)| Some((reference(id)?, used.iter().filter_map(reference).collect())))
            .collect();
        dependencies.insert(product.clone(), self.roots.iter().filter_map(reference).collect());
        json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {
                "timestamp": date(time),
                "component": {
                    "type": "application", "bom-ref": product, "name": name, "version": version,
                    "licenses": [{ "expression": "Apache-2.0" }],
                },
            },
            "components": components.into_values().collect::<Vec<_>>(),
            "dependencies": dependencies
                .into_iter()
                .map(|(reference, on)| json!({ "ref": reference, "dependsOn": on }))
                .collect::<Vec<_>>(),
        })
    }

    fn component(&self, package: &Package) -> Value {
        let mut component = json!({
            "type": "library",
            "bom-ref": package.url(),
            "purl": package.url(),
            "name": package.name,
            "version": package.version,
        });
        if let Some(license) = &package.license {
            // Once the usual way to say "or", and still seen.
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        if let Some(repository) = &package.repository {
            component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
        }
        if let Some(sum) = self.checksums.get(&(package.name.clone(), package.version.clone())) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        component
    }
}

impl Package {
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }

    fn url(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

/// The checksums in a `Cargo.lock`, by name and version. Cargo writes one key to a line, in this order.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut checksums = BTreeMap::new();
    let (mut name, mut version) = (String::new(), String::new());
    for line in lock.lines() {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let value = value.trim_matches('"').to_owned();
        match key {
            "name" => name = value,
            "version" => version = value,
            "checksum" => drop(checksums.insert((name.clone(), version.clone()), value)),
            _ => {}
        }
    }
    checksums
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"used\"\nversion = \"1.2.3\"\n\
                        source = \"registry\"\nchecksum = \"abcd\"\ndependencies = [\n \"deep\",\n]\n";

    fn bill() -> Bill {
        let package = |name: &str, version: &str, source: Option<&str>, kind: &str| {
            json!({
                "id": format!("{name}#{version}"), "name": name, "version": version, "source": source,
                "license": "MIT/Apache-2.0", "repository": null, "targets": [{ "kind": [kind] }],
            })
        };
        let on = |id: &str, kind: Option<&str>| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("daemon", "0.1.0", None, "bin"),
                package("bench", "0.1.0", None, "bin"),
                package("used", "1.2.3", Some("registry"), "lib"),
                package("deep", "2.0.0", Some("registry"), "lib"),
                package("derive", "1.0.0", Some("registry"), "proc-macro"),
                package("tester", "1.0.0", Some("registry"), "lib"),
            ],
            "resolve": { "nodes": [
                { "id": "daemon#0.1.0", "deps": [
                    on("used#1.2.3", None), on("derive#1.0.0", None), on("tester#1.0.0", Some("dev")),
                ]},
                { "id": "used#1.2.3", "deps": [on("deep#2.0.0", None)] },
                { "id": "deep#2.0.0", "deps": [] },
                { "id": "bench#0.1.0", "deps": [on("tester#1.0.0", None)] },
            ]},
        });
        Bill::read(&metadata.to_string(), LOCK, &["daemon".to_owned()]).unwrap()
    }

    #[test]
    fn what_is_compiled_in_is_listed_and_what_builds_or_tests_is_not() {
        let bill = bill();
        let document = bill.cyclone_dx("product", "0.1.0", 0);
        let names: Vec<_> =
            document["components"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        assert_eq!(names, ["daemon", "deep", "used"]);
        assert_eq!(bill.len(), 3);
        let used = &document["components"][2];
        assert_eq!(used["purl"], "pkg:cargo/used@1.2.3");
        assert_eq!(used["hashes"][0]["content"], "abcd");
        assert_eq!(used["licenses"][0]["expression"], "MIT OR Apache-2.0");
    }

    #[test]
    fn every_reference_is_to_something_listed() {
        let document = bill().cyclone_dx("product", "0.1.0", 0);
        let known: BTreeSet<&str> = document["components"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&document["metadata"]["component"]])
            .map(|one| one["bom-ref"].as_str().unwrap())
            .collect();
        let dependencies = document["dependencies"].as_array().unwrap();
        assert_eq!(dependencies.len(), known.len());
        for dependency in dependencies {
            assert!(known.contains(dependency["ref"].as_str().unwrap()), "{dependency}");
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(known.contains(on.as_str().unwrap()), "{dependency}");
            }
        }
    }

    #[test]
    fn a_package_that_is_not_ours_is_no_root() {
        let metadata = json!({ "packages": [], "resolve": { "nodes": [] } }).to_string();
        let error = Bill::read(&metadata, "", &["serde".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "serde is no package of ours");
    }
}
