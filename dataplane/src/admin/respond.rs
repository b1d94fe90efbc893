//! An answer before it is bytes, and those to what cannot be answered.

use std::borrow::Cow;

use super::request::Refusal;

/// The media type of short answers.
const PLAIN: &str = "text/plain; charset=utf-8";

/// What a resource answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Number and words.
    pub status: &'static str,
    /// The media type.
    pub content_type: &'static str,
    /// Further header lines.
    pub fields: String,
    /// The content.
    pub body: Cow<'static, str>,
}

impl Answer {
    /// Something of a type that is there.
    #[must_use]
    pub fn ok(content_type: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        Self { status: "200 OK", content_type, fields: String::new(), body: body.into() }
    }

    /// A line of text.
    #[must_use]
    pub fn plain(status: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        Self { status, content_type: PLAIN, fields: String::new(), body: body.into() }
    }

    /// To a request that cannot be answered; `resources` are those that there are.
    pub(super) fn refuse(refusal: Refusal, resources: &str) -> Self {
        let mut answer = match refusal {
            Refusal::BadRequest => Self::plain("400 Bad Request", "this is not HTTP/1\n"),
            Refusal::NotFound => Self::plain("404 Not Found", format!("there are {resources}\n")),
            Refusal::MethodNotAllowed => {
                Self::plain("405 Method Not Allowed", "there is nothing to change here\n")
            }
            Refusal::Misdirected => {
                Self::plain("421 Misdirected Request", "ask for 127.0.0.1, [::1] or localhost by that name\n")
            }
            Refusal::TooLong => {
                Self::plain("431 Request Header Fields Too Large", "the request is too long\n")
            }
        };
        if refusal == Refusal::MethodNotAllowed {
            answer.fields = "Allow: GET, HEAD\r\n".to_owned();
        }
        answer
    }

    /// The whole answer. Nothing of a request is repeated in it.
    pub(super) fn bytes(&self, head_only: bool) -> Vec<u8> {
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
