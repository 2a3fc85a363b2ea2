//! Calling another plugin: finding its program, running it, reading its answer.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::environment::Environment;
use crate::error::Error;

/// Why a plugin that was called did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// It says so itself.
    Reported(Error),
    /// It could not be called, or did not say.
    Failed(Error),
}

/// How long a program that is just being written is waited for; installers copy it in place.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Finds the program of a plugin in `paths` (`CNI_PATH`): the first directory with a regular file of
/// that name.
pub fn find(plugin: &str, paths: &str) -> Result<PathBuf, Error> {
    if plugin.is_empty() {
        return Err(Error::internal("no plugin name provided"));
    }
    if plugin.contains('/') {
        return Err(Error::internal(format!("invalid plugin name: {plugin}")));
    }
    let directories: Vec<&str> = paths.split(':').filter(|path| !path.is_empty()).collect();
    if directories.is_empty() {
        return Err(Error::internal("no paths provided"));
    }
    directories
        .iter()
        .map(|directory| Path::new(directory).join(plugin))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::internal(format!("failed to find plugin {plugin:?} in path [{}]", directories.join(" ")))
        })
}

/// Runs a plugin with the variables of `environment` and `stdin`, and returns what it printed.
///
/// Its standard error goes to ours when it succeeded, and into the error when it failed without
/// printing an error object.
pub fn execute(program: &Path, environment: &Environment, stdin: &[u8]) -> Result<Vec<u8>, CallError> {
    let output = run(program, environment, stdin)
        .map_err(|error| Error::internal(format!("failed to run plugin {}: {error}", program.display())))
        .map_err(CallError::Failed)?;
    if output.status.success() {
        // Diagnostics of the delegate; nobody may be listening, and that is no reason to fail.
        let _ = io::stderr().lock().write_all(&output.stderr);
        return Ok(output.stdout);
    }
    Err(failure(&output.stdout, &output.stderr, &output.status.to_string()))
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn run(program: &Path, environment: &Environment, stdin: &[u8]) -> io::Result<Output> {
    let mut child = spawn(program, environment)?;
    let mut input = child.stdin.take().expect("standard input is piped");
    let mut errors = child.stderr.take().expect("standard error is piped");
    let mut answers = child.stdout.take().expect("standard output is piped");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        // A plugin may answer without reading its input, and may write more than a pipe holds.
        scope.spawn(move || {
            let _ = input.write_all(stdin);
        });
        scope.spawn(|| errors.read_to_end(&mut stderr));
        answers.read_to_end(&mut stdout)
    })?;
    Ok(Output { status: child.wait()?, stdout, stderr })
}

#[allow(clippy::disallowed_methods, reason = "this is the one place where a plugin starts another one")]
fn spawn(program: &Path, environment: &Environment) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in environment.variables() {
        if value.is_empty() {
            command.env_remove(name);
        } else {
            command.env(name, value);
        }
    }
    let give_up = Instant::now() + BUSY_PATIENCE;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// The error of a plugin that did not succeed.
fn failure(stdout: &[u8], stderr: &[u8], status: &str) -> CallError {
    if stdout.is_empty() {
        return CallError::Failed(Error::internal(match stderr {
            [] => format!("netplugin failed with no error message: {status}"),
            text => format!("netplugin failed: {:?}", String::from_utf8_lossy(text)),
        }));
    }
    match Error::parse(stdout) {
        Ok(error) => CallError::Reported(error),
        Err(why) => {
            let text = String::from_utf8_lossy(stdout);
            CallError::Failed(Error::internal(format!(
                "netplugin failed but error parsing its diagnostic message {text:?}: {why}"
            )))
        }
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        match error {
            CallError::Reported(error) | CallError::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_plugin_is_looked_for_by_name_in_every_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "bridge", "");
        let paths = format!("/nowhere:{}", directory.path().display());
        assert_eq!(find("bridge", &paths), Ok(path));
        let message = |plugin, paths| find(plugin, paths).unwrap_err().msg;
        assert_eq!(message("x", "/nowhere:/a"), "failed to find plugin \"x\" in path [/nowhere /a]");
        assert_eq!(message("", "/a"), "no plugin name provided");
        assert_eq!(message("../x", "/a"), "invalid plugin name: ../x");
        assert_eq!(message("x", ""), "no paths provided");
    }

    #[test]
    fn a_plugin_gets_its_variables_and_input_and_its_answer_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "echo", "printf '%s ' \"$CNI_COMMAND\" \"$CNI_IFNAME\"; cat");
        let environment =
            Environment { command: "ADD".into(), ifname: "eth0".into(), ..Environment::default() };
        let large = vec![b'x'; 300_000];
        let output = execute(&path, &environment, &large).unwrap();
        assert!(output.starts_with(b"ADD eth0 xxx"));
        assert_eq!(output.len(), large.len() + "ADD eth0 ".len());
    }

    #[test]
    fn the_error_object_of_a_plugin_is_passed_on_and_its_absence_explained() {
        let directory = tempfile::tempdir().unwrap();
        let run = |text: &str| {
            let path = script(directory.path(), "fails", text);
            Error::from(execute(&path, &Environment::default(), b"").unwrap_err())
        };
        let error = run(r#"echo '{"code":11,"msg":"later","details":"d"}'; exit 1"#);
        assert_eq!((error.code, error.msg.as_str(), error.details.as_str()), (11, "later", "d"));
        assert_eq!(run("echo oops >&2; exit 1").msg, r#"netplugin failed: "oops\n""#);
        assert!(run("exit 3").msg.starts_with("netplugin failed with no error message: "));
        assert!(run("echo what; exit 1").msg.contains("error parsing its diagnostic message"));
    }
}
