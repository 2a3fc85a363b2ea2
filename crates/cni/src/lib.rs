//! The CNI protocol, as a plugin speaks it.
//!
//! A runtime starts a plugin with its wishes in the environment ([`environment`]) and the network
//! configuration on standard input ([`config`]); the plugin answers with a result ([`result`]) or an
//! error object ([`error`]) on standard output. [`plugin`] is the skeleton around that conversation,
//! [`delegate`] the conversation of one plugin with another. [`runtime`] is the other side: it reads a
//! network ([`list`]), calls its plugins in order, and remembers what they answered ([`cache`]).
//!
//! Sources: the CNI specification 1.1.0, and the observable behaviour of the reference library where
//! the specification leaves room (exact texts, order of members, indentation).

#![forbid(unsafe_code)]

pub mod arguments;
pub mod cache;
pub mod config;
pub mod delegate;
pub mod environment;
pub mod error;
pub mod json;
pub mod list;
pub mod plugin;
pub mod result;
pub mod runtime;
pub mod version;

pub use arguments::Arguments;
pub use config::{Attachment, Config};
pub use environment::{Environment, Verb};
pub use error::Error;
pub use list::NetworkList;
pub use plugin::{Plugin, Request};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use runtime::{Runtime, Sandbox};
pub use version::Version;
