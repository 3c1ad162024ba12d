//! `validate`: the rules of `mesh-config` on files, without a cluster.
//!
//! Every problem of every object of every file is reported, one line each, on stdout; then a line per file on stderr.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use mesh_config::{ConfigError, parse};
use serde_json::json;

use crate::output::{OutputArgs, Paint, print, print_json};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// File or directory (its .yaml, .yml and .json files); - is stdin. May be given several times.
    #[arg(short, long, required = true, value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// Check references between objects as well, where the kinds have such rules.
    #[arg(short = 'x', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    referential: bool,
    #[command(flatten)]
    output: OutputArgs,
}

struct Checked {
    file: String,
    objects: usize,
    skipped: usize,
    errors: Vec<ConfigError>,
}

pub(crate) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    // No kind that is known here has references yet that can be checked without a cluster.
    let ValidateArgs {
        filename,
        referential: _,
        output,
    } = args;
    let mut checked = Vec::new();
    for name in filename {
        for file in files(name)? {
            let text = read(&file)?;
            checked.push(check(&file.display().to_string(), &text));
        }
    }
    let wrong = checked.iter().any(|c| !c.errors.is_empty());
    if output.is_json() {
        print_json(&checked.iter().map(as_json).collect::<Vec<_>>())?;
    } else {
        for checked in &checked {
            report(checked);
        }
    }
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn check(file: &str, text: &str) -> Checked {
    let options = parse::Options {
        file: Some(file),
        ..parse::Options::default()
    };
    let parsed = parse::review(text, options);
    Checked {
        file: file.to_owned(),
        objects: parsed.objects.len(),
        skipped: parsed.skipped.len(),
        errors: parsed.errors,
    }
}

fn report(checked: &Checked) {
    let paint = Paint::stderr();
    for error in &checked.errors {
        print(&format!("{error}\n"));
    }
    let others = match checked.skipped {
        0 => String::new(),
        n => format!(", {n} of other kinds not looked at"),
    };
    match checked.errors.len() {
        0 => eprintln!(
            "{:?} is {} ({} objects{others})",
            checked.file,
            paint.good("valid"),
            checked.objects
        ),
        n => eprintln!(
            "{:?} has {}{others}",
            checked.file,
            paint.bad(&format!("{n} problems"))
        ),
    }
}

fn as_json(checked: &Checked) -> serde_json::Value {
    let errors: Vec<_> = checked
        .errors
        .iter()
        .map(|e| {
            json!({
                "line": e.place.line, "kind": e.place.kind, "namespace": e.place.namespace, "name": e.place.name,
                "field": e.path, "message": e.message, "accepted": e.accepted,
            })
        })
        .collect();
    json!({
        "file": checked.file, "valid": checked.errors.is_empty(), "objects": checked.objects,
        "skipped": checked.skipped, "errors": errors,
    })
}

/// The file itself, or the manifests of a directory and those below it, in order of their names.
fn files(name: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !name.is_dir() {
        return Ok(vec![name.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(name)
        .with_context(|| format!("reading directory {}", name.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let manifest = entry
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if entry.is_dir() || manifest {
            found.extend(files(&entry)?);
        }
    }
    Ok(found)
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading stdin")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {name: a, namespace: b}\n\
        spec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {host: reviews}\n";

    #[test]
    fn a_problem_names_file_kind_object_and_field() {
        let bad = GOOD.replace("{host: reviews}", "{host: reviews}\n      wieght: 5");
        let checked = check("vs.yaml", &bad);
        let text = checked
            .errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        for part in ["vs.yaml", "VirtualService", "b/a", "wieght"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert!(check("vs.yaml", GOOD).errors.is_empty());
    }

    #[test]
    fn directories_are_read_in_order_and_other_files_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("b")).expect("made");
        for name in ["c.yaml", "a.yml", "b/x.json", "notes.txt"] {
            std::fs::write(dir.path().join(name), GOOD).expect("written");
        }
        let found = files(dir.path()).expect("read");
        let names: Vec<_> = found
            .iter()
            .map(|f| f.strip_prefix(dir.path()).expect("inside").to_owned())
            .collect();
        assert_eq!(
            names,
            [
                Path::new("a.yml"),
                Path::new("b/x.json"),
                Path::new("c.yaml")
            ]
        );
    }
}
