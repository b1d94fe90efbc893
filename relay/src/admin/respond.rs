//! What each resource answers.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dataplane::admin::metrics::CONTENT_TYPE;
use dataplane::admin::{Answer, Desk, Site, TURN_TIME_MAX};
use rustix::process::{Resource as Limit, getrlimit};

use super::metrics;
use super::observer::{Phase, Snapshot};
use super::page::Page;
use super::status::{About, Status};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// `/`
    Page,
    /// `/healthz`
    Health,
    /// `/readyz`
    Ready,
    /// `/metrics`
    Metrics,
    /// `/status.json`
    Status,
}

/// Writes answers.
#[derive(Debug)]
pub(super) struct Responder {
    about: About,
    page: Page,
    /// User names are among the figures.
    users: bool,
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

    fn figures(&self, resource: Resource, snapshot: &Snapshot, phase: Phase, now: Instant) -> Answer {
        let mut status = Status::new(snapshot, &self.about, phase, now);
        if !self.users {
            status.users.clear();
        }
        if resource == Resource::Metrics {
            return Answer::ok(CONTENT_TYPE, metrics::text(&status));
        }
        // Strings and finite numbers only.
        Answer::ok("application/json", serde_json::to_string(&status).expect("the status is JSON"))
    }
}

impl Site for Responder {
    type Resource = Resource;
    type Snapshot = Snapshot;
    const RESOURCES: &'static str = "/, /metrics, /status.json, /healthz and /readyz";

    fn find(path: &str) -> Option<Resource> {
        match path {
            "/" => Some(Resource::Page),
            "/healthz" => Some(Resource::Health),
            "/readyz" => Some(Resource::Ready),
            "/metrics" => Some(Resource::Metrics),
            "/status.json" => Some(Resource::Status),
            _ => None,
        }
    }

    fn needs_figures(resource: Resource) -> bool {
        resource != Resource::Page
    }

    fn respond(&self, resource: Resource, desk: &Desk<Snapshot>, now: Instant) -> Answer {
        let phase = Phase::of(desk.phase());
        match resource {
            Resource::Page => Answer {
                fields: format!("Content-Security-Policy: {}\r\n", self.page.policy()),
                ..Answer::ok("text/html; charset=utf-8", self.page.html())
            },
            Resource::Health if desk.is_turning(now) => Answer::plain("200 OK", "ok\n"),
            Resource::Health => {
                let text = format!("packets have not been looked at for {} s\n", TURN_TIME_MAX.as_secs());
                Answer::plain("503 Service Unavailable", text)
            }
            Resource::Ready if phase == Phase::Serving && desk.is_turning(now) => {
                Answer::plain("200 OK", "ready\n")
            }
            Resource::Ready => Answer::plain("503 Service Unavailable", format!("{}\n", phase.name())),
            Resource::Metrics | Resource::Status => match desk.latest() {
                None => Answer::plain("503 Service Unavailable", "there are no figures yet\n"),
                Some(snapshot) => self.figures(resource, snapshot, phase, now),
            },
        }
    }
}
