//! `host-gw`
