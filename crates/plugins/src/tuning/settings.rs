//! What the configuration says to `tuning`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cni::json::{DecodeError, Object};
use cni::{Arguments, Error, Request};
use fabric::Mac;
use kernel::link_settings::LinkSettings;

use super::sysctls;

/// Where the former properties of interfaces are kept unless the configuration says otherwise.
const DATA_DIR: &str = "/run/cni/tuning";

/// Checked settings.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Where the former properties of interfaces are kept.
    pub(super) directory: PathBuf,
    /// Names as written, and values. They are written in the order of their names.
    pub(super) sysctls: BTreeMap<String, String>,
    /// What the interface is to be like.
    pub(super) link: LinkSettings,
}

impl Settings {
    /// Reads and checks all of it.
    pub(super) fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let unloadable = |error: DecodeError| Error::internal(format!("failed to load netconf: {error}"));
        sysctls::refuse_duplicates(request.config.bytes())?;
        let mut sysctls = BTreeMap::new();
        // What the runtime says of this attachment counts more than what the network's configuration says.
        let args = config.object("args").and_then(|args| args.map(|args| args.object("cni")).transpose());
        let args = args.map_err(unloadable)?.flatten();
        let mut link = LinkSettings::default();
        for object in [Some(&config), args.as_ref()].into_iter().flatten() {
            sysctls.extend(sysctls::read(object).map_err(unloadable)?);
            link = overlay(link, read_link(object).map_err(unloadable)?);
        }
        link.mac = wanted_mac(&config, args.as_ref(), request)?;
        for name in sysctls.keys() {
            sysctls::path(name, &request.environment.ifname)?;
        }
        Ok(Settings { directory: directory(request), sysctls, link })
    }

    /// What is to be changed. Compatibility: `promisc: false` changes nothing.
    pub(super) fn to_write(&self) -> LinkSettings {
        LinkSettings { promiscuous: self.link.promiscuous.filter(|on| *on), ..self.link }
    }
}

/// Where the former properties of interfaces are kept, which is all that DEL needs to know.
pub(super) fn directory(request: &Request) -> PathBuf {
    let told = request.config.object().string("dataDir").ok().flatten();
    PathBuf::from(told.filter(|path| !path.is_empty()).unwrap_or(DATA_DIR))
}

fn overlay(below: LinkSettings, above: LinkSettings) -> LinkSettings {
    LinkSettings {
        mac: None,
        mtu: above.mtu.or(below.mtu),
        promiscuous: above.promiscuous.or(below.promiscuous),
        all_multicast: above.all_multicast.or(below.all_multicast),
        queue_length: above.queue_length.or(below.queue_length),
    }
}

fn read_link(object: &Object<'_>) -> Result<LinkSettings, DecodeError> {
    let number = |key| match object.integer(key)? {
        None => Ok(None),
        // The kernel keeps these as signed numbers.
        Some(number) if i32::try_from(number).is_ok_and(|number| number >= 0) => {
            Ok(u32::try_from(number).ok())
        }
        Some(_) => Err(object.error(key, "a number from 0 to 2147483647")),
    };
    Ok(LinkSettings {
        mac: None,
        mtu: number("mtu")?.filter(|mtu| *mtu > 0),
        promiscuous: object.boolean("promisc")?,
        all_multicast: object.boolean("allmulti")?,
        queue_length: number("txQLen")?,
    })
}

/// The last of these that says anything: the configuration, `CNI_ARGS`, the runtime, `args`.
fn wanted_mac(
    config: &Object<'_>,
    args: Option<&Object<'_>>,
    request: &Request,
) -> Result<Option<Mac>, Error> {
    let arguments = Arguments::parse(&request.environment.args, &["MAC"])?;
    let runtime = config.object("runtimeConfig")?;
    let wishes = [
        args.map(|args| args.string("mac")).transpose()?.flatten(),
        runtime.map(|runtime| runtime.string("mac")).transpose()?.flatten(),
        arguments.get("MAC"),
        config.string("mac")?,
    ];
    let Some(wish) = wishes.into_iter().flatten().find(|wish| !wish.is_empty()) else { return Ok(None) };
    wish.parse().map(Some).map_err(|_| {
        Error::internal(format!("invalid args {wish} for MAC addr: address {wish}: invalid MAC address"))
    })
}
