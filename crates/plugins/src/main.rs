//! `flannel-cni`: all plugins in one program.
//!
//! It is the plugin whose name it was called by, through a link for example; called by its own name it
//! wants to be told which one.

#![forbid(unsafe_code)]

use std::env;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use plugins::delegate::{PLUGINS, by_name};

fn main() -> ExitCode {
    let mut words = env::args_os();
    let called_as = words.next().unwrap_or_default();
    let called_as = Path::new(&called_as).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let told = words.next().unwrap_or_default().to_string_lossy().into_owned();
    match by_name(&called_as).map(|plugin| (plugin, Some(told.clone()))).or_else(|| {
        let word = words.next().map(|word| word.to_string_lossy().into_owned());
        by_name(&told).map(|plugin| (plugin, word))
    }) {
        Some((plugin, Some(word))) if plugin.name() == "dhcp" && word == "daemon" => {
            plugins::dhcp::daemon::run(words.map(|word| word.to_string_lossy().into_owned()))
        }
        Some((plugin, _)) => cni::plugin::run(plugin),
        None if told == "--list" => list(),
        None => usage(if told.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }),
    }
}

/// The names of all plugins, a line each, for those who install them.
fn list() -> ExitCode {
    let names: String = PLUGINS.iter().map(|plugin| format!("{}\n", plugin.name())).collect();
    match io::stdout().lock().write_all(names.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn usage(code: ExitCode) -> ExitCode {
    let names: Vec<&str> = PLUGINS.iter().map(|plugin| plugin.name()).collect();
    let text = format!(
        "flannel-cni holds the CNI plugins {names}.\n\
         Link it under these names into the CNI directory (ln -s flannel-cni /opt/cni/bin/flannel), or name one: \
         flannel-cni flannel\n",
        names = names.join(", ")
    );
    // There is nobody to tell if standard error is closed.
    let _ = io::stderr().lock().write_all(text.as_bytes());
    code
}
