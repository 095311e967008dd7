//! Nonsense on the git port: 4xx with one clear line, the connection usable afterwards, no child left behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::wire::{Answer, Connection, pkt};

use super::fetch_request;
use crate::scene::Scene;

const REQUEST: (&str, &str) = ("Content-Type", "application/x-git-upload-pack-request");
const V2: (&str, &str) = ("Git-Protocol", "version=2");

/// A client's error, told in one line of plain text.
fn expect_one_clear_line(what: &str, answer: &Answer) -> Result<()> {
    ensure!((400..500).contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    ensure!(
        answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")),
        "{what}: {:?}",
        answer.headers
    );
    let text = answer.text();
    let line = text.trim_end_matches('\n');
    ensure!(line.len() > 10 && line.len() < 500 && !line.contains('\n'), "{what}: {text:?}");
    Ok(())
}

/// The connection still serves, and nobody works for the bad request any more.
async fn expect_undisturbed(what: &str, scene: &Scene, connection: &mut Connection) -> Result<()> {
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let answer = connection.ask("GET", &target, &[], b"").await;
    ensure!(answer.as_ref().is_ok_and(|answer| answer.status == 200), "{what}: then {answer:?}");
    Ok(())
}

/// Name, method, target, headers, body, and the status, where only one is right.
type Case<'a> = (&'a str, &'a str, String, Vec<(&'a str, &'a str)>, &'a [u8], u16);

#[tokio::test]
async fn wrong_methods_services_and_types_are_refused_on_a_living_connection() -> Result<()> {
    let scene = Scene::ready().await?;
    let path = scene.path();
    let good = fetch_request(&["0000000000000000000000000000000000000001"], &["done"]);
    let mut connection = scene.connect().await?;
    let cases: Vec<Case<'_>> = vec![
        ("an unknown service", "GET", format!("{path}/info/refs?service=git-frobnicate"), vec![], b"", 0),
        ("a push's second half", "POST", format!("{path}/git-receive-pack"), vec![REQUEST], b"0000", 0),
        ("dumb HTTP", "GET", format!("{path}/info/refs"), vec![], b"", 0),
        ("an empty service", "GET", format!("{path}/info/refs?service="), vec![], b"", 0),
        ("a dumb HEAD", "GET", format!("{path}/HEAD"), vec![], b"", 404),
        ("a dumb object", "GET", format!("{path}/objects/info/packs"), vec![], b"", 404),
        ("the packed refs", "GET", format!("{path}/packed-refs"), vec![], b"", 404),
        ("the configuration", "GET", format!("{path}/config"), vec![], b"", 404),
        ("GET for upload-pack", "GET", format!("{path}/git-upload-pack"), vec![], b"", 405),
        (
            "POST for info/refs",
            "POST",
            format!("{path}/info/refs?service=git-upload-pack"),
            vec![],
            b"x",
            405,
        ),
        ("DELETE", "DELETE", format!("{path}/info/refs?service=git-upload-pack"), vec![], b"", 405),
        ("no content type", "POST", format!("{path}/git-upload-pack"), vec![V2], &good, 415),
        (
            "a wrong content type",
            "POST",
            format!("{path}/git-upload-pack"),
            vec![V2, ("Content-Type", "application/json")],
            &good,
            415,
        ),
        (
            "an unknown coding",
            "POST",
            format!("{path}/git-upload-pack"),
            vec![V2, REQUEST, ("Content-Encoding", "br")],
            &good,
            0,
        ),
        (
            "broken gzip",
            "POST",
            format!("{path}/git-upload-pack"),
            vec![V2, REQUEST, ("Content-Encoding", "gzip")],
            b"this is no gzip at all",
            400,
        ),
        ("nothing at all", "GET", "/".to_owned(), vec![], b"", 404),
        ("no repository", "GET", "/git/".to_owned(), vec![], b"", 0),
        (
            "a host only",
            "GET",
            "/git/github.com/info/refs?service=git-upload-pack".to_owned(),
            vec![],
            b"",
            0,
        ),
    ];
    for (what, method, target, headers, body, status) in cases {
        let answer = connection.ask(method, &target, &headers, body).await?;
        expect_one_clear_line(what, &answer)?;
        ensure!(status == 0 || answer.status == status, "{what}: {}", answer.status);
        expect_undisturbed(what, &scene, &mut connection).await?;
    }
    scene.agent.wait_idle().await
}

