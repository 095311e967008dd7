//! Every kind of clone and fetch, with every protocol, compared with the same done at the upstream.

use anyhow::{Result, ensure};
use tarn_testkit::git::{Git, Repo};

use crate::scene::Scene;

const VERSIONS: [&str; 3] = ["0", "1", "2"];

/// A history of ten commits with dates, a merged side branch, tags, and a file large enough to filter.
async fn scene() -> Result<Scene> {
    let scene = Scene::prepared(&[], async |_, origin: &Repo| {
        let mut script = String::new();
        for number in 1..=10 {
            let date = 1_700_000_000 + number * 86_400;
            script.push_str(&format!(
                "commit refs/heads/main\nmark :{number}\ncommitter C <c@example.com> {date} +0000\n\
                 data 3\nn{number:02}\n"
            ));
            if number == 1 {
                script.push_str("from refs/heads/main^0\n");
            }
            let content = format!("{number}\n").repeat(2000);
            script.push_str(&format!("M 100644 inline dir/{number}\ndata {}\n{content}\n", content.len()));
        }
        for (branch, from) in [("topic", 4), ("old", 2)] {
            script.push_str(&format!(
                "commit refs/heads/{branch}\ncommitter C <c@example.com> 1701000000 +0000\ndata 5\ntopic\n\
                 from :{from}\nM 100644 inline {branch}\ndata 2\nt\n\n"
            ));
        }
        origin.fast_import(script.as_bytes()).await?;
        origin.annotated_tag("v1", "main~5").await?;
        origin.tag("light", "main~2").await
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

/// Runs the same work against Tarn and the upstream with every protocol: the outcomes must be equal.
async fn alike<T: PartialEq + std::fmt::Debug>(
    work: impl AsyncFn(&Scene, &Git, &str, std::path::PathBuf) -> Result<T>,
) -> Result<()> {
    let scene = scene().await?;
    for version in VERSIONS {
        let git = scene.git.clone().with_config("protocol.version", version);
        let through = work(&scene, &git, &scene.url()?, scene.place(&format!("tarn-{version}"))).await?;
        let direct =
            work(&scene, &git, &scene.upstream.url("a.git"), scene.place(&format!("direct-{version}")))
                .await?;
        ensure!(through == direct, "protocol {version}: {through:?} is not {direct:?}");
    }
    Ok(())
}

/// What a clone holds: its refs, its commits and its shallow boundary.
async fn holdings(clone: &Repo) -> Result<Vec<String>> {
    clone.fsck().await?;
    let shallow = std::fs::read_to_string(clone.git_dir().join("shallow")).unwrap_or_default();
    let mut shallow: Vec<_> = shallow.lines().map(str::to_owned).collect();
    shallow.sort();
    let refs = clone.git(&["for-each-ref", "--format=%(refname) %(objectname) %(symref)"]).await?;
    let commits = clone.git(&["rev-list", "--all"]).await?;
    let status = clone.git(&["status", "--porcelain", "--branch"]).await?;
    Ok(vec![refs, commits, shallow.join(" "), status])
}

#[tokio::test]
async fn full_clone_equals_the_upstreams() -> Result<()> {
    alike(async |_, git, url, place| holdings(&git.clone_repo(url, &place, &[]).await?).await).await
}

#[tokio::test]
async fn mirror_clone_has_every_ref() -> Result<()> {
    alike(async |_, git, url, place| {
        let clone = git.clone_repo(url, &place, &["--mirror"]).await?;
        clone.fsck().await?;
        clone.refs().await
    })
    .await
}

#[tokio::test]
async fn single_branch_clone_has_one_branch_and_its_tags() -> Result<()> {
    alike(async |_, git, url, place| {
        holdings(&git.clone_repo(url, &place, &["--single-branch", "--branch=topic"]).await?).await
    })
    .await
}

#[tokio::test]
async fn clone_of_a_tag_detaches_head_there() -> Result<()> {
    alike(async |_, git, url, place| {
        let clone = git.clone_repo(url, &place, &["--branch=v1", "--depth=1"]).await?;
        ensure!(clone.rev_parse("HEAD").await? == clone.rev_parse("v1^{commit}").await?);
        holdings(&clone).await
    })
    .await
}

#[tokio::test]
async fn clone_without_tags_has_none() -> Result<()> {
    alike(async |_, git, url, place| {
        let clone = git.clone_repo(url, &place, &["--no-tags"]).await?;
        ensure!(clone.git(&["tag", "--list"]).await?.is_empty());
        clone.fetch(&["--tags", "origin"]).await?;
        ensure!(!clone.git(&["tag", "--list"]).await?.is_empty());
        holdings(&clone).await
    })
    .await
}

#[tokio::test]
async fn shallow_clone_is_deepened_and_made_whole() -> Result<()> {
    alike(async |_, git, url, place| {
        let clone = git.clone_repo(url, &place, &["--depth=1"]).await?;
        ensure!(clone.git(&["rev-list", "--count", "HEAD"]).await? == "1");
        let mut seen = holdings(&clone).await?;
        let deepen = |args: &'static [&'static str]| {
            let clone = clone.clone();
            let git = git.clone();
            async move {
                let dir = clone.path().to_string_lossy().into_owned();
                let all = ["-C", &dir, "fetch", "--quiet"].into_iter().chain(args.iter().copied());
                git.run(all).await?;
                holdings(&clone).await
            }
        };
        seen.extend(deepen(&["--depth=3"]).await?);
        ensure!(clone.git(&["rev-list", "--count", "HEAD"]).await? == "3");
        seen.extend(deepen(&["--deepen=2"]).await?);
        ensure!(clone.git(&["rev-list", "--count", "HEAD"]).await? == "5");
        seen.extend(deepen(&["--unshallow"]).await?);
        ensure!(clone.git(&["rev-parse", "--is-shallow-repository"]).await? == "false");
        Ok(seen)
    })
    .await
}

#[tokio::test]
async fn shallow_clones_by_date_and_by_ref_have_the_same_boundary() -> Result<()> {
    alike(async |_, git, url, place| {
        let since = git.clone_repo(url, &place.join("since"), &["--shallow-since=2023-11-20"]).await?;
        let mut seen = holdings(&since).await?;
        let exclude = git.clone_repo(url, &place.join("exclude"), &["--shallow-exclude=v1"]).await?;
        seen.extend(holdings(&exclude).await?);
        Ok(seen)
    })
    .await
}

#[tokio::test]
async fn push_after_a_shallow_clone_is_fetched_as_one_step() -> Result<()> {
    let scene = scene().await?;
    let clone = scene.clone("clone", &["--depth=1"]).await?;
    let pushed = scene.origin.commit("main", &[("new", "new")]).await?;
    clone.fetch(&["origin"]).await?;
    assert_eq!(clone.rev_parse("origin/main").await?, pushed);
    assert_eq!(clone.git(&["rev-list", "--count", "origin/main"]).await?, "2");
    clone.fsck().await
}

#[tokio::test]
async fn blobless_and_treeless_clones_fetch_what_a_checkout_needs() -> Result<()> {
    for filter in [
        "--filter=blob:none",
        "--filter=tree:0",
        "--filter=blob:limit=1k",
        "--filter=combine:blob:none+tree:3",
    ] {
        alike(async |_, git, url, place| {
            let name = filter.rsplit_once('=').map_or(filter, |(_, name)| name).replace([':', '+'], "-");
            let place = place.join(name);
            let clone = git.clone_repo(url, &place, &[filter, "--no-checkout"]).await?;
            let missing = clone.git(&["rev-list", "--objects", "--all", "--missing=print"]).await?;
            let missing = missing.lines().filter(|line| line.starts_with('?')).count();
            ensure!(missing > 0, "{filter} left nothing out");
            // The checkout of HEAD and of an older commit fetches lazily.
            clone.git(&["checkout", "--quiet", "main"]).await?;
            clone.git(&["checkout", "--quiet", "main~6"]).await?;
            ensure!(clone.git(&["status", "--porcelain"]).await?.is_empty());
            clone.git(&["log", "--stat", "--oneline", "-3"]).await
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn any_commit_of_the_history_can_be_fetched_by_its_id() -> Result<()> {
    alike(async |scene, git, url, place| {
        let clone = Repo::init_bare(&place).await?;
        let dir = clone.path().to_string_lossy().into_owned();
        for revision in ["main~4", "topic", "v1"] {
            let oid = scene.origin.rev_parse(revision).await?;
            git.run(["-C", &dir, "fetch", "--quiet", "--depth=1", url, &oid]).await?;
            ensure!(clone.rev_parse("FETCH_HEAD").await? == oid, "{revision}");
        }
        clone.git(&["rev-list", "--objects", "FETCH_HEAD"]).await
    })
    .await
}

#[tokio::test]
async fn a_commit_that_only_the_upstream_has_is_brought() -> Result<()> {
    let scene = scene().await?;
    // No ref that is mirrored reaches it.
    let main = scene.origin.rev_parse("main").await?;
    let hidden =
        scene.origin.git(&["commit-tree", "-p", &main, "-m", "hidden", &format!("{main}^{{tree}}")]).await?;
    scene.origin.set_ref("refs/pull/7/head", &hidden).await?;
    let clone = scene.clone("clone", &[]).await?;
    clone.fetch(&["origin", &hidden]).await?;
    assert_eq!(clone.rev_parse("FETCH_HEAD").await?, hidden);
    Ok(())
}

#[tokio::test]
async fn an_object_that_nobody_has_is_refused_in_words_that_git_shows() -> Result<()> {
    let scene = scene().await?;
    for version in VERSIONS {
        let git = scene.git.clone().with_config("protocol.version", version);
        let clone = git.clone_repo(&scene.url()?, &scene.place(&format!("clone-{version}")), &[]).await?;
        let dir = clone.path().to_string_lossy().into_owned();
        let nobody = "1234567890123456789012345678901234567890";
        let output = git.attempt(["-C", &dir, "fetch", "origin", nobody]).await?;
        assert!(!output.status.success());
        assert!(output.stderr.contains(nobody), "protocol {version}: {}", output.stderr);
        let shown = output.stderr.contains("not our ref")
            || output.stderr.contains("ObjectNotFound")
            || output.stderr.contains("unadvertised object");
        assert!(shown, "protocol {version}: {}", output.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_fetch_with_many_local_commits_negotiates_to_the_same_end() -> Result<()> {
    alike(async |scene, git, url, place| {
        let clone = git.clone_repo(url, &place, &[]).await?;
        let dir = clone.path().to_string_lossy().into_owned();
        // So many haves that git compresses its request and asks in several rounds.
        let mut script = String::new();
        for number in 0..400 {
            script.push_str(&format!(
                "commit refs/heads/mine\ncommitter C <c@example.com> {} +0000\ndata 4\nmine\n",
                1_710_000_000 + number
            ));
            if number == 0 {
                script.push_str("from refs/heads/main^0\n");
            }
        }
        clone.fast_import(script.as_bytes()).await?;
        let pushed = scene.origin.commit("main", &[("more", url)]).await?;
        git.run(["-C", &dir, "fetch", "--quiet", url, "main"]).await?;
        ensure!(clone.rev_parse("FETCH_HEAD").await? == pushed);
        clone.fsck().await
    })
    .await
}

#[tokio::test]
async fn a_negotiation_without_a_pack_names_the_common_commits() -> Result<()> {
    let scene = scene().await?;
    let ask = async |url: &str, place: &str| {
        let git = scene.git.clone().with_config("protocol.version", "2");
        let clone = git.clone_repo(url, &scene.place(place), &["--branch=topic"]).await?;
        clone.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
        let dir = clone.path().to_string_lossy().into_owned();
        let args = ["-C", &dir, "fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin"];
        anyhow::Ok(git.run(args).await?.text())
    };
    let through = ask(&scene.url()?, "tarn").await?;
    assert_eq!(through, ask(&scene.upstream.url("a.git"), "direct").await?);
    assert!(through.contains(&scene.origin.rev_parse("topic").await?), "{through}");
    Ok(())
}

#[tokio::test]
async fn the_url_works_with_and_without_its_ending() -> Result<()> {
    let scene = scene().await?;
    let wanted = scene.origin.refs().await?;
    let url = scene.url()?;
    for url in [url.clone(), format!("{url}.git"), format!("{url}/"), format!("{url}.git/")] {
        assert_eq!(scene.git.ls_remote(&url).await?, wanted, "{url}");
    }
    let clone = scene.git.clone_repo(&format!("{url}.git"), &scene.place("clone"), &[]).await?;
    clone.fsck().await
}
