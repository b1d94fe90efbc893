//! Options and exit codes of commands that judge one side of runs by another.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::{EXIT_FAILED, EXIT_INCONCLUSIVE};
use crate::ab::Noise;
use crate::format::bounded;
use crate::judge::{Difference, Group, Judgement, Rule, Verdict, judge};

/// Most bytes of an aa.json.
const NOISE_BYTES_MAX: u64 = 1 << 20;

/// By which rules.
#[derive(Debug, clap::Args)]
pub(super) struct Judging {
    /// What B must not be, such as p99>+5%, p99>+5%@99, p50>+20us, loss>+1e-5, cpu/pkt>+3%, pps<-2%; may be repeated
    #[arg(long, value_name = "RULE")]
    pub(super) fail: Vec<Rule>,
    /// A difference of latency that is never worth a FAIL
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    min_effect: std::time::Duration,
    /// Judge runs that are not VALID, died, or were not all made, all the same
    #[arg(long)]
    pub(super) allow_invalid: bool,
    /// What `aa` found of this host, to be shown beside the verdict: the aa.json in its --out directory
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
}

impl Judging {
    /// Judges `b` by `a`.
    pub(super) fn judge(&self, a: &Group, b: &Group, seed: u64) -> Vec<Judgement> {
        let rules: Vec<_> =
            self.fail.iter().map(|rule| (*rule, a.side(rule.metric), b.side(rule.metric))).collect();
        judge(&rules, self.min_effect.as_nanos() as f64, seed)
    }

    /// Judges each of `others` by `a`: one family of tests, so that more sides make no more false alarms.
    pub(super) fn judge_all(&self, a: &Group, others: &[&Group], seed: u64) -> Vec<Vec<Judgement>> {
        let of = |b: &&Group| -> Vec<_> {
            self.fail.iter().map(|rule| (*rule, a.side(rule.metric), b.side(rule.metric))).collect()
        };
        let rules: Vec<_> = others.iter().flat_map(of).collect();
        let mut judged = judge(&rules, self.min_effect.as_nanos() as f64, seed).into_iter();
        others.iter().map(|_| judged.by_ref().take(self.fail.len()).collect()).collect()
    }

    /// What `aa` found of the metrics that are judged, one sentence each.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn noise(&self) -> anyhow::Result<Vec<String>> {
        let Some(path) = &self.noise else { return Ok(Vec::new()) };
        let text = bounded::read_to_string(path, NOISE_BYTES_MAX).with_context(|| {
            format!("cannot read {}; it is written by `towpath-lab aa … --out DIR`", path.display())
        })?;
        let found: super::aa::Found = serde_json::from_str(&text)
            .with_context(|| format!("{} is not from `towpath-lab aa`", path.display()))?;
        let judged = |noise: &&Noise| self.fail.iter().any(|rule| rule.metric.name() == noise.metric);
        let floors = found.metrics.iter().filter(judged).map(|noise| floor(noise, &found.started));
        let missing = found.shortfall.iter().map(|missing| format!("aa, {}: {missing}", found.started));
        Ok(floors.chain(missing).collect())
    }
}

/// One metric's noise in a sentence.
fn floor(noise: &Noise, date: &str) -> String {
    let effect =
        noise.detectable.map_or("nothing".to_owned(), |effect| format!("+{:.1} % and more", 100.0 * effect));
    format!(
        "noise of this host (aa, {date}): {} ±{:.1} % from run to run; {} runs a side find {effect} nine times in ten",
        noise.metric,
        100.0 * noise.deviation,
        noise.per_side
    )
}

/// Why there is no verdict on runs that cannot be believed.
pub(super) const INVALID: &str =
    "runs are not VALID, died, or were not all made; make them again, or add --allow-invalid";

/// What must not be overlooked when runs are compared, for commands that read them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Allowed {
    /// Compare runs that are not VALID, died, or were not all made, all the same
    #[arg(long)]
    pub(super) allow_invalid: bool,
    /// Compare runs all the same whose loads were not alike
    #[arg(long)]
    pub(super) allow_different: bool,
}

impl Allowed {
    /// Why runs are not compared, with the fix; `None` when they are. `doubts` are those of the runs, `different` is in what loads
    /// are not alike.
    pub(super) fn obstacle(&self, doubts: &[String], different: &[String]) -> Option<String> {
        let loads = || {
            format!(
                "the loads were not alike ({}); measure all with one, or add --allow-different",
                different.join(", ")
            )
        };
        match (doubts.is_empty() || self.allow_invalid, different.is_empty() || self.allow_different) {
            (true, true) => None,
            (false, true) => Some(INVALID.to_owned()),
            (true, false) => Some(loads()),
            (false, false) => Some(format!("{INVALID}; and {}", loads())),
        }
    }
}

/// Why a comparison is open, where there is something to say.
pub(super) fn open(difference: &Difference) -> Option<String> {
    let what = format!("{} {}", difference.side, difference.metric.name());
    match (&difference.why, difference.runs_needed) {
        (Some(why), _) => Some(format!("{what}: {why}")),
        (None, Some(runs)) => {
            Some(format!("{what}: open; about {runs} runs a side would show it, if the ratio is right"))
        }
        (None, None) => None,
    }
}

/// That values drift, where the sides took turns: nothing of their difference is due to that, but it makes runs differ.
pub(super) fn drifts<'a>(drifts: impl Iterator<Item = &'a Option<String>>) -> Vec<String> {
    let shared =
        |drift: &String| format!("{drift}, more than the sides differ by; they took turns and share it");
    let mut said: Vec<String> = drifts.flatten().map(shared).collect();
    said.dedup();
    said
}

/// Why rules are not decided, and what would decide them.
pub(super) fn reasons(judgements: &[Judgement]) -> Vec<String> {
    let reason = |judged: &Judgement| {
        if judged.verdict != Verdict::Inconclusive {
            return None;
        }
        let (a, b) = (judged.a.values.len(), judged.b.values.len());
        Some(match (&judged.why, judged.runs_needed) {
            (Some(why), _) => format!("{}: {why}", judged.rule),
            (None, Some(runs)) => {
                format!("{}: {a} and {b} runs; about {runs} a side would decide", judged.rule)
            }
            (None, None) => format!("{}: not decided", judged.rule),
        })
    };
    judgements.iter().filter_map(reason).collect()
}

/// The exit code of a verdict; of none, success.
pub(super) fn exit(verdict: Option<Verdict>) -> ExitCode {
    match verdict {
        None | Some(Verdict::Pass) => ExitCode::SUCCESS,
        Some(Verdict::Fail) => ExitCode::from(EXIT_FAILED),
        Some(Verdict::Inconclusive) => ExitCode::from(EXIT_INCONCLUSIVE),
    }
}
