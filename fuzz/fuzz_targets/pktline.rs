//! Packet lines: what is read and written again is the same bytes; what is written is read back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tarn_agent::protocol::pktline::{FLUSH, MAX_DATA, Packet, PacketError, Packets, error, write};

fuzz_target!(|data: &[u8]| {
    read_and_write_again(data);
    write_and_read_back(data);
});

fn read_and_write_again(data: &[u8]) {
    let mut packets = Packets::new(data);
    let (mut out, mut broken, mut read) = (Vec::new(), None, Vec::new());
    for packet in packets.by_ref() {
        read.extend(packet);
        match packet {
            Ok(Packet::Data(line)) => write(&mut out, &[line]),
            Ok(Packet::Flush) => out.extend_from_slice(FLUSH),
            Ok(Packet::Delimiter) => out.extend_from_slice(b"0001"),
            Ok(Packet::ResponseEnd) => out.extend_from_slice(b"0002"),
            Err(error) => broken = Some(error),
        }
    }
    assert_eq!(Packets::new(&out).collect::<Result<Vec<_>, _>>(), Ok(read));
    // Git writes lengths in lower case and reads either: the only thing that may differ.
    let whole = &data[..out.len()];
    assert!(out.eq_ignore_ascii_case(whole), "{}", out.escape_ascii());
    assert_eq!(packets.rest(), b"", "nothing comes after the end or an error");
    match broken {
        Some(PacketError::BadLength { at } | PacketError::Truncated { at }) => assert_eq!(at, out.len()),
        None => assert_eq!(whole, data),
    }
}

fn write_and_read_back(data: &[u8]) {
    // The first byte makes one line in a few longer than a packet can be.
    let times = if data.first() == Some(&0xff) { MAX_DATA / data.len() + 1 } else { 1 };
    let long = data.repeat(times);
    let (one, two) = long.split_at(long.len() / 3);
    let mut out = Vec::new();
    write(&mut out, &[one, two]);
    write(&mut out, &[]);
    out.extend(error(&String::from_utf8_lossy(&long)));
    let cut = &long[..long.len().min(MAX_DATA)];
    let packets: Vec<_> = Packets::new(&out).collect();
    let [Ok(Packet::Data(line)), Ok(Packet::Data(b"")), Ok(Packet::Data(error))] = packets.as_slice() else {
        panic!("three were written, these are read: {packets:?}")
    };
    assert_eq!(*line, cut);
    assert!(error.starts_with(b"ERR ") && error.len() <= MAX_DATA);
}
