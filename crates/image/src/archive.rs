//! Images as archives, by the OCI image specification 1.1 (image layout, index, manifest, config) and by
//! what `docker save` writes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::{Architecture, Files};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image: the same for each platform, but for the programs.
#[derive(Debug, Clone)]
pub struct Image {
    /// With registry and tag, as a manifest asks for it: `example.org/a/b:v1`.
    pub name: String,
    /// What its containers run, with whatever arguments they are given.
    pub entrypoint: Vec<String>,
    /// What its containers run, or the arguments, unless others are given.
    pub command: Vec<String>,
    /// `org.opencontainers.image.…` and others.
    pub labels: BTreeMap<String, String>,
    /// The time of everything in it, in seconds since 1970.
    pub time: u64,
    /// One or more, of different architectures.
    pub platforms: Vec<Platform>,
    /// How files are packed.
    pub packing: Packing,
}

/// What an archive should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Small, to be carried far.
    Small,
    /// Made at once, to be loaded at once.
    Quick,
}

/// An image's files for one processor.
#[derive(Debug, Clone)]
pub struct Platform {
    /// The processor.
    pub architecture: Architecture,
    /// The files.
    pub files: Files,
}

/// Content, by its digest.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

/// What became of a platform.
struct Packed {
    architecture: Architecture,
    manifest: Blob,
    config: Blob,
    layer: Blob,
}

impl Image {
    /// Writes the archive, whole or not at all. Returns its size in bytes.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let archive = self.archive().with_context(|| format!("packing the image {}", self.name))?;
        let part = path.with_extension("part");
        fs::write(&part, &archive).with_context(|| format!("writing {}", part.display()))?;
        fs::rename(&part, path).with_context(|| format!("writing {}", path.display()))?;
        Ok(archive.len().try_into()?)
    }

    fn archive(&self) -> Result<Vec<u8>> {
        ensure!(!self.platforms.is_empty(), "it is for no platform");
        let packed = self.platforms.iter().map(|platform| self.pack(platform)).collect::<Result<Vec<_>>>()?;
        let manifests: Vec<Value> = packed.iter().map(Packed::describe).collect();
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut top = match &manifests[..] {
            [one] => one.clone(),
            several => {
                let index = Blob::json(&json!({
                    "schemaVersion": 2,
                    "mediaType": INDEX,
                    "manifests": several,
                    "annotations": self.labels,
                }));
                let top = index.describe(INDEX);
                files.insert(index.path(), index.content);
                top
            }
        };
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        // The second name is for containerd, which takes the first for the whole.
        top["annotations"] =
            json!({ "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": self.name });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [top] });
        files.insert("index.json".to_owned(), index.to_string().into_bytes());
        files.insert(
            "oci-layout".to_owned(),
            json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes(),
        );
        // The form of docker has no place for more than one.
        if let [one] = &packed[..] {
            let manifest = json!([{ "Config": one.config.path(), "RepoTags": [self.name], "Layers": [one.layer.path()] }]);
            files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
        }
        for Packed { manifest, config, layer, .. } in packed {
            files.extend([manifest, config, layer].map(|blob| (blob.path(), blob.content)));
        }
        self.tar(files)
    }

    fn pack(&self, platform: &Platform) -> Result<Packed> {
        let tar = platform.files.tar(self.time)?;
        let contained = digest(&tar);
        let (layer, media_type) = match self.packing {
            Packing::Small => {
                let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
                gzip.write_all(&tar)?;
                (Blob::new(gzip.finish()?), format!("{LAYER}+gzip"))
            }
            Packing::Quick => (Blob { digest: contained.clone(), content: tar }, LAYER.to_owned()),
        };
        let created = date(self.time);
        let config = Blob::json(&json!({
            "architecture": platform.architecture.name(),
            "os": "linux",
            "created": created,
            "config": { "Entrypoint": self.entrypoint, "Cmd": self.command, "Env": ["PATH=/opt/bin:/bin"], "Labels": self.labels },
            "rootfs": { "type": "layers", "diff_ids": [contained] },
            "history": [{ "created": created }],
        }));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.describe(CONFIG),
            "layers": [layer.describe(&media_type)],
            "annotations": self.labels,
        }));
        Ok(Packed { architecture: platform.architecture, manifest, config, layer })
    }

    fn tar(&self, files: BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = Header::new_gnu();
            header.set_size(content.len().try_into()?);
            header.set_mode(0o644);
            header.set_mtime(self.time);
            tar.append_data(&mut header, path, content.as_slice())?;
        }
        Ok(tar.into_inner()?)
    }
}

impl Packed {
    fn describe(&self) -> Value {
        let mut described = self.manifest.describe(MANIFEST);
        described["platform"] = json!({ "architecture": self.architecture.name(), "os": "linux" });
        described
    }
}

