//! What the configuration says to `bridge`.

use std::collections::BTreeSet;

use cni::json::{DecodeError, Object};
use cni::{Arguments, Dns, Error, Request};
use fabric::{LinkName, Mac};

use crate::ipam::Ipam;
use crate::masquerade::Backend;

/// The bridge's name unless the configuration gives one.
const BRIDGE: &str = "cni0";

/// Checked settings.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) bridge: LinkName,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) ip_masq: bool,
    pub(super) ip_masq_backend: Backend,
    /// None for the kernel's default.
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    /// The VLAN of untagged frames, none if frames are not sorted by VLAN.
    pub(super) vlan: Option<u16>,
    /// VLANs whose frames pass with their tag; none where no list is given.
    pub(super) trunk: Option<BTreeSet<u16>>,
    pub(super) preserve_default_vlan: bool,
    pub(super) mac_spoof_check: bool,
    pub(super) enable_dad: bool,
    pub(super) disable_container_interface: bool,
    pub(super) port_isolation: bool,
    pub(super) mac: Option<Mac>,
    /// None is given for an attachment without addresses.
    pub(super) ipam: Ipam,
    pub(super) dns: Option<Dns>,
}

/// What taking an attachment away needs to know.
///
/// Members that make no sense count as asking for more to be taken away: what ADD refused must not be
/// impossible to delete.
#[derive(Debug, Clone)]
pub(super) struct Removal {
    pub(super) masquerade: bool,
    pub(super) mac_spoof_check: bool,
    pub(super) ipam: Ipam,
}

impl Removal {
    pub(super) fn of(request: &Request) -> Removal {
        let config = request.config.object();
        let flag = |key| config.boolean(key).map_or(true, Option::unwrap_or_default);
        let ipam = Ipam::for_removal(request);
        Removal { masquerade: ipam.is_given() && flag("ipMasq"), mac_spoof_check: flag("macspoofchk"), ipam }
    }
}

impl Settings {
    /// Reads all members, also those that only some verbs look at.
    pub(super) fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let unloadable = |error: DecodeError| Error::internal(format!("failed to load netconf: {error}"));
        let flag = |key| config.boolean(key).map(Option::unwrap_or_default).map_err(unloadable);
        let dns = config.object("dns").map_err(unloadable)?;
        let is_default_gateway = flag("isDefaultGateway")?;
        Ok(Settings {
            bridge: bridge_name(&config)?,
            is_gateway: flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: flag("forceAddress")?,
            ip_masq: flag("ipMasq")?,
            ip_masq_backend: Backend::of(&config)?,
            mtu: mtu(&config).map_err(unloadable)?,
            hairpin: flag("hairpinMode")?,
            promiscuous: flag("promiscMode")?,
            vlan: vlan(&config)?,
            trunk: trunk(&config)?,
            preserve_default_vlan: flag("preserveDefaultVlan")?,
            mac_spoof_check: flag("macspoofchk")?,
            enable_dad: flag("enabledad")?,
            disable_container_interface: flag("disableContainerInterface")?,
            port_isolation: flag("portIsolation")?,
            mac: mac(&config, request)?,
            ipam: Ipam::of(request)?,
            dns: dns.map(|dns| Dns::of_network(&dns)).transpose().map_err(unloadable)?.flatten(),
        })
    }

    /// Whether the attachment gets addresses.
    pub(super) fn has_ipam(&self) -> bool {
        self.ipam.is_given()
    }

    /// Whether the bridge sorts frames by VLAN.
    pub(super) fn filters_vlans(&self) -> bool {
        self.vlan.is_some() || self.trunk.is_some()
    }

    /// Whether the attachment is in VLANs.
    pub(super) fn has_vlans(&self) -> bool {
        self.vlan.is_some() || self.trunk.as_ref().is_some_and(|ids| !ids.is_empty())
    }

    /// Refuses what cannot be asked for together.
    pub(super) fn check_for_add(&self) -> Result<(), Error> {
        if self.has_ipam() && self.disable_container_interface {
            return Err(Error::internal("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        if self.hairpin && self.promiscuous {
            return Err(Error::internal("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        Ok(())
    }
}

fn bridge_name(config: &Object<'_>) -> Result<LinkName, Error> {
    let name = config
        .string("bridge")
        .map_err(|error| Error::internal(format!("failed to load netconf: {error}")))?;
    let name = name.unwrap_or(BRIDGE);
    name.parse().map_err(|error| Error::internal(format!("failed to create bridge {name:?}: {error}")))
}

fn mtu(config: &Object<'_>) -> Result<Option<u32>, DecodeError> {
    match config.integer("mtu")? {
        None | Some(..=0) => Ok(None),
        Some(mtu) => u32::try_from(mtu).map(Some).map_err(|_| config.error("mtu", "at most 4294967295")),
    }
}

fn vlan(config: &Object<'_>) -> Result<Option<u16>, Error> {
    match config.integer("vlan")?.unwrap_or_default() {
        0 => Ok(None),
        id @ 1..=4094 => Ok(Some(id as u16)),
        id => Err(Error::internal(format!("invalid VLAN ID {id} (must be between 0 and 4094)"))),
    }
}

fn trunk(config: &Object<'_>) -> Result<Option<BTreeSet<u16>>, Error> {
    let Some(entries) = config.objects("vlanTrunk")? else { return Ok(None) };
    let mut ids = BTreeSet::new();
    for entry in entries {
        let id = |key: &str| -> Result<Option<u16>, Error> {
            match entry.integer(key)? {
                None => Ok(None),
                Some(id @ 1..=4094) => Ok(Some(id as u16)),
                Some(_) => Err(Error::internal(format!("incorrect trunk {key} parameter"))),
            }
        };
        let is_given = |key| entry.get(key).is_some();
        let together = "minID and maxID should be configured simultaneously";
        match (is_given("minID"), is_given("maxID")) {
            (false, false) => {}
            (false, true) => return Err(Error::internal(format!("{together}, minID is missing"))),
            (true, false) => return Err(Error::internal(format!("{together}, maxID is missing"))),
            (true, true) => {
                let (min, max) = (id("minID")?.unwrap_or_default(), id("maxID")?.unwrap_or_default());
                if max < min {
                    return Err(Error::internal("minID is greater than maxID in trunk parameter"));
                }
                ids.extend(min..=max);
            }
        }
        ids.extend(id("id")?);
    }
    Ok(Some(ids))
}

/// The runtime's wish counts more than the configuration's, and that more than the one of `CNI_ARGS`.
fn mac(config: &Object<'_>, request: &Request) -> Result<Option<Mac>, Error> {
    let arguments = Arguments::parse(&request.environment.args, &["MAC"])?;
    let args = config.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
    let runtime = config.object("runtimeConfig")?;
    let wishes = [
        runtime.map(|runtime| runtime.string("mac")).transpose()?.flatten(),
        args.map(|args| args.string("mac")).transpose()?.flatten(),
        arguments.get("MAC"),
    ];
    let Some(wish) = wishes.into_iter().flatten().find(|wish| !wish.is_empty()) else { return Ok(None) };
    wish.parse().map(Some).map_err(|_| Error::internal(format!("address {wish}: invalid MAC address")))
}
