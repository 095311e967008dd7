//! How much one file, one type, one name may hold.

use anyhow::{Result, ensure};

use super::{code, files, source};

/// Past this many lines without its tests, a file is more than one thing.
const LINES: usize = 500;

/// Past this many fields, a type is more than one thing.
const FIELDS: usize = 20;

#[test]
fn no_file_is_longer_than_one_thing_needs() -> Result<()> {
    let mut long = Vec::new();
    for (_, path) in files()? {
        let lines = code(&path)?.lines().count();
        if lines > LINES {
            long.push(format!("{} ({lines} lines)", path.strip_prefix(source())?.display()));
        }
    }
    ensure!(long.is_empty(), "above {LINES} lines without tests: {}", long.join(", "));
    Ok(())
}

#[test]
fn no_type_knows_everything() -> Result<()> {
    let mut large = Vec::new();
    for (_, path) in files()? {
        let (mut name, mut fields) = (None::<String>, 0);
        for line in code(&path)?.lines() {
            let declared =
                line.split_once("struct ").filter(|_| line.ends_with('{') && !line.starts_with(' '));
            if let Some((_, rest)) = declared {
                (name, fields) = (rest.split([' ', '<']).next().map(str::to_owned), 0);
            } else if line == "}" {
                if let Some(name) = name.take().filter(|_| fields > FIELDS) {
                    large.push(format!(
                        "{name} ({fields} fields) in {}",
                        path.strip_prefix(source())?.display()
                    ));
                }
            } else if name.is_some() && is_field(line) {
                fields += 1;
            }
        }
    }
    ensure!(large.is_empty(), "above {FIELDS} fields: {}", large.join(", "));
    Ok(())
}

/// Whether a line of a struct begins a field.
fn is_field(line: &str) -> bool {
    let Some(line) = line.strip_prefix("    ").filter(|line| !line.starts_with([' ', '/', '#'])) else {
        return false;
    };
    let line = line.strip_prefix("pub(super) ").or(line.strip_prefix("pub(crate) ")).unwrap_or(line);
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let name: String =
        line.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit()).collect();
    !name.is_empty() && line[name.len()..].starts_with(": ")
}