impl Blob {
    fn new(content: Vec<u8>) -> Blob {
        Blob { digest: digest(&content), content }
    }

    fn json(value: &Value) -> Blob {
        Blob::new(value.to_string().into_bytes())
    }

    fn describe(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.content.len() })
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

/// Seconds since 1970 as RFC 3339 has them, by Howard Hinnant's `civil_from_days`.
pub(crate) fn date(time: u64) -> String {
    let (days, second) = (time / 86_400 + 719_468, time % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years that begin in March have the leap day at their end.
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn image(architectures: &[Architecture]) -> Image {
        let platform = |architecture: &Architecture| {
            let mut files = Files::default();
            files.program("opt/bin/run", architecture.name().into());
            Platform { architecture: *architecture, files }
        };
        Image {
            name: "example.org:5000/a/b:v1".to_owned(),
            entrypoint: vec!["/opt/bin/run".to_owned()],
            command: Vec::new(),
            labels: BTreeMap::from([("org.opencontainers.image.title".to_owned(), "b".to_owned())]),
            time: 1_000_000_000,
            platforms: architectures.iter().map(platform).collect(),
            packing: Packing::Small,
        }
    }

    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    fn parse(content: &[u8]) -> Value {
        serde_json::from_slice(content).unwrap()
    }

    /// The blob that a descriptor names, after a look at whether it is that.
    fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
        let name = descriptor["digest"].as_str().unwrap();
        let content = &files[&format!("blobs/{}", name.replace(':', "/"))];
        assert_eq!(
            (digest(content).as_str(), content.len() as u64),
            (name, descriptor["size"].as_u64().unwrap())
        );
        content.clone()
    }

    #[test]
    fn every_reference_leads_to_what_it_says_down_to_the_files() {
        let files = unpack(&image(&[Architecture::Amd64]).archive().unwrap());
        let top = parse(&files["index.json"])["manifests"][0].clone();
        assert_eq!(top["annotations"]["io.containerd.image.name"], "example.org:5000/a/b:v1");
        assert_eq!(top["annotations"]["org.opencontainers.image.ref.name"], "v1");
        let manifest = parse(&follow(&files, &top));
        let config = parse(&follow(&files, &manifest["config"]));
        assert_eq!(
            (&config["architecture"], &config["created"]),
            (&json!("amd64"), &json!("2001-09-09T01:46:40Z"))
        );
        let mut layer = Vec::new();
        GzDecoder::new(&follow(&files, &manifest["layers"][0])[..]).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer), "of the layer as it is unpacked");
        assert_eq!(unpack(&layer)["opt/bin/run"], b"amd64");
        let docker = parse(&files["manifest.json"])[0].clone();
        for path in [&docker["Config"], &docker["Layers"][0]] {
            assert!(files.contains_key(path.as_str().unwrap()), "{path}");
        }
    }

    #[test]
    fn a_quick_archive_holds_the_same_files() {
        let quick = Image { packing: Packing::Quick, ..image(&[Architecture::Arm64]) };
        let files = unpack(&quick.archive().unwrap());
        let manifest = parse(&follow(&files, &parse(&files["index.json"])["manifests"][0]));
        assert_eq!(manifest["layers"][0]["mediaType"], LAYER);
        assert_eq!(unpack(&follow(&files, &manifest["layers"][0]))["opt/bin/run"], b"arm64");
    }

    #[test]
    fn several_platforms_are_an_index_in_the_index() {
        let files = unpack(&image(&[Architecture::Amd64, Architecture::Arm64]).archive().unwrap());
        let top = parse(&files["index.json"])["manifests"][0].clone();
        let manifests = parse(&follow(&files, &top))["manifests"].clone();
        for (number, name) in ["amd64", "arm64"].into_iter().enumerate() {
            assert_eq!(manifests[number]["platform"]["architecture"], name);
            let manifest = parse(&follow(&files, &manifests[number]));
            assert_eq!(parse(&follow(&files, &manifest["config"]))["architecture"], name);
        }
        assert!(!files.contains_key("manifest.json"), "docker would take one for all");
    }

    #[test]
    fn the_same_again_is_the_same_bytes() {
        let image = image(&[Architecture::Amd64]);
        assert_eq!(image.archive().unwrap(), image.archive().unwrap());
    }

    #[test]
    fn an_image_for_nothing_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = image(&[]).write(&dir.path().join("x.tar")).unwrap_err();
        assert_eq!(format!("{error:#}"), "packing the image example.org:5000/a/b:v1: it is for no platform");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn dates_are_those_of_date_1() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(time), text);
        }
    }
}
