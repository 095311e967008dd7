//! Which file imports from which, and that nothing comes back to where it began.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, ensure};

use super::{code, files, source};

/// A module by its path below the crate: `["mirror", "task"]`.
type Module = Vec<String>;

/// The module that a file holds.
fn module(path: &Path) -> Result<Module> {
    let below = path.strip_prefix(source())?.with_extension("");
    Ok(below.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect())
}

/// The full paths that `use` declarations name, braces resolved: `a::{b, c::d}` names `a::b` and `a::c::d`.
fn expand(tree: &str, before: &[String], into: &mut Vec<Module>) {
    let (mut depth, mut from) = (0_usize, 0);
    let mut items = Vec::new();
    for (at, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                items.push(&tree[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    items.push(&tree[from..]);
    for item in items.into_iter().map(str::trim).filter(|item| !item.is_empty()) {
        let (path, rest) = item.split_once('{').map_or((item, None), |(path, rest)| (path, Some(rest)));
        let path = path.split(" as ").next().unwrap_or_default();
        let named = path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned);
        let all: Module = before.iter().cloned().chain(named).collect();
        match rest {
            Some(rest) => expand(rest.strip_suffix('}').unwrap_or(rest), &all, into),
            None => into.push(all),
        }
    }
}

/// Turns `crate::…`, `self::…` and `super::…` into a path below the crate; `None` for another crate's.
fn resolve(named: &[String], own: &[String]) -> Option<Module> {
    let mut base = own.to_vec();
    let mut rest = named;
    match rest.first()?.as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            base.pop()?;
        }
        // A child that the file itself declares: part of one room.
        _ => return None,
    }
    rest = rest.get(1..)?;
    while rest.first().is_some_and(|part| part == "super") {
        base.pop()?;
        rest = rest.get(1..)?;
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// Every `use` declaration of a file's code, as one line each.
fn uses(code: &str) -> Vec<String> {
    let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let text = lines.join("\n");
    let starts = ["\nuse ", "\npub use ", "\npub(crate) use ", "\npub(super) use "];
    let mut found = Vec::new();
    for start in starts {
        for part in text.split(start).skip(1) {
            found.extend(part.split(';').next().map(|tree| tree.replace('\n', " ")));
        }
    }
    found
}

/// Paths that begin with `crate::` or `super::` anywhere in a file's code.
fn paths(code: &str) -> Vec<Module> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    for line in lines {
        let starts = ["crate::", "super::"].map(|start| line.match_indices(start).map(|(at, _)| at));
        for at in starts.into_iter().flatten().filter(|at| !line[..*at].ends_with("::")) {
            let path: String =
                line[at..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
            found.push(path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect());
        }
    }
    found
}

/// Imports between files that do not lie on one line of ancestry: a module and its children are one room.
fn imports() -> Result<BTreeMap<Module, BTreeSet<Module>>> {
    let mut modules = BTreeMap::new();
    for (_, path) in files()? {
        modules.insert(module(&path)?, code(&path)?);
    }
    let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (own, code) in &modules {
        let mut named = Vec::new();
        uses(code).iter().for_each(|tree| expand(tree, &[], &mut named));
        named.extend(paths(code));
        for path in named.iter().filter_map(|named| resolve(named, own)) {
            let holder = (1..=path.len()).rev().map(|length| &path[..length]);
            let Some(other) = holder.into_iter().find(|part| modules.contains_key(*part)) else { continue };
            if !own.starts_with(other) && !other.starts_with(own) {
                imports.entry(own.clone()).or_default().insert(other.to_vec());
            }
        }
    }
    Ok(imports)
}

/// What can be reached from a module, itself only by a circle.
fn reached(imports: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
    while let Some(module) = next.pop() {
        for other in imports.get(&module).into_iter().flatten() {
            if seen.insert(other.clone()) {
                next.push(other.clone());
            }
        }
    }
    seen
}

#[test]
fn no_import_comes_back_to_where_it_began() -> Result<()> {
    let imports = imports()?;
    ensure!(imports.values().map(BTreeSet::len).sum::<usize>() > 200, "the reading of imports is broken");
    let circle: Vec<String> = imports
        .keys()
        .filter(|module| reached(&imports, module).contains(*module))
        .map(|module| module.join("::"))
        .collect();
    ensure!(circle.is_empty(), "these files import each other in a circle: {}", circle.join(", "));
    Ok(())
}

#[test]
fn circles_are_found() {
    let named = |text: &str| text.split("::").map(str::to_owned).collect::<Module>();
    let mut paths = Vec::new();
    expand("crate::{a::{B, c::D}, e}", &[], &mut paths);
    assert_eq!(paths, ["crate::a::B", "crate::a::c::D", "crate::e"].map(named));
    assert_eq!(resolve(&named("super::f::G"), &named("a::b")), Some(named("a::f::G")));
    let both = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")];
    let imports = both.map(|(from, to)| (named(from), BTreeSet::from([named(to)]))).into();
    assert!(reached(&imports, &named("a")).contains(&named("a")));
    assert!(!reached(&imports, &named("d")).contains(&named("d")));
}
