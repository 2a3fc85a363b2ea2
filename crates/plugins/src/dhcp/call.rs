//! What plugin and daemon say to each other: a line of JSON each way.
//!
//! While the daemon works it sends empty lines, by which each sees that the other is still there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cni::error::code;
use cni::{AddResult, Environment, Error, Request, Verb, Version};
use serde::{Deserialize, Serialize};
use serde_json::value::Value;

/// How long the other side may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// How often the daemon shows that it is there.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What the plugin wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    /// As in `CNI_COMMAND`.
    pub(super) command: String,
    pub(super) container_id: String,
    pub(super) netns: String,
    pub(super) ifname: String,
    pub(super) args: String,
    /// The network configuration as it came.
    pub(super) config: String,
}

/// What the daemon answers: a result in the shape of the newest version, or an error.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Reply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Value>,
}

impl Call {
    /// What a request wants.
    pub(super) fn of(verb: Verb, request: &Request) -> Call {
        let Environment { container_id, netns, ifname, args, .. } = &request.environment;
        // The daemon may run in another directory.
        let absolute = std::path::absolute(netns).map(|path| path.display().to_string());
        Call {
            command: verb.as_str().to_owned(),
            container_id: container_id.clone(),
            netns: absolute.unwrap_or_else(|_| netns.clone()),
            ifname: ifname.clone(),
            args: args.clone(),
            config: String::from_utf8_lossy(request.config.bytes()).into_owned(),
        }
    }
}

/// Makes a call and waits for its answer.
pub(super) fn make(socket: &Path, call: &Call) -> Result<AddResult, Error> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| {
        Error::internal(format!(
            "error dialing DHCP daemon: {}",
            crate::files::go_error("dial unix", socket, &error)
        ))
        .details(format!("start it on this node: flannel-cni dhcp daemon -socketpath {shown}"))
    })?;
    let lost =
        |why: &dyn std::fmt::Display| Error::internal(format!("error calling DHCP daemon at {shown}: {why}"));
    stream.set_read_timeout(Some(SILENCE)).map_err(|error| lost(&error))?;
    stream.set_write_timeout(Some(SILENCE)).map_err(|error| lost(&error))?;
    let mut line = serde_json::to_string(call).map_err(|error| lost(&error))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(|error| lost(&error))?;
    let mut lines = BufReader::new(stream).lines();
    let line = loop {
        match lines.next() {
            None => return Err(lost(&"it has closed the connection without an answer")),
            Some(Err(error)) => return Err(lost(&format_args!("no answer within {SILENCE:?} ({error})"))),
            Some(Ok(line)) if line.is_empty() => {}
            Some(Ok(line)) => break line,
        }
    };
    if line.starts_with("HTTP/") {
        return Err(lost(&"it is the daemon of another project's dhcp plugin")
            .details("plugin and daemon have to be of one project: run flannel-cni dhcp daemon instead"));
    }
    let reply: Reply = serde_json::from_str(&line).map_err(|error| lost(&error))?;
    match (reply.error, reply.result) {
        (Some(error), _) => Err(Error::parse(error.to_string().as_bytes()).unwrap_or_else(|why| lost(&why))),
        (None, Some(result)) => AddResult::from_value(&result, Version::CURRENT),
        (None, None) => Ok(AddResult::empty(Version::CURRENT)),
    }
}

impl Reply {
    /// The answer to a call that came to this.
    pub(super) fn of(outcome: Result<AddResult, Error>) -> Reply {
        let value = |text: String| serde_json::from_str(&text).ok();
        match outcome {
            Ok(result) => Reply { result: value(result.to_json()), error: None },
            Err(error) => Reply { result: None, error: value(error.to_json()) },
        }
    }

    /// The answer to what is no call.
    pub(super) fn to_nonsense(line: &str) -> String {
        // The reference plugin shows the rest of the status line to its user.
        if line.starts_with("CONNECT ") {
            return "HTTP/1.0 400 this daemon serves the dhcp plugin of flannel-cni only\r\n\r\n".to_owned();
        }
        Reply::of(Err(Error::new(code::DECODING, "this is no call of the dhcp plugin"))).line()
    }

    /// As it is sent.
    pub(super) fn line(&self) -> String {
        let text = serde_json::to_string(self).expect("JSON values can be written as JSON");
        format!("{text}\n")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_daemon_that_is_not_ours_or_not_there_is_a_clear_error() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let text = || String::new();
        let call = Call {
            command: "DEL".into(),
            container_id: text(),
            netns: text(),
            ifname: text(),
            args: text(),
            config: text(),
        };
        let error = make(&socket, &call).unwrap_err();
        assert!(error.msg.starts_with("error dialing DHCP daemon: dial unix /"), "{error}");
        assert!(error.msg.ends_with(": no such file or directory"), "{error}");
        assert!(error.details.contains("flannel-cni dhcp daemon"));

        let listener = UnixListener::bind(&socket).unwrap();
        for (answer, expected) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "another project's"),
            ("", "closed the connection"),
            ("\n\nnonsense\n", "expected ident"),
            ("{\"error\":{\"code\":11,\"msg\":\"later\"}}\n", "later"),
        ] {
            let error = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut line = String::new();
                    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                make(&socket, &call).unwrap_err()
            });
            assert!(error.msg.contains(expected), "{error}");
        }
    }
}