#[tokio::test]
async fn broken_packet_lines_are_refused_on_a_living_connection() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    let target = format!("{}/git-upload-pack", scene.path());
    let mut connection = scene.connect().await?;
    let command = pkt("command=fetch\n");
    let with = |parts: &[&[u8]]| parts.concat();
    let want = pkt(&format!("want {head}\n"));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no hexadecimal length", b"zzzzcommand=fetch\n".to_vec()),
        ("a length that is too short", b"0003".to_vec()),
        ("a line cut short", b"0100command=fetch\n".to_vec()),
        ("half a length", b"00".to_vec()),
        ("no command", with(&[b"0001", &want, b"0000"])),
        ("an unknown command", with(&[&pkt("command=frobnicate\n"), b"0000"])),
        ("two commands", with(&[&command, &pkt("command=ls-refs\n"), b"0000"])),
        ("no flush at the end", with(&[&command, b"0001", &want])),
        (
            "an object id that is none",
            with(&[&command, b"0001", &pkt("want xyz\n"), &pkt("done\n"), b"0000"]),
        ),
        (
            "an id of the wrong length",
            with(&[&command, b"0001", &pkt(&format!("want {head}00\n")), &pkt("done\n"), b"0000"]),
        ),
        (
            "a bad depth",
            with(&[&command, b"0001", &want, &pkt("deepen minus-one\n"), &pkt("done\n"), b"0000"]),
        ),
        (
            "a bad filter",
            with(&[&command, b"0001", &want, &pkt("filter nonsense:1\n"), &pkt("done\n"), b"0000"]),
        ),
        (
            "a filter that names a server's file",
            with(&[
                &command,
                b"0001",
                &want,
                &pkt("filter sparse:path=/etc/passwd\n"),
                &pkt("done\n"),
                b"0000",
            ]),
        ),
        (
            "an unknown argument",
            with(&[&command, b"0001", &want, &pkt("frobnicate\n"), &pkt("done\n"), b"0000"]),
        ),
        (
            "an unknown format of objects",
            with(&[&command, &pkt("object-format=md5\n"), b"0001", &want, &pkt("done\n"), b"0000"]),
        ),
        (
            "the wrong format of objects",
            with(&[&command, &pkt("object-format=sha256\n"), b"0001", &want, &pkt("done\n"), b"0000"]),
        ),
        ("control characters", with(&[&pkt("command=fetch\0\x01\n"), b"0000"])),
    ];
    for (what, body) in cases {
        let answer = connection.ask("POST", &target, &[REQUEST, V2], &body).await?;
        // Git shows an ERR packet to the person at the terminal; other errors are the client's own.
        let err_packet = answer.status == 200
            && answer.header("content-type") == Some("application/x-git-upload-pack-result")
            && answer.body.get(4..8) == Some(b"ERR ");
        if !err_packet {
            expect_one_clear_line(what, &answer)?;
        }
        expect_undisturbed(what, &scene, &mut connection).await?;
    }
    scene.agent.wait_idle().await
}

#[tokio::test]
async fn broken_packet_lines_of_the_older_protocols_are_refused_too() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    let target = format!("{}/git-upload-pack", scene.path());
    let mut connection = scene.connect().await?;
    let want = pkt(&format!("want {head} side-band-64k ofs-delta\n"));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no hexadecimal length", b"zzzzwant".to_vec()),
        ("a line cut short", b"0fffwant".to_vec()),
        ("an object id that is none", [pkt("want xyz\n"), b"0000".to_vec(), pkt("done\n")].concat()),
        ("no flush after the wants", want.clone()),
        ("something else", [pkt("frobnicate\n"), b"0000".to_vec()].concat()),
    ];
    for (what, body) in cases {
        let answer = connection.ask("POST", &target, &[REQUEST], &body).await?;
        let err_packet = answer.status == 200 && answer.body.get(4..8) == Some(b"ERR ");
        if !err_packet {
            expect_one_clear_line(what, &answer)?;
        }
        expect_undisturbed(what, &scene, &mut connection).await?;
    }
    scene.agent.wait_idle().await
}

#[tokio::test]
async fn an_oversized_body_is_refused_before_it_has_arrived() -> Result<()> {
    let scene = Scene::ready().await?;
    let target = format!("{}/git-upload-pack", scene.path());
    // Announced: no byte of it is needed to refuse it.
    let mut connection = scene.connect().await?;
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: test\r\nGit-Protocol: version=2\r\n\
         Content-Type: application/x-git-upload-pack-request\r\nContent-Length: 20000000000\r\n\r\n"
    );
    connection.send(head.as_bytes()).await?;
    let answer = connection.answer().await?;
    expect_one_clear_line("a body of 20 GB", &answer)?;
    assert_eq!(answer.status, 413);
    // Unannounced: refused while it arrives, and the client still learns why.
    let line = pkt(&format!("have {}\n", "1".repeat(40)));
    let megabyte = line.repeat((1 << 20) / line.len());
    let chunks: Vec<&[u8]> = (0..40).map(|_| megabyte.as_slice()).collect();
    let mut connection = scene.connect().await?;
    let answer = connection.ask_chunked("POST", &target, &[REQUEST, V2], &chunks).await?;
    expect_one_clear_line("40 MB in chunks", &answer)?;
    assert_eq!(answer.status, 413);
    scene.expect_upstream_refs().await?;
    scene.agent.wait_idle().await
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_request_leaves_nothing_behind() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.agent.wait_idle().await?;
    for half in ["POST /git", "POST {}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n00"]
    {
        let mut connection = scene.connect().await?;
        connection.send(half.replace("{}", &scene.path()).as_bytes()).await?;
        drop(connection);
    }
    eventually(Duration::from_secs(5), "no child", async || {
        let children = scene.agent.children()?;
        ensure!(children.is_empty(), "{children:?}");
        Ok(())
    })
    .await?;
    scene.expect_upstream_refs().await.map(drop)
}

#[tokio::test]
async fn not_even_http_is_survived() -> Result<()> {
    let scene = Scene::ready().await?;
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".as_slice(),
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"0032git-upload-pack /a.git\0host=localhost\0",
    ] {
        let mut connection = scene.connect().await?;
        connection.send(garbage).await?;
        // Any answer, or a closed connection, will do.
        let _ = tokio::time::timeout(Duration::from_millis(300), connection.answer()).await;
    }
    scene.expect_upstream_refs().await.map(drop)
}
