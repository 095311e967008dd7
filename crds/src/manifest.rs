//! GitMirrors, GitCaches and Secrets read from text, with every check that an API server would make.
//!
//! For each document: YAML, kind, unknown fields, `null`s dropped, defaults filled in, the CRD's schema, its CEL rules,
//! and last the Rust types. A pure function of the text. No error repeats a value of the document: any may be a secret.

mod document;
mod identify;
mod kinds;
mod node;
mod spelling;
mod yaml;

use std::fmt;

use k8s_openapi::api::core::v1::Secret;

use crate::v1alpha1::{Access, GitCache, GitMirror};

/// The longest text that is read; about 20,000 GitMirrors.
pub const MAX_TEXT: usize = 4 << 20;

/// The most documents in one text.
pub const MAX_DOCUMENTS: usize = 20_000;

/// The most errors reported of one document.
pub const MAX_ERRORS: usize = 10;

/// One document, checked, with its defaults filled in and without a status.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// A mirror.
    GitMirror(Box<GitMirror>),
    /// A cache.
    GitCache(Box<GitCache>),
    /// A Secret, its `stringData` moved into `data`.
    Secret(Box<Secret>),
}

impl Manifest {
    /// The kind as it stands in the document.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::GitMirror(_) => "GitMirror",
            Self::GitCache(_) => "GitCache",
            Self::Secret(_) => "Secret",
        }
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        let metadata = match self {
            Self::GitMirror(mirror) => &mirror.metadata,
            Self::GitCache(cache) => &cache.metadata,
            Self::Secret(secret) => &secret.metadata,
        };
        metadata.name.as_deref().unwrap_or_default()
    }
}

/// What is wrong with one field of one document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    /// Which document of the text, from 1.
    pub document: usize,
    /// The object's name, where it has a valid one.
    pub name: Option<String>,
    /// Who may read, as far as a GitMirror can be read.
    pub access: Option<Access>,
    /// The field, such as `spec.interval`; empty where the document as a whole is meant.
    pub field: String,
    /// What is wrong with it, in words that follow the field's name.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Reads every document of a text; one that is wrong does not hide the others. Empty documents are skipped.
///
/// A document gives a manifest or its errors, at least one and at most [`MAX_ERRORS`].
pub fn read(text: &str) -> Vec<Result<Manifest, Vec<ManifestError>>> {
    let whole = |reason: String| {
        vec![Err(vec![ManifestError { document: 1, name: None, access: None, field: String::new(), reason }])]
    };
    if text.len() > MAX_TEXT {
        return whole(format!("is larger than {} MiB", MAX_TEXT >> 20));
    }
    let documents = document::split(text);
    if documents.len() > MAX_DOCUMENTS {
        return whole(format!("holds more than {MAX_DOCUMENTS} documents"));
    }
    let numbered = documents.into_iter().zip(1..);
    numbered.filter_map(|(chunk, number)| read_document(&chunk, number).transpose()).collect()
}

fn read_document(chunk: &document::Chunk<'_>, number: usize) -> Result<Option<Manifest>, Vec<ManifestError>> {
    let Some(value) = yaml::parse(chunk).map_err(|reason| {
        vec![ManifestError { document: number, name: None, access: None, field: String::new(), reason }]
    })?
    else {
        return Ok(None);
    };
    let (name, access) = (identify::name(&value), identify::access(&value));
    kinds::check(value).map(Some).map_err(|problems| {
        let error = |problem: Problem| ManifestError {
            document: number,
            name: name.clone(),
            access,
            field: problem.field,
            reason: problem.reason,
        };
        problems.into_iter().take(MAX_ERRORS).map(error).collect()
    })
}

/// A field and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    field: String,
    reason: String,
}

impl Problem {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests;
