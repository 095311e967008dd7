//! What the code may not do, checked on its text.

mod circles;
mod sizes;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of the library with the module at its top, such as `mirror` for `mirror/task.rs`.
fn files() -> Result<Vec<(String, PathBuf)>> {
    let named = |path: PathBuf| {
        let top = path.strip_prefix(source())?.components().next().context("no name")?;
        let top = top.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        Ok((top, path))
    };
    crate::rust_files(&source())?.into_iter().map(named).collect()
}

/// A file's text up to its tests.
fn code(path: &Path) -> Result<String> {
    // A file of tests that its module declares is named so.
    if path.ends_with("tests.rs") {
        return Ok(String::new());
    }
    let text = std::fs::read_to_string(path)?;
    Ok(text.split("\n#[cfg(test)]\n").next().unwrap_or_default().to_owned())
}

#[test]
fn a_module_imports_only_from_modules_above_it() -> Result<()> {
    let lib = std::fs::read_to_string(source().join("lib.rs"))?;
    let order: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    ensure!(order.len() > 5, "lib.rs lists its modules: {order:?}");
    let place = |name: &str| order.iter().position(|listed| *listed == name);
    let mut seen = 0;
    for (top, path) in files()? {
        let Some(own) = place(&top) else { continue };
        let text = std::fs::read_to_string(&path)?;
        // Up to the tests: `use crate::{` with one module a line, `use crate::module::…`, and paths in code.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let mut in_list = false;
        for line in code.lines() {
            let mut named: Vec<&str> = line.split("crate::").skip(1).collect();
            if in_list {
                named.push(line.trim());
            }
            if line.trim_end().ends_with("use crate::{") {
                in_list = true;
            } else if line.starts_with("};") {
                in_list = false;
            }
            // Inside a nested list the names are a module's own.
            if in_list && line.starts_with("        ") {
                continue;
            }
            for name in named {
                let name =
                    name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
                if let Some(other) = place(name) {
                    seen += 1;
                    ensure!(other <= own, "{}: {top} uses {name}, which is below it", path.display());
                }
            }
        }
    }
    ensure!(seen > 20, "only {seen} imports found: the reading of them is broken");
    Ok(())
}

#[test]
fn children_are_started_in_one_file() -> Result<()> {
    for (_, path) in files()? {
        let text = std::fs::read_to_string(&path)?;
        let starts = text.contains("Command::new(") && !path.ends_with("git/command.rs");
        ensure!(!starts, "{} starts processes", path.display());
    }
    Ok(())
}
