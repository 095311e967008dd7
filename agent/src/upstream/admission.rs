//! What an upstream shows to a caller's own credentials.
//!
//! Capabilities are no yes: many servers, and many a proxy before one, ask for credentials only with the request for refs.
//! So refs are asked for, as few as tell enough, and what comes is read whole within a bound.

use std::time::Duration;

use bstr::BString;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::Response;

use super::{
    error::LookError,
    http::read,
    look::{AGENT, Looker, check_type, redirected, repository},
};
use crate::{
    git::RefSet,
    protocol::{
        advertisement::{self, Advertisement},
        ls_refs::{LsRefs, LsRefsError, parse_response},
        pktline::{Packet, Packets},
    },
};

/// How much of an answer is read: 100,000 refs take 7.5 MB, where a server knows only protocols that list all.
const MAX_READ: usize = 8 * 1024 * 1024;

/// What the upstream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It shows these refs, those that were asked for at least.
    Shown(RefSet),
    /// It refuses with this status: 401, 403, 404, 410 or 451.
    Refused(u16),
}

impl Looker {
    /// Whether callers' credentials can be tried: not over ssh, and a file knows no callers.
    pub fn can_judge(&self) -> bool {
        self.can_push()
    }

    /// Asks for the refs that start with one of `prefixes`, with a caller's own credentials, or with none, and never with
    /// the mirror's. Each answer must begin within `patience`, and go on within it. A dropped future closes the
    /// connection.
    ///
    /// # Errors
    /// The upstream says neither yes nor no.
    pub async fn shows(
        &self,
        authorization: Option<&HeaderValue>,
        prefixes: &[BString],
        patience: Duration,
    ) -> Result<Admission, LookError> {
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
        let (caller, client) = (self.host.caller(authorization), self.host.client());
        let url = format!("{}/info/refs?service=git-upload-pack", self.url());
        let response = self.host.send(&caller, client.get(url).headers(headers.clone()), patience).await?;
        let response = match judge(response)? {
            Ok(response) => response,
            Err(refused) => return Ok(refused),
        };
        check_type(&response, "application/x-git-upload-pack-advertisement")?;
        let base = repository(response.url().as_str()).to_owned();
        let Some(advertised) = advertised(&read(response, MAX_READ, patience).await?)? else {
            return Ok(Admission::FORBIDDEN);
        };
        let (format, offered) = match advertised {
            Advertisement::Refs(refs) => return Ok(Admission::Shown(refs)),
            Advertisement::V2 { format, offered } => (format, offered),
        };
        let asked = LsRefs { unborn: offered.unborn, prefixes: prefixes.into(), ..LsRefs::everything() };
        let post = client
            .post(format!("{base}/git-upload-pack"))
            .headers(headers)
            .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(header::ACCEPT, "application/x-git-upload-pack-result")
            .body(offered.trim(&asked.to_request(format, AGENT)));
        let response = match judge(self.host.send(&caller, post, patience).await?)? {
            Ok(response) => response,
            Err(refused) => return Ok(refused),
        };
        check_type(&response, "application/x-git-upload-pack-result")?;
        match parse_response(&read(response, MAX_READ, patience).await?, format) {
            Ok(refs) => Ok(Admission::Shown(refs)),
            Err(LsRefsError::Remote(_)) => Ok(Admission::FORBIDDEN),
            Err(error) => Err(error.into()),
        }
    }
}

impl Admission {
    /// A refusal that travels with status 200.
    const FORBIDDEN: Self = Self::Refused(403);
}

/// The answer, if it is one; else what it refuses with.
fn judge(response: Response) -> Result<Result<Response, Admission>, LookError> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(Ok(response));
    }
    // To a page that asks for a password, say; those within the host were followed.
    if status.is_redirection() {
        return Err(redirected(&response));
    }
    if LookError::refusal(status).is_none() {
        return Err(LookError::Status(status.as_u16()));
    }
    Ok(Err(Admission::Refused(status.as_u16())))
}

/// What an advertisement says; `None` where it is a refusal. A web page is neither.
fn advertised(body: &[u8]) -> Result<Option<Advertisement>, LookError> {
    let said = |packet: &Packet<'_>| match packet {
        Packet::Data(data) => !data.starts_with(b"# service="),
        _ => false,
    };
    let first = Packets::new(body).map_while(Result::ok).find(said);
    if let Some(Packet::Data(data)) = first
        && data.starts_with(b"ERR ")
    {
        return Ok(None);
    }
    Ok(Some(advertisement::parse(body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_advertisement_is_a_yes() {
        let service = "001e# service=git-upload-pack\n0000";
        let yes = format!("{service}000eversion 2\n000cls-refs\n0000");
        assert!(matches!(advertised(yes.as_bytes()), Ok(Some(Advertisement::V2 { .. }))));
        for end in 0..yes.len() {
            assert!(advertised(&yes.as_bytes()[..end]).is_err(), "{end}");
        }
        let no = format!("{service}0010ERR go away\n");
        assert!(matches!(advertised(no.as_bytes()), Ok(None)));
        assert!(advertised(b"<html>").is_err());
        assert!(advertised(b"").is_err());
    }
}
