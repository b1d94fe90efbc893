//! Asks another program for its figures: one GET request, within a time and a length that whoever answers cannot stretch.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest answer in bytes, its head included: a thousand users with long names.
const ANSWER_LEN_MAX: usize = 4 << 20;
/// Most header fields of an answer.
const FIELDS_MAX: usize = 32;
/// Bytes that are asked of the kernel at a time.
const PART_LEN: usize = 64 << 10;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 and the like.
    pub code: u16,
    /// What follows the head.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// Nobody is there, or it cannot be reached.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// The answer was not complete in time.
    #[error("it did not answer within {:.1} s", .0.as_secs_f64())]
    Slow(Duration),
    /// The answer has no end, or one that is too far away.
    #[error("it answers more than {} MiB", ANSWER_LEN_MAX >> 20)]
    Long,
    /// It is no answer, or only the beginning of one.
    #[error("it does not speak HTTP, or ended in the middle")]
    Strange,
}

/// The answer to `GET path`, `within` which everything has to be done, from the connection to the last byte.
///
/// # Errors
/// Why there is none.
#[expect(clippy::disallowed_methods, reason = "it waits for another program, outside of any loop")]
pub fn get(address: SocketAddr, path: &str, within: Duration) -> Result<Reply, GetError> {
    let start = Instant::now();
    let slow = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => GetError::Slow(within),
        _ => GetError::Unreachable(error),
    };
    // Of every wait only so much is left as the earlier ones have not used.
    let left = || {
        let left = within.saturating_sub(start.elapsed());
        if left.is_zero() { Err(GetError::Slow(within)) } else { Ok(left) }
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?).map_err(slow)?;
    stream.set_write_timeout(Some(left()?))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").map_err(slow)?;
    let mut answer = Vec::new();
    loop {
        stream.set_read_timeout(Some(left()?))?;
        let len = answer.len();
        answer.resize(len + PART_LEN, 0);
        let read = match stream.read(&mut answer[len..]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            read => read.map(Some),
        };
        let read = read.map_err(slow)?;
        answer.truncate(len + read.unwrap_or(0));
        if read == Some(0) {
            return reply(&answer);
        }
        if answer.len() > ANSWER_LEN_MAX {
            return Err(GetError::Long);
        }
    }
}

/// An answer that has come to its end.
fn reply(answer: &[u8]) -> Result<Reply, GetError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(len)) = head.parse(answer) else { return Err(GetError::Strange) };
    let body = &answer[len..];
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let is_whole = length.is_none_or(|field| {
        std::str::from_utf8(field.value).is_ok_and(|value| value.trim().parse() == Ok(body.len()))
    });
    match head.code {
        Some(code) if is_whole => Ok(Reply { code, body: body.to_vec() }),
        _ => Err(GetError::Strange),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Reads a request to its end, lets `answer` write, and closes. Answers the request line.
    fn asked(
        within: Duration,
        answer: impl FnOnce(&mut TcpStream) + Send + 'static,
    ) -> (Result<Reply, GetError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // What is left unread when a socket is closed makes the kernel reset the connection, with the answer in it.
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(|line| line.unwrap());
            let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            answer(&mut stream);
            request[0].clone()
        });
        let got = get(address, "/metrics", within);
        (got, server.join().unwrap())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_is_got_whole_with_its_code() {
        let (reply, request) = asked(LONG, |stream| {
            stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 9\r\n\r\n").unwrap();
            stream.write_all(b"hello").unwrap();
            stream.write_all(b" you").unwrap();
        });
        assert_eq!(request, "GET /metrics HTTP/1.1");
        assert_eq!(reply.unwrap(), Reply { code: 503, body: b"hello you".to_vec() });
    }

    #[test]
    fn what_is_no_answer_or_half_of_one_is_refused() {
        for text in ["", "hello", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", "HTTP/1.1 200 OK\r\n"]
        {
            let (reply, _) = asked(LONG, move |stream| stream.write_all(text.as_bytes()).unwrap());
            assert!(matches!(reply, Err(GetError::Strange)), "{text:?}: {reply:?}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(get(nobody, "/", LONG), Err(GetError::Unreachable(_))));
    }

    #[test]
    fn an_answer_without_end_is_given_up_by_its_length() {
        let (reply, _) = asked(LONG, |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            while stream.write_all(&[b'x'; 65_536]).is_ok() {}
        });
        assert!(matches!(reply, Err(GetError::Long)), "{reply:?}");
    }

    #[test]
    fn an_answer_in_drops_is_given_up_by_its_time() {
        let (reply, _) = asked(Duration::from_millis(300), |stream| {
            // Each drop comes well within the time, and all of them together do not: it ends when nobody listens.
            while stream.write_all(b"H").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(matches!(reply, Err(GetError::Slow(_))), "{reply:?}");
    }
}
