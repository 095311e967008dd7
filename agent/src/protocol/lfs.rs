//! Git LFS: pointers in git's trees, and the JSON of the batch API. Pure.
//!
//! *Invariant:* what an upstream gives for a download (URL and headers) may be secret. It is parsed into an
//! [`Action`], which cannot be printed, and never written into an answer.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::git::{ObjectFormat, Oid, stderr::plain};

/// The type of the API's requests and answers.
pub const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

/// Objects in one request: git-lfs asks for 100 at a time.
pub const MAX_OBJECTS: usize = 1000;

/// No pointer is longer (git-lfs's specification), …
pub const MAX_POINTER: u64 = 1024;
/// … nor as short as this: a version, a name and a size take 126 bytes.
pub const MIN_POINTER: u64 = 100;

/// The longest URL of a download, in bytes; signed ones have 2,000.
const MAX_HREF: usize = 8 * 1024;

/// The most bytes of all headers of a download.
const MAX_HEADERS: usize = 16 * 1024;

/// The name of an LFS object: the SHA-256 of its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LfsOid(Oid);

impl LfsOid {
    /// Parses 64 lower-case hexadecimal digits; `None` for anything else.
    pub fn parse(hex: &str) -> Option<Self> {
        Oid::from_hex(hex.as_bytes()).filter(|oid| oid.format() == ObjectFormat::Sha256).map(Self)
    }

    /// Whether `sum` is the SHA-256 of the object's content.
    pub fn is_sum(&self, sum: &[u8]) -> bool {
        hex::encode(sum) == self.to_string()
    }

    /// Where the object is below a directory of objects, as git-lfs lays them out: `aa/bb/oid`.
    pub fn path(&self) -> PathBuf {
        let hex = self.to_string();
        let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
        [part(0..2), part(2..4), hex.clone()].iter().collect()
    }
}

impl fmt::Display for LfsOid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for LfsOid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An LFS object: its name and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    /// Its name.
    pub oid: LfsOid,
    /// Its length.
    pub bytes: u64,
}

/// The object that `blob` is a pointer to, if it is one.
pub fn parse_pointer(blob: &[u8]) -> Option<Object> {
    // The second URL is the one from before the project had its name; git-lfs still reads it.
    const VERSIONS: [&str; 2] =
        ["version https://git-lfs.github.com/spec/v1", "version https://hawser.github.com/spec/v1"];
    let text = std::str::from_utf8(blob).ok().filter(|text| text.len() as u64 <= MAX_POINTER)?;
    let mut lines = text.trim_end().lines();
    lines.next().filter(|first| VERSIONS.contains(first))?;
    let (mut oid, mut bytes) = (None, None);
    for line in lines {
        match line.split_once(' ')? {
            ("oid", name) => oid = Some(LfsOid::parse(name.strip_prefix("sha256:")?)?),
            ("size", size) => bytes = Some(size.parse().ok()?),
            _ => {}
        }
    }
    Some(Object { oid: oid?, bytes: bytes? })
}

/// What a batch request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The caller wants the objects.
    Download,
    /// The caller has the objects.
    Upload,
}

/// A batch request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What it is for.
    pub operation: Operation,
    /// Which objects.
    pub objects: Vec<Object>,
}

/// Why a text is no batch request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It is none.
    #[error("the body is no LFS batch request: {0}")]
    Malformed(String),
    /// An object's name is no SHA-256.
    #[error("object number {0} has no valid oid: 64 lower-case hexadecimal digits")]
    Oid(usize),
    /// Objects named by another hash.
    #[error("objects are named by sha256 here, by nothing else")]
    Hash,
    /// Too many.
    #[error("a batch has at most {MAX_OBJECTS} objects")]
    TooMany,
}

#[derive(Deserialize)]
struct RawBatch {
    operation: Operation,
    #[serde(default)]
    objects: Vec<RawObject>,
    #[serde(default)]
    hash_algo: Option<String>,
}

