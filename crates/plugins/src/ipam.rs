//! The plugin that manages the addresses of another one.

use cni::{AddResult, Error, Request, Verb};

use crate::delegate;

/// The plugin that the configuration names, if it names one.
#[derive(Debug, Clone)]
pub(crate) struct Ipam {
    name: Option<String>,
}

impl Ipam {
    /// What the configuration says.
    pub(crate) fn of(request: &Request) -> Result<Ipam, Error> {
        let unloadable = |error| Error::internal(format!("failed to load netconf: {error}"));
        let ipam = request.config.object().object("ipam").map_err(unloadable)?;
        let name = ipam.map(|ipam| ipam.string("type")).transpose().map_err(unloadable)?.flatten();
        Ok(Ipam { name: name.filter(|name| !name.is_empty()).map(str::to_owned) })
    }

    /// The same for an attachment to be taken away: what makes no sense counts as left out, since what
    /// ADD refused must not be impossible to delete.
    pub(crate) fn for_removal(request: &Request) -> Ipam {
        Ipam::of(request).unwrap_or(Ipam { name: None })
    }

    /// Whether there is one.
    pub(crate) fn is_given(&self) -> bool {
        self.name.is_some()
    }

    /// Refuses a configuration that names none.
    pub(crate) fn require(&self) -> Result<(), Error> {
        if self.is_given() {
            return Ok(());
        }
        Err(Error::internal("no plugin name provided").details("\"ipam\" has to say which plugin (\"type\")"))
    }

    /// Gets addresses. If there are none among what it gave, that is given back.
    pub(crate) fn add(&self, request: &Request) -> Result<AddResult, Error> {
        self.require()?;
        let given = self.call(Verb::Add, request)?.expect("ADD has a result");
        if given.ips.is_empty() {
            let _ = self.tell(Verb::Del, request);
            return Err(Error::internal("IPAM plugin returned missing IP config"));
        }
        Ok(given)
    }

    /// Passes another verb on, if there is somebody to pass it on to.
    pub(crate) fn tell(&self, verb: Verb, request: &Request) -> Result<(), Error> {
        self.call(verb, request).map(drop)
    }

    /// Before DEL takes the device away: gives back what can only be given back through it. Whoever calls
    /// this tells DEL again afterwards, so a failure is not one yet.
    pub(crate) fn let_go_through_device(&self, request: &Request) {
        if self.name.as_deref() == Some("dhcp") {
            let _ = self.tell(Verb::Del, request);
        }
    }

    fn call(&self, verb: Verb, request: &Request) -> Result<Option<AddResult>, Error> {
        let Some(name) = &self.name else { return Ok(None) };
        Ok(delegate::call(name, verb, &request.environment, request.config.clone())?)
    }
}
