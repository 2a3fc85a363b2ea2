//! Says what is in the file of a run, or what differs between two.
//!
//! ```text
//! bench-report RUN.json [DIRECTORY]      tables on standard output, charts into the directory
//! bench-report BEFORE.json AFTER.json    what differs beyond the noise; exit code 1 if anything got worse
//! ```
//!
//! Exit code 2 where neither can be done.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use flannel_rs_benches::chart::chart;
use flannel_rs_benches::run::{Run, Verdict};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "bench-report: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    match &arguments[..] {
        [run] => show(&existing(run)?, None).map(|()| ExitCode::SUCCESS),
        [before, after] if after.extension().is_some_and(|it| it == "json") => {
            compare(&existing(before)?, &existing(after)?)
        }
        [run, directory] => show(&existing(run)?, Some(directory)).map(|()| ExitCode::SUCCESS),
        _ => bail!("want RUN.json [DIRECTORY for charts], or BEFORE.json AFTER.json"),
    }
}

fn existing(path: &Path) -> Result<Run> {
    if !path.is_file() {
        bail!("{} is no file; `make bench` writes one", path.display());
    }
    Run::open(path)
}

fn show(run: &Run, charts: Option<&PathBuf>) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", run.machine)?;
    for story in run.stories() {
        writeln!(out, "\n### {story}\n\n{}", run.table(story))?;
        if let Some(directory) = charts {
            let words = story.to_lowercase();
            let words: Vec<&str> =
                words.split(|c: char| !c.is_alphanumeric()).filter(|it| !it.is_empty()).collect();
            fs::create_dir_all(directory)?;
            let path = directory.join(format!("{}.svg", words.join("-")));
            fs::write(&path, chart(story, &run.story(story)))
                .with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

fn compare(before: &Run, after: &Run) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    if before.machine != after.machine {
        writeln!(
            out,
            "Not the same machine, so trust nothing:\n  {}\n  {}\n",
            before.machine, after.machine
        )?;
    }
    let compared = before.compare(after);
    let mut regressed = 0;
    for (was, is, verdict) in &compared {
        let word = match verdict {
            Verdict::Alike => continue,
            Verdict::Improved => "better",
            Verdict::Regressed => "WORSE",
        };
        regressed += usize::from(*verdict == Verdict::Regressed);
        let change = (is.median() / was.median() - 1.0) * 100.0;
        let (story, name, variant) = (&is.story, &is.name, &is.variant);
        writeln!(
            out,
            "{word:<6} {story}: {name}, {variant}: {} → {} ({change:+.0} %)",
            was.shown(),
            is.shown()
        )?;
    }
    let alike = compared.iter().filter(|(.., verdict)| *verdict == Verdict::Alike).count();
    writeln!(
        out,
        "{} figures compared, {alike} alike within their noise, {regressed} worse",
        compared.len()
    )?;
    Ok(if regressed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