#[derive(Deserialize)]
struct RawObject {
    oid: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    authenticated: Option<bool>,
    #[serde(default)]
    actions: Option<RawActions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct RawActions {
    #[serde(default)]
    download: Option<RawAction>,
}

#[derive(Deserialize)]
struct RawAction {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, String>>,
    #[serde(default)]
    expires_in: Option<i64>,
}

impl RawAction {
    /// Whether it takes more memory than any signed URL needs: many are remembered.
    fn is_too_long(&self) -> bool {
        let headers = self.header.iter().flatten();
        let headers: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
        self.href.len() > MAX_HREF || headers > MAX_HEADERS
    }
}

#[derive(Deserialize)]
struct RawAnswer {
    #[serde(default)]
    transfer: Option<String>,
    #[serde(default)]
    objects: Vec<RawObject>,
}

impl Batch {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, BatchError> {
        let raw: RawBatch =
            serde_json::from_slice(body).map_err(|error| BatchError::Malformed(error.to_string()))?;
        if raw.hash_algo.is_some_and(|hash| hash != "sha256") {
            return Err(BatchError::Hash);
        }
        if raw.objects.len() > MAX_OBJECTS {
            return Err(BatchError::TooMany);
        }
        let objects = raw.objects.iter().enumerate().map(|(at, object)| {
            let oid = LfsOid::parse(&object.oid).ok_or(BatchError::Oid(at + 1))?;
            Ok(Object { oid, bytes: object.size })
        });
        Ok(Self { operation: raw.operation, objects: objects.collect::<Result<_, _>>()? })
    }
}

/// The request for downloads of `objects`.
pub fn ask(objects: &[Object]) -> Vec<u8> {
    let objects: Vec<_> =
        objects.iter().map(|object| json!({"oid": object.oid.to_string(), "size": object.bytes})).collect();
    json!({"operation": "download", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"})
        .to_string()
        .into_bytes()
}

/// Why an object cannot be had, as the upstream or this agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectError {
    /// As an HTTP status.
    pub code: u16,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// Where an object is to be had. Never printed: its URL may be signed, and its headers may hold tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Action {
    /// The URL.
    pub href: String,
    /// Headers to send there.
    pub header: BTreeMap<String, String>,
    /// Whether URL and headers are enough, without credentials.
    pub authenticated: bool,
    /// For how long it is good, if that is said.
    pub expires: Option<Duration>,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Action(***)")
    }
}

/// What the upstream says of each object: where it is to be had, or why not.
pub type Answered = Vec<(LfsOid, Result<Action, ObjectError>)>;

/// Reads the answer to [`ask`]: what becomes of each object it names.
///
/// # Errors
/// Why it is no such answer; the text holds nothing of it.
pub fn parse_answer(body: &[u8]) -> Result<Answered, &'static str> {
    let raw: RawAnswer = serde_json::from_slice(body).map_err(|_| "it is not what the batch API answers")?;
    if raw.transfer.is_some_and(|transfer| transfer != "basic") {
        return Err("it wants another way of transfer than basic");
    }
    let answered = raw.objects.into_iter().map(|object| {
        let oid = LfsOid::parse(&object.oid).ok_or("it names an object that nobody asked for")?;
        let download = object.actions.and_then(|actions| actions.download);
        let missing = || ObjectError { code: 404, message: "the upstream offers no download of it".into() };
        let outcome = match (object.error, download) {
            // It goes into logs and to terminals.
            (Some(error), _) => Err(ObjectError { message: plain(&error.message), ..error }),
            (None, None) => Err(missing()),
            (None, Some(action)) if action.is_too_long() => {
                let message = "the upstream's URL or headers for the download are too long";
                Err(ObjectError { code: 502, message: message.into() })
            }
            (None, Some(action)) => Ok(Action {
                href: action.href,
                header: action.header.unwrap_or_default(),
                authenticated: object.authenticated.unwrap_or(false),
                expires: action.expires_in.map(|seconds| Duration::from_secs(seconds.max(0).unsigned_abs())),
            }),
        };
        Ok((oid, outcome))
    });
    answered.collect()
}

