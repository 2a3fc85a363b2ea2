//! The file that remembers what the delegate was called with.
//!
//! Compatibility: the original keeps `<dataDir>/<container ID>`, so that a second network or interface
//! of the same container overwrites it and is lost on DEL. The first attachment of a container uses that
//! file here as well, so that either program can take away what the other one made; any further one
//! has a file of its own, whose name no container ID can have.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cni::{Attachment, Config, Error, Request};

use crate::files::{self, go_error};

/// Between container ID, network and interface; none of the first two can contain it.
const SEPARATOR: char = '@';

/// The places where the state of one attachment can be.
#[derive(Debug, Clone)]
pub(super) struct States {
    data_dir: PathBuf,
    container_id: String,
    ifname: String,
    network: String,
}

impl States {
    /// The places for the attachment of a request.
    pub(super) fn new(data_dir: &Path, request: &Request) -> States {
        States {
            data_dir: data_dir.to_owned(),
            container_id: request.environment.container_id.clone(),
            ifname: request.environment.ifname.clone(),
            network: request.config.name().to_owned(),
        }
    }

    /// The file of the container.
    fn shared(&self) -> PathBuf {
        self.data_dir.join(&self.container_id)
    }

    /// The file of this attachment alone.
    fn own(&self) -> PathBuf {
        let (id, network, ifname) = (&self.container_id, &self.network, &self.ifname);
        self.data_dir.join(format!("{id}{SEPARATOR}{network}{SEPARATOR}{ifname}"))
    }

    /// Writes the state, complete or not at all.
    ///
    /// The original waits for the disk; here nobody does: being killed cannot hurt a file that is complete
    /// before it has its name, and a loss of power that takes the file takes the pods as well, after
    /// which DEL finds its way without it. The wait would be most of what an ADD takes, and eight at once
    /// would wait for each other.
    pub(super) fn save(&self, state: &str) -> Result<(), Error> {
        let make = DirBuilder::new().recursive(true).mode(0o700).create(&self.data_dir);
        make.map_err(|error| Error::internal(go_error("mkdir", &self.data_dir, &error)))?;
        // A readable file of the container is that of another attachment: a runtime does not repeat an
        // ADD without a DEL, which takes it away.
        let is_free =
            |path: &Path| read(path).map(|text| text.is_none_or(|text| network_of(&text).is_none()));
        let own = self.own();
        let path = if !own.exists() && is_free(&self.shared())? { self.shared() } else { own };
        files::replace(&path, state).map_err(|error| Error::internal(go_error("open", &path, &error)))
    }

    /// The state, if there is any of this network.
    pub(super) fn load(&self) -> Result<Option<String>, Error> {
        if let Some(own) = read(&self.own())? {
            return Ok(Some(own));
        }
        let shared = read(&self.shared())?;
        Ok(shared.filter(|text| network_of(text).is_none_or(|network| network == self.network)))
    }

    /// Takes the state of this attachment away.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let own = self.own();
        let path = if own.exists() {
            own
        } else {
            let shared = self.shared();
            let foreign =
                read(&shared)?.and_then(|text| network_of(&text)).is_some_and(|name| name != self.network);
            if foreign {
                return Ok(());
            }
            shared
        };
        let _ = fs::remove_file(files::unfinished(&path));
        remove(&path)
    }

    /// Takes away the state of all attachments of this network that are not listed.
    pub(super) fn keep_only(&self, valid: &[Attachment]) -> Result<(), Error> {
        let entries = match fs::read_dir(&self.data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| Error::internal(go_error("open", &self.data_dir, &error)))?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let mut parts = name.splitn(3, SEPARATOR);
            let (id, _, ifname) = (parts.next(), parts.next(), parts.next());
            let is_valid = valid.iter().any(|attachment| {
                Some(attachment.container_id.as_str()) == id
                    && ifname.is_none_or(|ifname| attachment.ifname == ifname)
            });
            // Another network's attachments are not in the list, but as good.
            let is_ours = || read(&entry.path()).ok().flatten().and_then(|text| network_of(&text));
            if !is_valid && is_ours().is_some_and(|network| network == self.network) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The content of a file, if there is one.
fn read(path: &Path) -> Result<Option<String>, Error> {
    use io::ErrorKind::{InvalidFilename, IsADirectory, NotFound};
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        // A directory stands where a file should, or the network's name is too long for one; so there is
        // no file.
        Err(error) if matches!(error.kind(), NotFound | IsADirectory | InvalidFilename) => Ok(None),
        Err(error) => Err(Error::internal(go_error("open", path, &error))),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::internal(go_error("remove", path, &error)))
        }
        _ => Ok(()),
    }
}

/// The network that a state belongs to; none if the state was cut short.
fn network_of(state: &str) -> Option<String> {
    Config::parse(state.as_bytes().to_vec()).ok().map(|config| config.name().to_owned())
}
