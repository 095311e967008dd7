//! What the SDK's errors mean, and what to do about them. Texts are made of error codes and of causes, never
//! of requests: those hold credentials.

use std::error::Error;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::store::StoreError;

/// The text of an error after which the same conditional write is to be tried again.
pub(super) const CONFLICT: &str = "conditional writes keep colliding";

/// How the text of an error begins when an answer's body ended early.
pub(super) const BROKEN: &str = "an answer broke off";

/// Whether such an answer came whole, with another checksum than the store's.
pub(super) fn is_mismatch(text: &str) -> bool {
    // aws-smithy-checksums, body/validate.rs: Error::ChecksumMismatch.
    text.contains("checksum mismatch")
}

/// What was asked for, where the same answer means different things.
#[derive(Clone, Copy)]
pub(super) enum Asked {
    /// To create an object.
    Create,
    /// Part of one, perhaps of one version.
    Range {
        /// Where it ends.
        end: u64,
    },
    /// Anything else.
    Whatever,
}

/// Of what it was asked.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) bucket: &'a str,
    pub(super) key: &'a str,
    pub(super) asked: Asked,
}

pub(super) fn read<E>(error: &SdkError<E, HttpResponse>, target: Target<'_>) -> StoreError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            answered(status, service.err().code(), service.err().message(), target)
        }
        SdkError::TimeoutError(_) => StoreError::Unreachable("no answer in time".into()),
        SdkError::ResponseError(_) => StoreError::Unreachable(format!("{BROKEN}: {}", causes(error))),
        _ => {
            let causes = causes(error);
            // Looking for credentials is a step of the call, whose error has no kind of its own.
            if causes.to_ascii_lowercase().contains("credential") {
                return StoreError::Denied(format!(
                    "{causes}; give the agent an IAM role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ));
            }
            match error {
                SdkError::DispatchFailure(_) => StoreError::Unreachable(causes),
                _ => StoreError::Failed(causes),
            }
        }
    }
}

/// The error of a body that broke off.
pub(super) fn body(error: &(dyn Error + 'static)) -> StoreError {
    StoreError::Unreachable(format!("{BROKEN}: {}", causes(error)))
}

fn answered(status: u16, code: Option<&str>, message: Option<&str>, target: Target<'_>) -> StoreError {
    let Target { bucket, key, asked } = target;
    // Answers to HEAD have no code, and some servers' answers none either.
    let code = code.unwrap_or_default();
    let denied = |remedy: &str| {
        let shown = if code.is_empty() { "AccessDenied" } else { code };
        StoreError::Denied(format!("{shown}; {remedy}"))
    };
    match (status, code) {
        (_, "NoSuchBucket") => StoreError::Failed(format!(
            "there is no bucket {bucket}; create it, or correct the store's name, endpoint or region"
        )),
        (_, "NoSuchUpload") => StoreError::NotFound(key.into()),
        // The last one is versitygw's over a directory: a delete beside the write has taken the parent away.
        (409, "ConditionalRequestConflict" | "OperationAborted" | "ExistingObjectIsDirectory") => {
            StoreError::Failed(CONFLICT.into())
        }
        (412, _) | (_, "PreconditionFailed") => match asked {
            Asked::Create => StoreError::Exists(key.into()),
            Asked::Range { .. } | Asked::Whatever => StoreError::Changed(key.into()),
        },
        (416, _) | (_, "InvalidRange") => match asked {
            Asked::Range { end } => StoreError::Short { key: key.into(), end },
            Asked::Create | Asked::Whatever => StoreError::Failed(format!("{code} ({status})")),
        },
        // The last one is versitygw's word for an unknown access key.
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "XAdminUserNotFound") => denied(
            "the access key or its secret is wrong, or a proxy changes requests: correct the agent's credentials",
        ),
        (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "ExpiredTokenException") => {
            denied("the session's token is no longer valid: renew the agent's credentials")
        }
        (_, "RequestTimeTooSkewed") => denied("the clocks differ: set the time of this machine"),
        (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") | (301, _) => StoreError::Failed(format!(
            "the bucket {bucket} is in another region; name it with --s3-region or AWS_REGION"
        )),
        (401 | 403, _) | (_, "AccessDenied") => denied(&format!(
            "the agent needs s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket, \
             s3:ListBucketMultipartUploads and s3:AbortMultipartUpload on the bucket {bucket}"
        )),
        (404, "" | "NoSuchKey" | "NotFound") => StoreError::NotFound(key.into()),
        (507, _) | (_, "XMinioStorageFull") => StoreError::Full,
        _ => {
            let message = message.unwrap_or_default();
            StoreError::Failed(format!("{code} ({status}) {message}").trim().to_owned())
        }
    }
}

/// An error with what caused it, each once.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if texts.iter().all(|known| !known.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    texts.join(": ")
}