/// An answer of the API that is handed on: its texts reach terminals, so control characters in them become spaces.
///
/// # Errors
/// It is no JSON.
pub fn cleaned(body: &[u8]) -> Result<Vec<u8>, &'static str> {
    fn clean(value: &mut Value) {
        match value {
            Value::String(text) if text.contains(char::is_control) => {
                *text = text.replace(char::is_control, " ");
            }
            Value::Array(values) => values.iter_mut().for_each(clean),
            Value::Object(fields) => fields.values_mut().for_each(clean),
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_slice(body).map_err(|_| "its answer is not the API's JSON")?;
    clean(&mut value);
    Ok(value.to_string().into_bytes())
}

/// An answer of the API that is nothing but a message.
pub fn said(message: &str) -> Vec<u8> {
    json!({ "message": message }).to_string().into_bytes()
}

/// Whoever asks gets the objects: git-lfs need not look for credentials.
#[derive(Clone, Copy, Debug)]
pub struct NoCredentials;

/// The answer to a request for downloads: for each object a URL, or why it cannot be had.
///
/// Told that URL and headers are enough (`authenticated`), git-lfs sends no credentials, whatever the answer to that is, and repeats
/// the request for ever where they are asked for. Not told so, it proves itself as it did for the batch.
pub fn answer(objects: &[(Object, Result<String, ObjectError>)], open: Option<NoCredentials>) -> Vec<u8> {
    let objects = objects.iter().map(|(Object { oid, bytes }, outcome)| {
        let oid = oid.to_string();
        match outcome {
            Ok(href) => {
                let mut object = json!({"oid": oid, "size": bytes, "actions": {"download": {"href": href}}});
                if let (Some(NoCredentials), Some(fields)) = (open, object.as_object_mut()) {
                    fields.insert("authenticated".into(), true.into());
                }
                object
            }
            Err(error) => json!({"oid": oid, "size": bytes, "error": error}),
        }
    });
    let objects: Vec<_> = objects.collect();
    json!({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OID: &str = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";

    fn object(bytes: u64) -> Object {
        Object { oid: LfsOid::parse(OID).unwrap(), bytes }
    }

    #[test]
    fn texts_that_are_handed_on_paint_no_terminal() {
        let body =
            json!({"message": "\u{1b}[2Jgone\r\n", "locks": [{"path": "a\u{9b}b", "n": 7, "ok": true}]});
        let clean: Value = serde_json::from_slice(&cleaned(body.to_string().as_bytes()).unwrap()).unwrap();
        let expected = json!({"message": " [2Jgone  ", "locks": [{"path": "a b", "n": 7, "ok": true}]});
        assert_eq!(clean, expected);
        assert!(cleaned(b"<html>").is_err() && cleaned(b"").is_err());
    }

    #[test]
    fn actions_that_would_fill_the_memory_are_errors_of_their_objects() {
        for (href, value, fine) in [(2000, 2000, true), (9000, 1, false), (1, 20_000, false)] {
            let action = json!({"href": "h".repeat(href), "header": {"Authorization": "v".repeat(value)}});
            let body = json!({"objects": [{"oid": OID, "size": 1, "actions": {"download": action}}]});
            let answered = parse_answer(body.to_string().as_bytes()).unwrap();
            assert_eq!(answered[0].1.is_ok(), fine, "{href} {value}");
        }
    }

    #[test]
    fn pointers_are_recognised_and_nothing_else_is() {
        let plain = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n");
        assert_eq!(parse_pointer(plain.as_bytes()), Some(object(12345)));
        let with_extension = plain.replace("\noid", &format!("\next-0-foo sha256:{OID}\noid"));
        assert_eq!(parse_pointer(with_extension.as_bytes()), Some(object(12345)));
        let old = plain.replace("git-lfs", "hawser");
        assert_eq!(parse_pointer(old.as_bytes()), Some(object(12345)));
        for bad in [
            String::new(),
            plain.replace("version", "version "),
            plain.replace("sha256:", "md5:"),
            plain.replace("12345", "-1"),
            plain.replace("size", "length"),
            plain.replace(OID, "../../../../etc/passwd"),
            plain.replace(OID, &OID.to_uppercase()),
            plain.replace("\nsize", "\nnonsense\nsize"),
            format!("{plain}{}", "x ".repeat(600)),
        ] {
            assert_eq!(parse_pointer(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_pointer(&[0xff; 200]), None);
    }

    #[test]
    fn requests_are_read_and_names_checked() {
        let text = format!(
            r#"{{"operation":"download","transfers":["basic"],"objects":[{{"oid":"{OID}","size":7}}]}}"#
        );
        let batch = Batch::parse(text.as_bytes()).unwrap();
        assert_eq!(batch, Batch { operation: Operation::Download, objects: vec![object(7)] });
        let bad = |from: &str, to: &str| Batch::parse(text.replace(from, to).as_bytes()).unwrap_err();
        assert_eq!(bad(OID, "../../x"), BatchError::Oid(1));
        assert_eq!(bad("\"transfers\"", "\"hash_algo\":\"md5\",\"transfers\""), BatchError::Hash);
        assert!(matches!(bad("download", "steal"), BatchError::Malformed(_)));
        let many = vec![object(1); MAX_OBJECTS + 1];
        assert_eq!(Batch::parse(&ask(&many)), Err(BatchError::TooMany));
        assert_eq!(Batch::parse(&ask(&many[..3])).unwrap().objects.len(), 3);
    }

    #[test]
    fn answers_of_upstreams_are_read_and_never_printed() {
        let text = format!(
            r#"{{"objects":[
                {{"oid":"{OID}","size":7,"actions":{{"download":{{"href":"https://canary","header":{{"A":"canary"}},"expires_in":60}}}}}},
                {{"oid":"{OID}","size":7,"error":{{"code":404,"message":"gone"}}}},
                {{"oid":"{OID}","size":7}}]}}"#
        );
        let answered = parse_answer(text.as_bytes()).unwrap();
        let action = answered[0].1.as_ref().unwrap();
        assert_eq!((action.href.as_str(), action.expires), ("https://canary", Some(Duration::from_secs(60))));
        assert_eq!(answered[1].1, Err(ObjectError { code: 404, message: "gone".into() }));
        assert_eq!(answered[2].1.as_ref().unwrap_err().code, 404);
        assert!(!format!("{answered:?}").contains("canary"));
        assert!(parse_answer(b"<html>").is_err());
        assert!(parse_answer(br#"{"transfer":"tus","objects":[]}"#).is_err());
    }

    #[test]
    fn objects_lie_where_git_lfs_puts_them() {
        assert_eq!(object(0).oid.path(), PathBuf::from(format!("4d/7a/{OID}")));
        for bad in ["", "4d7a", &"g".repeat(64), &"0".repeat(40), &OID.to_uppercase()] {
            assert_eq!(LfsOid::parse(bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(parse_pointer(&bytes), None);
            prop_assert!(Batch::parse(&bytes).is_err());
            prop_assert!(parse_answer(&bytes).is_err());
        }
    }
}
