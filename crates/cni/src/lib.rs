//! The CNI protocol.
#![forbid(unsafe_code)]
