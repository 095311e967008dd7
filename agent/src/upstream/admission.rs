//! What an upstream says to a caller's own credentials: whether it would show them its refs.

use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::Response;

use super::{
    error::LookError,
    http::{SILENCE, chunks},
    look::{Looker, check_type, redirected},
};
use crate::protocol::pktline::{Packet, PacketError, Packets};

/// How much of the answer is read: it begins with what decides.
const MAX_READ: usize = 128 * 1024;

/// The longest challenge that is passed on.
const MAX_CHALLENGE: usize = 1024;

/// What the upstream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It begins to show its refs.
    Admitted,
    /// It refuses.
    Refused {
        /// 401, 403 or 404.
        status: u16,
        /// What credentials it asks for.
        challenge: Option<HeaderValue>,
    },
}

impl Looker {
    /// Whether callers' credentials can be tried: not over ssh, and a file knows no callers.
    pub fn can_judge(&self) -> bool {
        self.can_push()
    }

    /// Asks for the ref advertisement with a caller's own credentials, or with none, and never with the mirror's. What
    /// follows the first packets is not read. A dropped future closes the connection.
    ///
    /// # Errors
    /// The upstream says neither yes nor no.
    pub async fn admits(&self, authorization: Option<&HeaderValue>) -> Result<Admission, LookError> {
        if !self.can_judge() {
            return Err(LookError::Refused(
                "only http and https upstreams can be asked with others' credentials".into(),
            ));
        }
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("git-protocol"), HeaderValue::from_static("version=2"));
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let url = format!("{}/info/refs?service=git-upload-pack", self.url());
        let request = self.host.client().get(url).headers(headers);
        let response = self.host.send(&self.host.caller(authorization), request, SILENCE).await?;
        match response.status() {
            StatusCode::OK => begins(response).await,
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
                let challenge = response.headers().get(header::WWW_AUTHENTICATE).cloned();
                let challenge = challenge.filter(|value| value.len() <= MAX_CHALLENGE);
                Ok(Admission::Refused { status: status.as_u16(), challenge })
            }
            // To a page that asks for a password, say; those within the host were followed.
            status if status.is_redirection() => Err(redirected(&response)),
            status => Err(LookError::Status(status.as_u16())),
        }
    }
}

/// Reads until something other than the name of the service comes: a web page is no yes, nor is a refusal that travels
/// with status 200.
async fn begins(response: Response) -> Result<Admission, LookError> {
    check_type(&response, "application/x-git-upload-pack-advertisement")?;
    let (mut body, mut chunks) = (Vec::new(), std::pin::pin!(chunks(response, SILENCE)));
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk?);
        if let Some(decided) = decide(&body)? {
            return Ok(decided);
        }
        if body.len() > MAX_READ {
            break;
        }
    }
    Err(LookError::NotGit("its advertisement does not begin".into()))
}

fn decide(body: &[u8]) -> Result<Option<Admission>, LookError> {
    for packet in Packets::new(body) {
        match packet {
            Ok(Packet::Data(data)) if data.starts_with(b"# service=") => {}
            Ok(Packet::Flush) => {}
            Ok(Packet::Data(data)) if data.starts_with(b"ERR ") => {
                return Ok(Some(Admission::Refused { status: 403, challenge: None }));
            }
            Ok(Packet::Data(_)) => return Ok(Some(Admission::Admitted)),
            Err(PacketError::Truncated { .. }) => return Ok(None),
            Ok(Packet::Delimiter | Packet::ResponseEnd) | Err(PacketError::BadLength { .. }) => {
                return Err(LookError::NotGit("its advertisement is none".into()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_advertisement_is_a_yes() {
        let service = "001e# service=git-upload-pack\n0000";
        let yes = format!("{service}000eversion 2\n");
        assert_eq!(decide(yes.as_bytes()).unwrap(), Some(Admission::Admitted));
        for end in 0..yes.len() {
            assert_eq!(decide(&yes.as_bytes()[..end]).unwrap(), None, "{end}");
        }
        let no = format!("{service}0010ERR go away\n");
        assert!(matches!(decide(no.as_bytes()), Ok(Some(Admission::Refused { status: 403, .. }))));
        assert!(decide(b"<html>").is_err());
        assert_eq!(decide(format!("{service}0000").as_bytes()).unwrap(), None);
    }
}
