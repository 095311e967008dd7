//! A base's entries in packets, each read in its place: no byte is copied to be framed.

use std::{fs, io, os::unix::fs::FileExt, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, preadv2};

use super::{grid::Grid, proof::Proof};
use crate::{
    files::blocking,
    protocol::sideband::{self, HEAD, PIECE},
};

/// All of `file`, in packets; an error where a chunk is not what `proof` has seen.
pub(super) fn frames(
    proof: Arc<Proof>,
    file: Arc<fs::File>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let grid = Grid::of(proof.base());
    stream::try_unfold((proof, file, 0), move |(proof, file, number)| async move {
        let Some((from, length)) = grid.chunk(number) else { return Ok(None) };
        let frames = read(&file, from, length).await?;
        let pieces = frames.chunks(HEAD + PIECE).filter_map(|packet| packet.get(HEAD..));
        proof.compare(number, pieces)?;
        Ok(Some((frames, (proof, file, number + 1))))
    })
}

/// Reads so many bytes of the file into packets: at once where they are in the page cache, else on a thread that may block.
async fn read(file: &Arc<fs::File>, from: u64, length: usize) -> io::Result<Bytes> {
    let mut frames = BytesMut::zeroed(length + HEAD * length.div_ceil(PIECE));
    for packet in frames.chunks_mut(HEAD + PIECE) {
        let head = sideband::head(packet.len() - HEAD);
        packet.iter_mut().zip(head).for_each(|(to, byte)| *to = byte);
    }
    let mut places: Vec<IoSliceMut<'_>> = frames
        .chunks_mut(HEAD + PIECE)
        .filter_map(|packet| packet.get_mut(HEAD..))
        .map(IoSliceMut::new)
        .collect();
    match preadv2(file, &mut places, from, ReadWriteFlags::NOWAIT) {
        Ok(count) if count == length => return Ok(frames.freeze()),
        // The rest is not in the page cache; that it is shorter shows below.
        Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let file = file.clone();
    blocking(move || {
        let mut at = from;
        for place in frames.chunks_mut(HEAD + PIECE).filter_map(|packet| packet.get_mut(HEAD..)) {
            file.read_exact_at(place, at)?;
            at += place.len() as u64;
        }
        Ok(frames.freeze())
    })
    .await
}

/// The same bytes in pieces of one packet each, but for the last: how long the whole will be must not depend on how it is
/// read.
pub(super) fn rechunked<E: Send + 'static>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, E>> + Send {
    stream::try_unfold((Box::pin(pieces), BytesMut::new()), |(mut pieces, mut held)| async move {
        while held.len() < PIECE {
            match pieces.next().await {
                Some(piece) => held.extend_from_slice(&piece?),
                None if held.is_empty() => return Ok(None),
                None => break,
            }
        }
        let piece = held.split_to(held.len().min(PIECE)).freeze();
        Ok(Some((piece, (pieces, held))))
    })
}
