//! One stream of an answer that Tarn has already, beside nginx, which serves the same bytes from a file.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::load::{CLONE_PREFIXES, Client, Depth, Download};
use tarn_testkit::measure::Server;
use tarn_testkit::nginx::Sendfile;

use crate::scenario::Sample;
use crate::side::{Side, SideName, Staleness};

/// Answers read one after the other for one measurement: one alone takes less than 0.2 s.
const ANSWERS: usize = 12;

/// nginx and the answer it serves.
#[derive(Debug)]
pub(crate) struct Stream {
    nginx: Server,
    url: String,
    wants: Vec<String>,
    bytes: u64,
}

impl Stream {
    /// Keeps the answer to a full fetch of these objects, or else of all refs, and lets nginx serve it.
    pub(super) async fn set(
        nginx: &Path,
        sendfile: Sendfile,
        wants: Option<Vec<String>>,
        tarn: &Side,
        work: &Path,
    ) -> Result<Self> {
        let mut client = Client::new(tarn.url(Staleness::None))?;
        let wants = match wants {
            Some(wants) => wants,
            None => client.ls_refs(&CLONE_PREFIXES).await?.set.wants(),
        };
        let mut file = File::create(work.join("answer"))?;
        let pack = Download::Pack { wants: &wants, depth: Depth::Full };
        let answer = client.download(pack, |piece| Ok(file.write_all(piece)?)).await?;
        drop(file);

        let (server, url) =
            tarn_testkit::nginx::serve(nginx, sendfile, work, "/answer", answer.bytes).await?;
        Ok(Self { nginx: server, url, wants, bytes: answer.bytes })
    }

    /// Reads the answer some times over one connection.
    pub(super) async fn measure(&self, name: SideName, tarn: &Side) -> Result<Sample> {
        let (server, url, what) = match name {
            SideName::Baseline => (&self.nginx, self.url.as_str(), Download::File("/answer")),
            SideName::Tarn => {
                let pack = Download::Pack { wants: &self.wants, depth: Depth::Full };
                (&tarn.server, tarn.url(Staleness::None), pack)
            }
        };
        let mut client = Client::new(url)?;
        let work = async {
            let mut taken = Duration::ZERO;
            for _ in 0..ANSWERS {
                let answer = client.download(what, |_| Ok(())).await?;
                ensure!(answer.bytes == self.bytes, "{} bytes, not {}", answer.bytes, self.bytes);
                taken += answer.total;
            }
            Ok(taken)
        };
        let (taken, usage) = server.measure(work).await?;
        let bytes = self.bytes as f64 * ANSWERS as f64;
        let figures = vec![
            bytes / 1e6 / taken.as_secs_f64(),
            usage.cpu.as_secs_f64() * 1e9 / bytes,
            usage.client_cpu.as_secs_f64() * 1e9 / bytes,
        ];
        Ok(Sample { figures, objects: None })
    }
}
