//! What an interface was like before it was tuned, in a file.
//!
//! Compatibility: name, members and layout of the file are those of the reference plugin.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cni::json::{self, Object};
use cni::{Error, Request};
use kernel::link_settings::LinkSettings;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

use crate::files::{self, go_error};

#[derive(Serialize)]
struct Content {
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue_length: Option<u32>,
}

/// Keeps what is going to be changed, and returns it.
pub(super) fn keep(
    directory: &Path,
    request: &Request,
    wanted: &LinkSettings,
    before: &LinkSettings,
) -> Result<LinkSettings, Error> {
    let kept = LinkSettings {
        mac: before.mac.filter(|_| wanted.mac.is_some()),
        mtu: before.mtu.filter(|_| wanted.mtu.is_some()),
        promiscuous: before.promiscuous.filter(|_| wanted.promiscuous.is_some()),
        all_multicast: before.all_multicast.filter(|_| wanted.all_multicast.is_some()),
        queue_length: before.queue_length.filter(|_| wanted.queue_length.is_some()),
    };
    let content = Content {
        mac: kept.mac.map(|mac| mac.to_string()),
        promisc: kept.promiscuous,
        mtu: kept.mtu,
        allmulti: kept.all_multicast,
        queue_length: kept.queue_length,
    };
    let mut text = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" "));
    content.serialize(&mut serializer).expect("a structure of texts and numbers can be written to memory");
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        Error::internal(format!(
            "failed to create backup directory: {}",
            go_error("mkdir", directory, &error)
        ))
    })?;
    let path = path(directory, request);
    files::replace(&path, &String::from_utf8_lossy(&text)).map_err(|error| {
        Error::internal(format!("failed to save file {}", go_error("open", &path, &error)))
    })?;
    Ok(kept)
}

/// What was kept; nothing where the file is missing or was cut short by a loss of power.
pub(super) fn kept(directory: &Path, request: &Request) -> Option<LinkSettings> {
    let value = json::parse(&fs::read(path(directory, request)).ok()?).ok()?;
    let object = Object::of(&value, "").ok()?;
    let number = |key| object.integer(key).ok().flatten().and_then(|number| u32::try_from(number).ok());
    Some(LinkSettings {
        mac: object.string("mac").ok().flatten().and_then(|mac| mac.parse().ok()),
        mtu: number("mtu").filter(|mtu| *mtu > 0),
        promiscuous: object.boolean("promisc").ok().flatten(),
        all_multicast: object.boolean("allmulti").ok().flatten(),
        queue_length: number("txQLen"),
    })
}

/// Removes what was kept, if anything was.
pub(super) fn forget(directory: &Path, request: &Request) {
    // A file that cannot be removed does no harm: the next ADD of this container writes another one.
    let _ = fs::remove_file(path(directory, request));
}

fn path(directory: &Path, request: &Request) -> PathBuf {
    let environment = &request.environment;
    directory.join(format!("{}_{}.json", environment.container_id, environment.ifname))
}
