//! What etcd and the network say when a call fails, in words that name the remedy.

use std::error::Error;

use tonic::{Code, Status};

use crate::StoreError;

/// What to do after a call has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask another endpoint.
    Elsewhere,
    /// Log in again, then ask the same endpoint.
    LogIn,
    /// Nothing: etcd has answered.
    GiveUp,
}

pub(super) fn next_after(status: &Status) -> Next {
    let message = status.message();
    let stale_login = message.contains("invalid auth token")
        || message.contains("user name is empty")
        || message.contains("revision of auth store is old");
    if stale_login {
        return Next::LogIn;
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Internal | Code::Unknown => {
            Next::Elsewhere
        }
        _ => Next::GiveUp,
    }
}

/// The error for people.
pub(super) fn explain(attempted: &str, endpoint: &str, status: &Status) -> StoreError {
    let cause = causes(status);
    let remedy = remedy(&cause, endpoint.starts_with("https:"));
    let (attempted, endpoint) = (attempted.to_owned(), endpoint.to_owned());
    match next_after(status) {
        Next::Elsewhere => StoreError::Unreachable { attempted, endpoint, cause, remedy },
        Next::LogIn | Next::GiveUp => StoreError::Refused { attempted, endpoint, cause, remedy },
    }
}

/// The error of a call that has had no answer in time.
pub(super) fn too_late(attempted: &str, endpoint: &str, waited: std::time::Duration) -> StoreError {
    StoreError::Unreachable {
        attempted: attempted.to_owned(),
        endpoint: endpoint.to_owned(),
        cause: format!("no answer within {waited:?}"),
        remedy: Some("is etcd running there, and does a firewall drop the packets?"),
    }
}

/// The message of a status and of all that led to it, each said once.
fn causes(status: &Status) -> String {
    let mut text = status.message().trim_start_matches("etcdserver: ").to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let next = error.to_string();
        if text.is_empty() || text == "transport error" {
            text = next;
        } else if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    if text.is_empty() { status.code().description().to_owned() } else { text }
}

fn remedy(cause: &str, is_tls: bool) -> Option<&'static str> {
    let says = |text: &str| cause.contains(text);
    let is_cut_off = ["frame with invalid size", "Connection reset", "broken pipe", "connection closed"]
        .into_iter()
        .any(says);
    Some(match () {
        () if says("Connection refused") => "is etcd running and listening there?",
        () if says("UnknownIssuer") => {
            "its certificate is from an authority that is not trusted here: give that authority with --etcd-cafile"
        }
        () if says("NotValidForName") => {
            "its certificate is for other names: use one of those in the endpoint"
        }
        () if says("Expired") || says("NotValidYet") => "check its certificate's dates, and the clocks",
        () if says("CertificateRequired") || says("BadCertificate") || says("CertificateUnknown") => {
            "etcd wants a client certificate that it trusts: give --etcd-certfile and --etcd-keyfile"
        }
        () if says("InvalidContentType") || says("corrupt message") || says("tls handshake eof") => {
            "it does not speak TLS on this port: use http://"
        }
        // With TLS 1.3 a server that misses a certificate says so after the handshake, and hangs up.
        () if is_cut_off && is_tls => {
            "either it wants a client certificate that it trusts (give --etcd-certfile and --etcd-keyfile), or it \
             does not speak TLS on this port (use http://)"
        }
        () if is_cut_off => "if etcd speaks TLS on this port, use https://",
        () if says("no address for") => "check the name, /etc/hosts and /etc/resolv.conf",
        () if says("permission denied") => {
            "grant the user read and write access to everything below the prefix"
        }
        () if says("authentication failed") => "check --etcd-username and --etcd-password",
        () if says("user name is empty") => "etcd wants a user: give --etcd-username and --etcd-password",
        () if says("database space exceeded") => "etcd is full: compact, defragment, then disarm its alarm",
        () if says("no leader") => "most of the etcd members are down or cut off",
        () => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_next_step_and_remedy() {
        let cases = [
            (Status::unavailable("tcp connect error: Connection refused"), Next::Elsewhere, "listening"),
            (Status::unauthenticated("etcdserver: invalid auth token"), Next::LogIn, ""),
            (Status::invalid_argument("etcdserver: user name is empty"), Next::LogIn, "--etcd-username"),
            (Status::permission_denied("etcdserver: permission denied"), Next::GiveUp, "grant"),
            (Status::unavailable("etcdserver: no leader"), Next::Elsewhere, "members"),
        ];
        for (status, next, remedy) in cases {
            assert_eq!(next_after(&status), next, "{status:?}");
            let text = explain("list the leases", "http://a:2379", &status).to_string();
            assert!(text.starts_with("cannot list the leases: http://a:2379"), "{text}");
            assert!(text.contains(remedy), "{text}");
        }
    }
}
