//! Understands one HTTP request (RFC 9112): which of a handful of things is asked for, or what is wrong.

use std::net::IpAddr;

/// Longest request head in bytes. A browser's is below one KiB.
pub(super) const REQUEST_LEN_MAX: usize = 4096;
/// Most header fields.
const FIELDS_MAX: usize = 48;

/// A request that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request<R> {
    pub resource: R,
    /// HEAD: the answer has no body.
    pub head_only: bool,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    BadRequest,
    NotFound,
    MethodNotAllowed,
    Misdirected,
    TooLong,
}

/// What the bytes received so far come to; `None`: more has to come. `find` knows what there is at a path. `loopback` says that the socket has a loopback
/// address: then the host that is asked for has to be one as well. Otherwise a page elsewhere, whose name is made to
/// resolve to 127.0.0.1, could read the figures through its visitor's browser (DNS rebinding).
pub(super) fn parse<R>(
    bytes: &[u8],
    loopback: bool,
    find: impl Fn(&str) -> Option<R>,
) -> Option<Result<Request<R>, Refusal>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => Some(judge(&request, loopback, find)),
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_LEN_MAX => None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Some(Err(Refusal::TooLong)),
        Err(_) => Some(Err(Refusal::BadRequest)),
    }
}

fn judge<R>(
    request: &httparse::Request<'_, '_>,
    loopback: bool,
    find: impl Fn(&str) -> Option<R>,
) -> Result<Request<R>, Refusal> {
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts.next();
    // RFC 9112 section 3.2: one of them, and HTTP/1.1 has to have it.
    if hosts.next().is_some() || host.is_none() && request.version == Some(1) {
        return Err(Refusal::BadRequest);
    }
    if loopback && host.is_some_and(|host| !is_loopback(host.value)) {
        return Err(Refusal::Misdirected);
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Refusal::MethodNotAllowed),
    };
    // Compared as a whole, never as a path of files: there is nothing to climb out of.
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _query)| path);
    let resource = find(path).ok_or(Refusal::NotFound)?;
    Ok(Request { resource, head_only })
}

/// Whether a Host field names this machine's loopback, with or without a port.
fn is_loopback(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => address,
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The place of a path among those that there are.
    fn find(path: &str) -> Option<usize> {
        ["/", "/metrics", "/status.json"].iter().position(|known| *known == path)
    }

    fn parse(bytes: &[u8], loopback: bool) -> Option<Result<Request<usize>, Refusal>> {
        super::parse(bytes, loopback, find)
    }

    fn get(target: &str) -> Option<Result<Request<usize>, Refusal>> {
        parse(format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1:9641\r\n\r\n").as_bytes(), true)
    }

    #[test]
    fn what_there_is_is_found_and_nothing_else() {
        for (target, resource) in
            [("/", 0), ("/?theme=dark", 0), ("/metrics", 1), ("/status.json?x=../..", 2)]
        {
            assert_eq!(get(target), Some(Ok(Request { resource, head_only: false })), "{target}");
        }
        for target in [
            "/..",
            "/../../etc/passwd",
            "/metrics/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/metrics/",
            "/METRICS",
            "/status.json%00.html",
            "http://127.0.0.1/metrics",
            "*",
        ] {
            assert_eq!(get(target), Some(Err(Refusal::NotFound)), "{target}");
        }
    }

    #[test]
    fn only_reading_is_allowed() {
        let head = b"HEAD /metrics HTTP/1.0\r\n\r\n";
        let expected = Request { resource: 1, head_only: true };
        assert_eq!(parse(head, true), Some(Ok(expected)));
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get"] {
            let request = format!("{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(parse(request.as_bytes(), true), Some(Err(Refusal::MethodNotAllowed)), "{method}");
        }
    }

    #[test]
    fn a_foreign_name_reaches_no_loopback_socket() {
        let of = |host: &str, loopback| {
            parse(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), loopback).unwrap()
        };
        for host in ["127.0.0.1", "127.0.0.1:9641", "localhost:1", "LocalHost", "[::1]:9641", "127.8.8.8"] {
            assert!(of(host, true).is_ok(), "{host}");
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "", "localhost.evil", "::1"]
        {
            assert_eq!(of(host, true), Err(Refusal::Misdirected), "{host}");
            assert!(of(host, false).is_ok(), "{host}");
        }
        let twice = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n";
        assert_eq!(parse(twice, true), Some(Err(Refusal::BadRequest)));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n", true), Some(Err(Refusal::BadRequest)));
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let mut request = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec();
        request.resize(REQUEST_LEN_MAX - 1, b'a');
        assert_eq!(parse(&request, true), None);
        request.push(b'a');
        assert_eq!(parse(&request, true), Some(Err(Refusal::TooLong)));
        let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX));
        assert_eq!(parse(many.as_bytes(), true), Some(Err(Refusal::TooLong)));
        // What a TLS client or another protocol says first.
        for bytes in
            [&b"\x16\x03\x01\x02\x00\x01\x00\x01"[..], b"\0\0\0\0\0\0", b"GET /\x7f HTTP/9.9\r\n\r\n"]
        {
            assert_eq!(parse(bytes, true), Some(Err(Refusal::BadRequest)), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_outcome(bytes in prop::collection::vec(any::<u8>(), 0..REQUEST_LEN_MAX)) {
            // Only that it returns.
            let _ = parse(&bytes, true);
        }

        #[test]
        fn a_good_request_is_one_however_it_is_cut(cut in 0_usize..46) {
            let request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n";
            let cut = cut.min(request.len());
            prop_assert_eq!(parse(&request[..cut], true).is_some(), cut == request.len());
        }
    }
}
