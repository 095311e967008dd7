//! An answer that is no file: what it is put together from, and how it is sent.
//!
//! ```text
//! header | the base's entries, byte for byte | the layer's entries | padding | hash of all that
//! ```
//!
//! A pack may hold more objects than were asked for, and its deltas may rest on any object in it. So one base serves
//! clients at whatever commit they ask for, and only the layer, what is new since, is made (docs/decisions/0040).
//!
//! The hash covers the header, and so begins anew with each number of objects. Small blobs fill the number up to one that
//! serves for many pushes, so that the base is hashed once for them all ([`Proof::total`]).
//!
//! What is sent of the base is compared with what was hashed, so that a pack which the disk damages ends an answer, and
//! no client takes it for whole.

mod frames;
mod grid;
mod proof;

use std::{fs, io, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use crate::{
    git::{
        Oid,
        base::{self, HEADER},
    },
    packs::{Pack, PackError},
    protocol::{pktline, sideband},
    spool::SpoolError,
};
use frames::{frames, rechunked};
pub use proof::Proof;

/// See the module.
pub struct Recipe {
    proof: Arc<Proof>,
    /// The objects of the layer, sorted.
    oids: Vec<Oid>,
    /// How many bytes the layer's entries take.
    layer: u64,
    /// Blobs that nobody wants, as entries.
    padding: Bytes,
    count: u32,
    trailer: OnceCell<Bytes>,
}

impl Recipe {
    /// Of a base and a layer of these objects, sorted, in a thin pack of so many bytes; both are 0 where there is none. With
    /// `searched` it can say what it holds.
    ///
    /// # Errors
    /// The base's index cannot be read.
    pub fn new(proof: Arc<Proof>, oids: Vec<Oid>, bytes: u64, searched: bool) -> io::Result<Self> {
        let base = proof.base();
        let added = u32::try_from(oids.len()).map_err(io::Error::other)?;
        let count = proof.total(added);
        let padding = proof::padding(base, &oids, count - base.index.count() - added)?;
        let around = HEADER + base.bytes - base.end();
        let layer = bytes.saturating_sub(around);
        let oids = if searched { oids } else { Vec::new() };
        Ok(Self { proof, oids, layer, padding, count, trailer: OnceCell::new() })
    }

    /// The base, and what is known of it.
    pub fn proof(&self) -> &Arc<Proof> {
        &self.proof
    }

    /// How many objects it holds.
    pub fn count(&self) -> u64 {
        self.count.into()
    }

    /// How many bytes were made for it: those of its layer.
    pub fn layer(&self) -> u64 {
        self.layer
    }

    /// Whether all `wants` are in it, and with them all that they reach. May block.
    ///
    /// # Errors
    /// The base's index cannot be read.
    pub fn holds(&self, wants: &[Oid]) -> io::Result<bool> {
        let lacking = self.proof.base().index.lacks(wants)?;
        Ok(lacking.iter().all(|oid| self.oids.binary_search(oid).is_ok()))
    }

    /// How many bytes an answer takes that begins with so many.
    pub fn length(&self, head: usize) -> u64 {
        let base = self.proof.base();
        let hash = base.bytes - base.end();
        let pieces = [HEADER, base.end() - HEADER, self.layer, self.padding.len() as u64, hash];
        let framed: u64 = pieces.into_iter().map(sideband::framed).sum();
        head as u64 + framed + pktline::FLUSH.len() as u64
    }

    /// The answer that begins with `head`: the base's entries from `file`, which is the base's pack, and the layer's from
    /// `layer`, where it has one.
    pub fn read(
        self: Arc<Self>,
        head: &[u8],
        file: Arc<fs::File>,
        layer: Option<Pack>,
    ) -> impl Stream<Item = Result<Bytes, PackError>> + Send + use<> {
        let ready = |bytes: Bytes| stream::once(async move { Ok(bytes) });
        let header = [head, &*sideband::data(&self.header())].concat();
        let base = frames(self.proof.clone(), file.clone()).map_err(PackError::from);
        let entries = layer.iter().map(|layer| entries(layer, self.layer)).collect::<Vec<_>>();
        let entries = rechunked(stream::iter(entries).flatten()).map_ok(|piece| sideband::data(&piece));
        let padding = sideband::data(&self.padding);
        let end = stream::once(async move {
            let trailer = self.trailer(&file, layer.as_ref()).await?;
            Ok(Bytes::from([&*sideband::data(&trailer), pktline::FLUSH].concat()))
        });
        ready(header.into()).chain(base).chain(entries).chain(ready(padding)).chain(end)
    }

    fn header(&self) -> [u8; HEADER as usize] {
        base::header(self.count)
    }

    /// Finds the answer's hash, so that the first who asks need not wait for it at the end.
    ///
    /// # Errors
    /// A file cannot be read, or the base is damaged.
    pub async fn trailer(&self, file: &Arc<fs::File>, layer: Option<&Pack>) -> Result<Bytes, PackError> {
        let find = || async {
            let Some(mut hash) = self.proof.prefix(self.count, file).await? else {
                return Ok(self.proof.own(file)?);
            };
            if let Some(layer) = layer {
                let mut entries = Box::pin(entries(layer, self.layer));
                while let Some(piece) = entries.try_next().await? {
                    hash.update(&piece);
                }
            }
            hash.update(&self.padding);
            Ok(hash.finish())
        };
        self.trailer.get_or_try_init(find).await.cloned()
    }
}

/// Whether a whole layer says that it holds so many objects.
///
/// # Errors
/// It cannot be read.
pub async fn counts(layer: &Pack, objects: usize) -> Result<bool, PackError> {
    let header = layer
        .read_part(0..HEADER)
        .try_fold(Vec::new(), async |all, piece| Ok([all, piece.to_vec()].concat()));
    let header = header.await?;
    Ok(u32::try_from(objects).is_ok_and(|objects| header == base::header(objects)))
}

/// The entries of a thin pack, which take so many bytes.
fn entries(layer: &Pack, bytes: u64) -> impl Stream<Item = Result<Bytes, PackError>> + Send + use<> {
    layer.read_part(HEADER..HEADER + bytes)
}

/// Whether an answer broke off because its base is not as it was.
pub fn is_damaged(error: &PackError) -> bool {
    matches!(error, SpoolError::Disk(error) if error.kind() == io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests;
