//! `vxlan`
/// Its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {}
