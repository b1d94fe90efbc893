//! Results as JUnit XML, which CI systems show as tests: the elements that Jenkins, GitLab and GitHub's viewers all read,
//! as `tools/tests/junit.xsd` has them.

use std::fmt::Write as _;

use super::html::escape;

/// How a test case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Not as it should be; what was found.
    Failed(String),
    /// Nothing could be said; why.
    Skipped(String),
}

/// One test case.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was looked at.
    pub name: String,
    /// How long that took, in seconds.
    pub time_s: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// Figures, as text.
    pub output: String,
}

/// A suite of cases as an XML document.
#[must_use]
pub fn document(suite: &str, cases: &[Case]) -> String {
    let count = |wanted: fn(&Outcome) -> bool| cases.iter().filter(|case| wanted(&case.outcome)).count();
    let failures = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    let time: f64 = cases.iter().map(|case| case.time_s).sum();
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n".to_owned();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        xml,
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" time=\"{time:.3}\">",
        escape(suite),
        cases.len()
    );
    for case in cases {
        self::case(&mut xml, suite, case);
    }
    xml.push_str("</testsuite>\n</testsuites>\n");
    xml
}

fn case(xml: &mut String, suite: &str, case: &Case) {
    let _ = writeln!(
        xml,
        "<testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">",
        escape(suite),
        escape(&case.name),
        case.time_s
    );
    match &case.outcome {
        Outcome::Passed => {}
        Outcome::Failed(found) => {
            let _ = writeln!(xml, "<failure message=\"{0}\" type=\"verdict\">{0}</failure>", escape(found));
        }
        Outcome::Skipped(why) => {
            let _ = writeln!(xml, "<skipped message=\"{}\"/>", escape(why));
        }
    }
    if !case.output.is_empty() {
        let _ = writeln!(xml, "<system-out>{}</system-out>", escape(&case.output));
    }
    xml.push_str("</testcase>\n");
}
