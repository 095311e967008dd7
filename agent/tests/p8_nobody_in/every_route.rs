//! Every harm that an upstream can do, on every route: nobody else is asked, nothing but git's and LFS's own answers comes
//! back, and the agent goes on. Routes are the router's, harms are the hostile server's: what is added is tried.

mod stage;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tarn_testkit::agent::PATIENCE;
use tarn_testkit::eventually::eventually;
use tarn_testkit::hostile::{Harm, Place};
use tarn_testkit::upstream::Operation;
use tarn_testkit::wire::End;

use self::stage::{QUICK, Right, Stage};
use crate::p4_never_stuck::files;

/// Mirrors of the hostile server on one agent: one waits while others work.
const LANES: [&str; 3] = ["one", "two", "three"];

/// All that is done without holding a request open.
fn quick() -> Vec<Harm> {
    Harm::all().into_iter().filter(|harm| !harm.holds()).collect()
}

/// Whether a harm is tried where each attempt costs much: of all places, one.
fn is_example(harm: &Harm) -> bool {
    harm.place().is_none_or(|place| place == Place::Loopback)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_harm_on_any_route_of_a_mirror_that_is_here_shows_anything_or_stops_the_agent() -> Result<()> {
    let mut stage = Stage::new().await?;
    stage.declare(LANES.into_iter())?;
    for lane in LANES {
        stage.learn(lane).await?;
    }
    let mut rounds = Vec::new();
    for harm in quick() {
        // The agent asks for capabilities when all else has failed: they are harmed with the rest.
        for on in std::iter::once(None).chain(Operation::ALL.map(Some)) {
            // Of all places, one is enough for each kind of request: they are judged in one place.
            let tried = is_example(&harm) || matches!(on, None | Some(Operation::LfsObject));
            let concerned = on.is_none_or(|on| harm.concerns(on));
            if on != Some(Operation::Advertise) && concerned && tried {
                rounds.push((harm, on));
            }
        }
    }
    let lanes = LANES.iter().enumerate().map(|(at, lane)| {
        let (stage, rounds) = (&stage, rounds.iter().skip(at).step_by(LANES.len()));
        async move {
            for (harm, on) in rounds {
                let what = format!("{harm:?} on {on:?}");
                round(stage, lane, *harm, *on).await.context(what)?;
            }
            anyhow::Ok(())
        }
    });
    join_all(lanes).await.into_iter().collect::<Result<()>>()?;
    let met: Vec<_> = LANES.iter().flat_map(|lane| stage.hostile.met(lane)).collect();
    for on in Operation::ALL {
        ensure!(met.iter().any(|(of, _)| *of == on), "no {on:?} was ever harmed");
    }
    stage.expect_clean().await?;
    for lane in LANES {
        stage.expect_mended(lane).await?;
    }
    Ok(())
}

/// One harm to one kind of request, or to all: every question is asked at once.
async fn round(stage: &Stage, lane: &str, harm: Harm, on: Option<Operation>) -> Result<()> {
    let met = stage.hostile.met(lane).len();
    stage.hostile.switch(lane, on, harm);
    let name = format!("{harm:?}-{on:?}");
    let mut questions = stage.questions(&name);
    if on == Some(Operation::Fetch) {
        questions.push(stage.unknown(&name));
    }
    // Credentials that are refused again and again are a guess, and not tried any more.
    questions.retain(|question| !question.known || harm != Harm::Refusal);
    let asked = questions.iter().map(|question| async move {
        let heard = question.ask(stage, lane, QUICK).await?;
        let judged = stage.judge(lane, question, Some(harm), &heard).await;
        judged.with_context(|| format!("{lane}: {}", question.name()))?;
        let answer = heard.answer(question.method).await;
        let fresh = answer.as_ref().and_then(|answer| answer.header("tarn-freshness"));
        let looks = on.is_none_or(|on| on == Operation::LsRefs) && harm.concerns(Operation::LsRefs);
        let lies = looks && !harm.is_gits() && question.right == Right::AsHonest;
        ensure!(!lies || fresh != Some("verified"), "{}: called verified", question.name());
        anyhow::Ok(())
    });
    join_all(asked).await.into_iter().collect::<Result<()>>()?;
    // An object that is not here may not be asked for at once.
    ensure!(on == Some(Operation::Fetch) || stage.hostile.met(lane).len() > met, "no request met it");
    stage.hostile.repent(lane);
    stage.expect_well("beside").await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_harm_on_any_route_before_a_mirror_is_here_shows_anything_or_stops_the_agent() -> Result<()> {
    // From the first word on, or once the refs are known.
    let everywhere =
        quick().into_iter().filter(|harm| harm.concerns(Operation::Advertise) || *harm == Harm::ManyRefs);
    let everywhere = everywhere.filter(is_example).map(|harm| (harm, None));
    let fetches = quick().into_iter().filter(|harm| harm.concerns(Operation::Fetch));
    let fetches = fetches.filter(is_example).map(|harm| (harm, Some(Operation::Fetch)));
    let all: Vec<(String, Harm, Option<Operation>)> = everywhere
        .chain(fetches)
        .enumerate()
        .map(|(at, (harm, on))| (format!("cold-{at}"), harm, on))
        .collect();
    let stage = Stage::new().await?;
    all.iter().for_each(|(name, harm, on)| stage.hostile.switch(name, *on, *harm));
    stage.declare(all.iter().map(|(name, ..)| name.as_str()))?;
    let rounds = stream::iter(all.iter().map(|(name, harm, on)| {
        let stage = &stage;
        async move {
            let questions = stage.questions(name);
            let asked = questions.iter().map(|question| async move {
                let heard = question.ask(stage, name, QUICK).await?;
                let judged = stage.judge(name, question, Some(*harm), &heard).await;
                judged.with_context(|| format!("{harm:?} on {on:?}: {}", question.name()))
            });
            join_all(asked).await.into_iter().collect::<Result<()>>()?;
            stage.expect_well(&format!("{harm:?} on {on:?}")).await
        }
    }));
    rounds.buffer_unordered(4).try_collect::<Vec<()>>().await?;
    stage.expect_clean().await?;
    for (name, ..) in all.iter().step_by(17) {
        stage.expect_mended(name).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pointers_name_is_bounded_whatever_the_upstream_sends() -> Result<()> {
    // What answers to batches do, the other tests try: there, pointers make no difference.
    let of = |harm: Harm| match harm {
        Harm::Href(_) => Operation::LfsBatch,
        _ => Operation::LfsObject,
    };
    let all = quick().into_iter().filter(is_example).filter(|harm| harm.concerns(of(*harm))).enumerate();
    let all: Vec<(String, Harm, Operation)> =
        all.map(|(at, harm)| (format!("pointer-{at}"), harm, of(harm))).collect();
    let stage = Stage::new().await?;
    all.iter().for_each(|(name, harm, on)| stage.hostile.switch(name, Some(*on), *harm));
    stage.declare(all.iter().map(|(name, ..)| name.as_str()))?;
    let archives = stream::iter(all.iter().map(|(name, harm, on)| {
        let stage = &stage;
        async move {
            let target = format!("{}/lfs-snapshot.tar.zst", stage.path(name));
            let what = format!("{harm:?} on {on:?}");
            // Of so many mirrors, not all are brought before anyone asks.
            let refs = format!("{}/info/refs?service=git-upload-pack", stage.path(name));
            eventually(PATIENCE, &what, async || {
                let answer = stage.agent.get(&refs).await?;
                ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
                Ok(())
            })
            .await?;
            eventually(3 * PATIENCE, &what, async || {
                let met = stage.hostile.met(name);
                ensure!(!met.is_empty(), "no request met it");
                Ok(())
            })
            .await?;
            let answer = stage.agent.get(&target).await?;
            let mislabelled = *harm == Harm::Mislabelled || harm.is_gits();
            ensure!(answer.status >= 400 || mislabelled, "{what}: {}", answer.status);
            stage.expect_well(&what).await
        }
    }));
    archives.buffer_unordered(4).try_collect::<Vec<()>>().await?;
    stage.expect_clean().await?;
    let incoming: u64 = files(&stage.agent.data().join("incoming"))
        .unwrap_or_default()
        .iter()
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    ensure!(incoming < 1 << 20, "{incoming} bytes are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_the_upstream_holds_open_end_and_hold_up_nobody_else() -> Result<()> {
    let harms: Vec<Harm> = Harm::all().into_iter().filter(|harm| harm.holds()).collect();
    let names: Vec<String> = harms.iter().map(|harm| format!("held-{harm:?}").to_lowercase()).collect();
    let mut stage = Stage::new().await?;
    stage.declare(names.iter().map(String::as_str))?;
    for name in &names {
        stage.learn(name).await?;
    }
    let held = harms.iter().zip(&names).map(|(harm, name)| {
        let stage = &stage;
        async move {
            stage.hostile.switch(name, None, *harm);
            let questions = stage.questions(name);
            let asked = questions.iter().map(|question| async move {
                // A push may take its upstream many minutes, and its refs come for as long as the client stays.
                let lasts = question.rest == "/git-receive-pack"
                    || question.right == Right::Push && *harm == Harm::Drip;
                let patience = if lasts { Duration::from_secs(5) } else { Duration::from_secs(100) };
                let mut heard = question.ask(stage, name, patience).await?;
                if lasts && heard.end == End::Late {
                    heard.end = End::Closed;
                }
                let judged = stage.judge(name, question, Some(*harm), &heard).await;
                judged.with_context(|| format!("{harm:?}: {}", question.name()))
            });
            join_all(asked).await.into_iter().collect::<Result<()>>()
        }
    });
    let beside = async {
        for name in &names {
            eventually(PATIENCE, "the first requests to be held", async || {
                ensure!(!stage.hostile.met(name).is_empty(), "none");
                Ok(())
            })
            .await?;
        }
        for _ in 0..5 {
            stage.expect_well("while requests are held").await?;
        }
        anyhow::Ok(())
    };
    let (held, beside) = tokio::join!(join_all(held), beside);
    beside?;
    held.into_iter().collect::<Result<()>>()?;
    stage.expect_clean().await?;
    for name in &names {
        stage.expect_mended(name).await?;
    }
    Ok(())
}
