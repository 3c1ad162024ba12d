//! SPDY/3.1 frames: parsing and writing, with the header compression both directions share per connection.
//!
//! Only what Kubernetes clients use: SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY and data. Flow control is
//! left out, as in the clients' own library.

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longer frames are refused; clients send at most 32 KiB.
const MAX_FRAME: usize = 1024 * 1024;
/// Decompressed headers of one stream.
const MAX_HEADERS: usize = 64 * 1024;
const VERSION: u16 = 3;

/// Names that the dictionary begins with, each behind its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
    authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
    content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range \
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after \
    server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version \
    HTTP/1.1 url public set-cookie keep-alive origin";
/// What follows without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative \
    Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server \
    Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, \
    Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The zlib dictionary of SPDY/3.
fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        let word = word.replace('_', " ");
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

pub(super) type Headers = Vec<(String, String)>;

/// A frame this side reads or writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        id: u32,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Data {
        id: u32,
        data: Bytes,
        fin: bool,
    },
    /// Understood and of no consequence (SETTINGS, WINDOW_UPDATE, HEADERS).
    Other,
}

/// Reads frames; keeps the decompression state of the connection.
pub(super) struct Reader<R> {
    io: R,
    inflate: Decompress,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R) -> Self {
        Self {
            io,
            inflate: Decompress::new(true),
        }
    }

    /// The next frame; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, String> {
        let mut head = [0; 8];
        match self.io.read_exact(&mut head).await {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e.to_string()),
        }
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if length > MAX_FRAME {
            return Err(format!(
                "a SPDY frame of {length} bytes is longer than the limit of {MAX_FRAME}"
            ));
        }
        let mut body = vec![0; length];
        self.io
            .read_exact(&mut body)
            .await
            .map_err(|e| e.to_string())?;
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if word >> 31 == 0 {
            return Ok(Some(Frame::Data {
                id: word,
                data: body.into(),
                fin: flags & 1 != 0,
            }));
        }
        self.control(word, flags, &body).map(Some)
    }

    fn control(&mut self, word: u32, flags: u8, body: &[u8]) -> Result<Frame, String> {
        if (word >> 16) & 0x7fff != u32::from(VERSION) {
            return Err(format!(
                "SPDY version {} is not spoken, only {VERSION}",
                (word >> 16) & 0x7fff
            ));
        }
        let number = |at: usize| -> Result<u32, String> {
            let bytes = body
                .get(at..at + 4)
                .ok_or("a SPDY control frame is too short")?;
            Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & 0x7fff_ffff)
        };
        Ok(match word & 0xffff {
            1 => {
                let block = body.get(10..).ok_or("a SYN_STREAM frame is too short")?;
                Frame::SynStream {
                    id: number(0)?,
                    headers: self.headers(block)?,
                    fin: flags & 1 != 0,
                }
            }
            2 | 8 => {
                // Their headers do not matter, but the compression state moves on.
                self.headers(body.get(4..).ok_or("a SPDY header frame is too short")?)?;
                Frame::Other
            }
            3 => Frame::Reset { id: number(0)? },
            6 => Frame::Ping { id: number(0)? },
            7 => Frame::GoAway,
            _ => Frame::Other,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, String> {
        let plain = self.inflate(block)?;
        let count = plain
            .get(..4)
            .map_or(0, |c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
        let mut rest = plain.get(4..).unwrap_or_default();
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = text(&mut rest)?.to_ascii_lowercase();
            headers.push((name, text(&mut rest)?));
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(1024);
        loop {
            if out.len() == out.capacity() {
                out.reserve(1024);
            }
            if out.len() > MAX_HEADERS {
                return Err(format!(
                    "SPDY headers of one stream exceed {MAX_HEADERS} bytes"
                ));
            }
            let before = self.inflate.total_in();
            let result = self
                .inflate
                .decompress_vec(input, &mut out, FlushDecompress::Sync);
            input = &input[(self.inflate.total_in() - before) as usize..];
            match result {
                Ok(_) if input.is_empty() && out.len() < out.capacity() => return Ok(out),
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&dictionary())
                        .map_err(|e| e.to_string())?;
                }
                Err(e) => return Err(format!("a SPDY header block cannot be decompressed: {e}")),
            }
        }
    }
}

/// One length-prefixed text of a header block.
fn text(rest: &mut &[u8]) -> Result<String, String> {
    let short = "a SPDY header block ends early";
    let (length, tail) = rest.split_at_checked(4).ok_or(short)?;
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    let (value, tail) = tail.split_at_checked(length).ok_or(short)?;
    *rest = tail;
    Ok(String::from_utf8_lossy(value).into_owned())
}

/// Writes frames; keeps the compression state.
pub(super) struct Writer {
    deflate: Compress,
}

impl Writer {
    pub(super) fn new() -> Result<Self, String> {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate
            .set_dictionary(&dictionary())
            .map_err(|e| e.to_string())?;
        Ok(Self { deflate })
    }

    pub(super) fn encode(&mut self, frame: &Frame) -> Result<Vec<u8>, String> {
        Ok(match frame {
            Frame::Data { id, data, fin } => {
                let mut out = Vec::with_capacity(8 + data.len());
                out.extend_from_slice(&id.to_be_bytes());
                push_length(&mut out, u8::from(*fin), data.len());
                out.extend_from_slice(data);
                out
            }
            Frame::SynReply { id } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend(self.headers(&[])?);
                control(2, 0, &body)
            }
            Frame::SynStream { id, headers, fin } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                body.extend(self.headers(headers)?);
                control(1, u8::from(*fin), &body)
            }
            Frame::Reset { id } => control(3, 0, &[id.to_be_bytes(), 1u32.to_be_bytes()].concat()),
            Frame::Ping { id } => control(6, 0, &id.to_be_bytes()),
            Frame::GoAway => control(7, 0, &[0; 8]),
            Frame::Other => Vec::new(),
        })
    }

    fn headers(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, String> {
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        let mut plain = length(headers.len()).to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&length(text.len()));
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut input = plain.as_slice();
        loop {
            if out.len() == out.capacity() {
                out.reserve(256);
            }
            let before = self.deflate.total_in();
            self.deflate
                .compress_vec(input, &mut out, FlushCompress::Sync)
                .map_err(|e| e.to_string())?;
            input = &input[(self.deflate.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    push_length(&mut out, flags, body.len());
    out.extend_from_slice(body);
    out
}

fn push_length(out: &mut Vec<u8>, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&[flags, length[1], length[2], length[3]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[tokio::test]
    async fn frames_round_trip() {
        let headers = |n: u8| {
            vec![
                ("streamtype".to_owned(), "data".to_owned()),
                ("port".to_owned(), n.to_string()),
            ]
        };
        let frames = [
            Frame::SynStream {
                id: 1,
                headers: headers(1),
                fin: false,
            },
            Frame::SynStream {
                id: 3,
                headers: headers(2),
                fin: true,
            },
            Frame::Data {
                id: 1,
                data: Bytes::from_static(b"hello"),
                fin: true,
            },
            Frame::Ping { id: 7 },
            Frame::Reset { id: 3 },
            Frame::GoAway,
        ];
        let mut writer = Writer::new().unwrap();
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|f| writer.encode(f).unwrap())
            .collect();
        let mut reader = Reader::new(bytes.as_slice());
        for frame in frames {
            assert_eq!(reader.next().await.unwrap(), Some(frame));
        }
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[
                0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2,
            ],
        ] {
            assert!(Reader::new(bytes).next().await.is_err());
        }
    }
}
