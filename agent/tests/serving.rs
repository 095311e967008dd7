//! What git clients get: every protocol, every kind of clone, every kind of repository, and every kind of
//! nonsense refused in one clear line.

mod bad_input;
mod clones;
mod cold;
mod ensure_refs;
mod packs_ahead;
mod push;
mod repositories;
mod shared_packs;
mod submodules;
mod upkeep;
mod upstreams;
mod wire;

/// A protocol v2 `fetch` request for these objects, with further arguments.
pub(crate) fn fetch_request(wants: &[&str], arguments: &[&str]) -> Vec<u8> {
    let mut body = tarn_testkit::wire::pkt("command=fetch\n");
    body.extend_from_slice(b"0001");
    for want in wants {
        body.extend(tarn_testkit::wire::pkt(&format!("want {want}\n")));
    }
    for argument in arguments {
        body.extend(tarn_testkit::wire::pkt(&format!("{argument}\n")));
    }
    body.extend_from_slice(b"0000");
    body
}

/// A whole protocol v2 request to a repository's service, as bytes.
pub(crate) fn post(path: &str, service: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path}/{service} HTTP/1.1\r\nHost: test\r\nGit-Protocol: version=2\r\n\
         Content-Type: application/x-{service}-request\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}
