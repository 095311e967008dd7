//! Pkt-lines as a client of protocol v2 writes and reads them.

use anyhow::{Context, Result, bail, ensure};

/// The longest packet there is, header included.
const LONGEST: usize = 65_520;

/// Adds a data packet.
pub(super) fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{:04x}{text}", text.len() + 4).as_bytes());
}

/// Adds a delimiter.
pub(super) fn delimiter(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0001");
}

/// Adds a flush.
pub(super) fn flush(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0000");
}

/// What four hexadecimal digits announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// The end of the answer.
    Flush,
    /// The end of a section.
    Delimiter,
    /// The end of a stateless answer that is not the last one.
    ResponseEnd,
    /// So many bytes of data.
    Data(usize),
}

/// Reads a header.
pub(super) fn header(digits: [u8; 4]) -> Result<Header> {
    let text = std::str::from_utf8(&digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let text =
        text.with_context(|| format!("not a pkt-line header: {:?}", digits.escape_ascii().to_string()))?;
    Ok(match usize::from_str_radix(text, 16)? {
        0 => Header::Flush,
        1 => Header::Delimiter,
        2 => Header::ResponseEnd,
        3 => bail!("a pkt-line of length 3"),
        length => {
            ensure!(length <= LONGEST, "a pkt-line of {length} bytes");
            Header::Data(length - 4)
        }
    })
}

/// Takes the first packet off a whole body: its data (none for the packets without), and what follows.
pub(super) fn split(body: &[u8]) -> Result<(Header, &[u8], &[u8])> {
    let (digits, rest) = body.split_first_chunk::<4>().context("the answer ends within a pkt-line header")?;
    let header = header(*digits)?;
    let length = if let Header::Data(length) = header { length } else { 0 };
    let (data, rest) = rest.split_at_checked(length).context("the answer ends within a pkt-line")?;
    Ok((header, data, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut body = Vec::new();
        line(&mut body, "command=ls-refs\n");
        delimiter(&mut body);
        flush(&mut body);
        assert_eq!(body, b"0014command=ls-refs\n00010000");
        let (first, data, rest) = split(&body).unwrap();
        assert_eq!((first, data), (Header::Data(16), &b"command=ls-refs\n"[..]));
        let (second, _, rest) = split(rest).unwrap();
        let (third, _, rest) = split(rest).unwrap();
        assert_eq!((second, third, rest), (Header::Delimiter, Header::Flush, &b""[..]));
    }

    #[test]
    fn broken_packets_are_refused() {
        for bad in [&b"00"[..], b"0003", b"+123", b"00zz", b"0008abc", b"fff5"] {
            assert!(split(bad).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
    }
}
