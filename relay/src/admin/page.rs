//! The page for people: one file without anything from elsewhere, and the policy that holds a browser to that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest::{SHA256, digest};

/// Markup, styles and script in one.
const HTML: &str = include_str!("page.html");

/// The page and its policy.
#[derive(Debug)]
pub(super) struct Page {
    policy: String,
}

impl Page {
    pub fn new() -> Self {
        // By their hashes the page's own script and styles are the only ones that run, whatever a user is called.
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash_of("<script>", "</script>"),
            hash_of("<style>", "</style>")
        );
        Self { policy }
    }

    pub fn html(&self) -> &'static str {
        HTML
    }

    /// The Content-Security-Policy.
    pub fn policy(&self) -> &str {
        &self.policy
    }
}

/// The hash source (CSP level 3, section 2.3.1) of what stands between two tags.
fn hash_of(open: &str, close: &str) -> String {
    let (_, rest) = HTML.split_once(open).expect("the page has it");
    let (content, _) = rest.split_once(close).expect("the page ends it");
    format!("sha256-{}", BASE64.encode(digest(&SHA256, content.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for tag in ["<script", "<style", "</script>", "</style>"] {
            assert_eq!(HTML.matches(tag).count(), 1, "{tag}");
        }
        for place in ["http:", "https:", "src=", "@import", "url(", "innerHTML", "eval(", "style="] {
            // The name space of SVG is a name, not a place.
            let html = HTML.replace("http://www.w3.org/2000/svg", "");
            assert!(!html.contains(place), "{place}");
        }
        let page = Page::new();
        assert!(page.policy().starts_with("default-src 'none'; script-src 'sha256-"));
        assert!(!page.policy().contains("unsafe"));
    }
}
