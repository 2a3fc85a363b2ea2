//! What the API server and the network say when a call fails, in words that name the remedy.

use std::error::Error;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use super::protobuf;
use crate::StoreError;

/// A server may ask for patience; more than this is not granted.
const LONGEST_PATIENCE: Duration = Duration::from_secs(60);

/// A call that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// What the server answered, if it did.
    pub(super) status: Option<StatusCode>,
    /// How long the server wants to be left alone.
    pub(super) after: Option<Duration>,
}

impl Failure {
    /// Whether the server would have answered if it were less busy.
    pub(super) fn is_busy(&self) -> bool {
        self.status == Some(StatusCode::TOO_MANY_REQUESTS)
            || (self.status == Some(StatusCode::SERVICE_UNAVAILABLE) && self.after.is_some())
    }

    pub(super) fn is(&self, status: StatusCode) -> bool {
        self.status == Some(status)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        failure.error
    }
}

/// No answer in time.
pub(super) fn too_late(attempted: &str, server: &str, waited: Duration) -> Failure {
    unreachable(
        attempted,
        server,
        format!("no answer within {waited:?}"),
        Some("is the API server running there, and does a firewall drop the packets?"),
    )
}

/// The connection could not be made, or has broken.
pub(super) fn lost(attempted: &str, server: &str, cause: &str) -> Failure {
    unreachable(attempted, server, cause.to_owned(), remedy_for_network(cause))
}

/// Nobody was asked, since what we were given does not do.
pub(super) fn misconfigured(attempted: &str, server: &str, why: String) -> Failure {
    let at = if server.is_empty() { String::new() } else { format!("{server}: ") };
    let error = StoreError::Options(format!("cannot {attempted}: {at}{why}"));
    Failure { error, status: None, after: None }
}

/// The server has answered with an error.
pub(super) fn refused(
    (attempted, right): (&str, &'static str),
    server: &str,
    (status, after): (StatusCode, Option<Duration>),
    body: &[u8],
) -> Failure {
    let cause = format!("{}: {}", status.as_u16(), message(status, body));
    let remedy = match status {
        StatusCode::UNAUTHORIZED => Some(
            "our token or certificate has expired or is not from this cluster: in a pod it is renewed by the \
             kubelet, elsewhere renew the kubeconfig",
        ),
        StatusCode::FORBIDDEN => Some(right),
        StatusCode::TOO_MANY_REQUESTS => Some("it is too busy; it is asked again by itself"),
        _ => None,
    };
    let error =
        StoreError::Refused { attempted: attempted.to_owned(), endpoint: server.to_owned(), cause, remedy };
    Failure { error, status: Some(status), after: after.map(|after| after.min(LONGEST_PATIENCE)) }
}

/// What was answered makes no sense.
pub(super) fn nonsense(attempted: &str, server: &str, what: &str) -> Failure {
    unreachable(
        attempted,
        server,
        format!("its answer is not what a Kubernetes API answers: {what}"),
        Some("is it an API server at all?"),
    )
}

fn unreachable(attempted: &str, server: &str, cause: String, remedy: Option<&'static str>) -> Failure {
    let error = StoreError::Unreachable {
        attempted: attempted.to_owned(),
        endpoint: server.to_owned(),
        cause,
        remedy,
    };
    Failure { error, status: None, after: None }
}

/// The words in which the server says why.
fn message(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let said = match serde_json::from_slice::<Status>(body) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ => match protobuf::refusal(body) {
            Some(said) => said,
            None => String::from_utf8_lossy(body).trim().to_owned(),
        },
    };
    let mut short: String = said.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < said.len() {
        short.push('…');
    }
    if short.is_empty() { status.canonical_reason().unwrap_or("no reason given").to_owned() } else { short }
}

/// An error and all that led to it, each said once.
pub(super) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

fn remedy_for_network(cause: &str) -> Option<&'static str> {
    let says = |text: &str| cause.contains(text);
    Some(match () {
        () if says("Connection refused") => "is the API server running and listening there?",
        () if says("UnknownIssuer") => {
            "its certificate is from an authority that is not trusted here: name that authority in the kubeconfig \
             (certificate-authority)"
        }
        () if says("NotValidForName") => {
            "its certificate is for other names: use one of those as the server, or set tls-server-name in the \
             kubeconfig"
        }
        () if says("Expired") || says("NotValidYet") => "check its certificate's dates, and the clocks",
        () if says("InvalidContentType") || says("corrupt message") => {
            "it does not speak TLS on this port: use http://"
        }
        () if says("no address for") => "check the name, /etc/hosts and /etc/resolv.conf",
        () if says("Network is unreachable") => "this node has no route to it",
        () => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        let asked = ("list the nodes", "grant it");
        refused(asked, "https://a:6443", (status, None), body.as_bytes()).error.to_string()
    }

    #[test]
    fn a_refusal_says_the_servers_words_and_the_missing_right() {
        let body = r#"{"kind":"Status","message":"nodes is forbidden: User \"u\" cannot list","code":403}"#;
        assert_eq!(
            refusal(403, body),
            "cannot list the nodes: https://a:6443 refuses: 403: nodes is forbidden: User \"u\" cannot list; grant it"
        );
        assert!(refusal(401, "{}").contains("has expired"));
        assert!(refusal(502, "<html>\nbad gateway").contains("502: <html> bad gateway"));
        assert!(refusal(500, "").contains("500: Internal Server Error"));
        assert!(refusal(500, &"ä".repeat(1000)).len() < 800);
    }

    #[test]
    fn patience_has_an_end() {
        let status = (StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(100_000)));
        let failure = refused(("a", "b"), "c", status, b"");
        assert!(failure.is_busy());
        assert_eq!(failure.after, Some(LONGEST_PATIENCE));
    }

    #[test]
    fn causes_have_their_remedy() {
        for (cause, remedy) in [
            ("192.0.2.1:6443: Connection refused (os error 111)", "listening there"),
            ("invalid peer certificate: UnknownIssuer", "certificate-authority"),
            ("something new", "something new"),
        ] {
            let text = lost("list the nodes", "https://a", cause).error.to_string();
            assert!(text.starts_with("cannot list the nodes: https://a does not answer: "), "{text}");
            assert!(text.ends_with(remedy) || text.contains(remedy), "{text}");
        }
    }
}
