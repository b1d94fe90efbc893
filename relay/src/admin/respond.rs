//! What each resource answers.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource as Limit, getrlimit};

use super::desk::{Desk, TURN_TIME_MAX};
use super::metrics;
use super::observer::Phase;
use super::page::Page;
use super::request::{Refusal, Request, Resource};
use super::status::{About, Status};

/// The media type of short answers.
const PLAIN: &str = "text/plain; charset=utf-8";

/// Writes answers.
#[derive(Debug)]
pub(super) struct Responder {
    about: About,
    page: Page,
    /// User names are among the figures.
    users: bool,
}

/// An answer before it is bytes.
struct Answer<'a> {
    status: &'static str,
    content_type: &'static str,
    /// Further header lines.
    fields: String,
    body: &'a str,
}

impl Responder {
    #[expect(
        clippy::disallowed_methods,
        reason = "the admin thread is a driver of its own: here its time enters"
    )]
    pub fn new(gso: bool, users: bool) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let about = About {
            started: Instant::now(),
            started_unix_s: since_1970.as_secs(),
            gso,
            open_files_limit: getrlimit(Limit::Nofile).current,
        };
        Self { about, page: Page::new(), users }
    }

    /// Whether the loop has to be asked first.
    pub fn needs_figures(resource: Resource) -> bool {
        resource != Resource::Page
    }

    /// Answers a request with what is known now.
    pub fn respond(&self, request: Request, desk: &Desk, now: Instant) -> Vec<u8> {
        let body;
        let answer = match request.resource {
            Resource::Page => Answer {
                status: "200 OK",
                content_type: "text/html; charset=utf-8",
                fields: format!("Content-Security-Policy: {}\r\n", self.page.policy()),
                body: self.page.html(),
            },
            Resource::Health if desk.is_turning(now) => plain("200 OK", "ok\n"),
            Resource::Health => {
                body = format!("packets have not been looked at for {} s\n", TURN_TIME_MAX.as_secs());
                plain("503 Service Unavailable", &body)
            }
            Resource::Ready if desk.phase() == Phase::Serving && desk.is_turning(now) => {
                plain("200 OK", "ready\n")
            }
            Resource::Ready => {
                body = format!("{}\n", desk.phase().name());
                plain("503 Service Unavailable", &body)
            }
            Resource::Metrics | Resource::Status => match desk.latest() {
                None => plain("503 Service Unavailable", "there are no figures yet\n"),
                Some(snapshot) => {
                    let mut status = Status::new(snapshot, &self.about, desk.phase(), now);
                    if !self.users {
                        status.users.clear();
                    }
                    let content_type;
                    (content_type, body) = if request.resource == Resource::Metrics {
                        (metrics::CONTENT_TYPE, metrics::text(&status))
                    } else {
                        // Strings and finite numbers only.
                        let json = serde_json::to_string(&status).expect("the status is JSON");
                        ("application/json", json)
                    };
                    Answer { status: "200 OK", content_type, fields: String::new(), body: &body }
                }
            },
        };
        answer.bytes(request.head_only)
    }

    /// Answers what cannot be answered.
    pub fn refuse(&self, refusal: Refusal) -> Vec<u8> {
        let mut answer = match refusal {
            Refusal::BadRequest => plain("400 Bad Request", "this is not HTTP/1\n"),
            Refusal::NotFound => {
                plain("404 Not Found", "there are /, /metrics, /status.json, /healthz and /readyz\n")
            }
            Refusal::MethodNotAllowed => plain("405 Method Not Allowed", "there is nothing to change here\n"),
            Refusal::Misdirected => {
                plain("421 Misdirected Request", "ask for 127.0.0.1, [::1] or localhost by that name\n")
            }
            Refusal::TooLong => plain("431 Request Header Fields Too Large", "the request is too long\n"),
        };
        if refusal == Refusal::MethodNotAllowed {
            answer.fields = "Allow: GET, HEAD\r\n".to_owned();
        }
        answer.bytes(false)
    }
}

fn plain<'a>(status: &'static str, body: &'a str) -> Answer<'a> {
    Answer { status, content_type: PLAIN, fields: String::new(), body }
}

impl Answer<'_> {
    /// The whole answer. Nothing of a request is repeated in it.
    fn bytes(&self, head_only: bool) -> Vec<u8> {
        let Self { status, content_type, fields, body } = self;
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\n\
             Content-Type: {content_type}\r\n\
             Content-Length: {}\r\n\
             Connection: close\r\n\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\
             Referrer-Policy: no-referrer\r\n\
             {fields}\r\n",
            body.len()
        )
        .into_bytes();
        if !head_only {
            bytes.extend_from_slice(body.as_bytes());
        }
        bytes
    }
}
