//! Submodules through `insteadOf`: one line of the client's configuration sends everything through Tarn.

use anyhow::Result;
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Operation, Upstream};

use crate::scene::agent;

#[tokio::test]
async fn submodules_are_cloned_through_tarn_by_one_line_of_configuration() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let library = upstream.seed("team/library.git").await?;
    let project = upstream.seed("team/project.git").await?;
    let commit = library.rev_parse("main").await?;
    let modules = format!(
        "[submodule \"direct\"]\n\tpath = direct\n\turl = {}\n[submodule \"relative\"]\n\tpath = relative\n\turl = ../library.git\n",
        upstream.url("team/library.git")
    );
    let script = format!(
        "commit refs/heads/main\ncommitter C <c@example.com> 1700000001 +0000\ndata 3\nsub\nfrom refs/heads/main^0\n\
         M 100644 inline .gitmodules\ndata {}\n{modules}\nM 160000 {commit} direct\nM 160000 {commit} relative\n",
        modules.len()
    );
    project.fast_import(script.as_bytes()).await?;
    let yaml = [
        manifest("library", &upstream.url("team/library.git"), &[]),
        manifest("project", &upstream.url("team/project.git"), &[]),
    ]
    .join("---\n");
    let agent = agent().start_with(&[("all.yaml", &yaml)]).await?;
    let repos = [repo_id(&upstream.url("team/library.git")), repo_id(&upstream.url("team/project.git"))];
    agent.wait_ready(&repos.each_ref().map(String::as_str)).await?;
    upstream.clear_log();
    let git = Git::new()?.with_config(
        &format!("url.http://{}/git/{}/.insteadOf", agent.git_address()?, upstream.address()),
        &format!("http://{}/", upstream.address()),
    );
    let place = dir.path().join("clone");
    let clone = git.clone_repo(&upstream.url("team/project.git"), &place, &["--recurse-submodules"]).await?;
    let status = clone.git(&["submodule", "status"]).await?;
    assert_eq!(status.matches(&commit).count(), 2, "{status}");
    assert!(!status.contains('-'), "all are checked out: {status}");
    for repo in ["team/library.git", "team/project.git"] {
        assert_eq!(upstream.count(repo, Operation::Fetch), 0, "{repo} came from the upstream");
    }
    Ok(())
}
