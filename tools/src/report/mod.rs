//! Results for a person to read: titled sections with tables and plots, as text, as Markdown or as one HTML file; and for
//! CI systems as JUnit XML.

mod html;
pub mod junit;
pub mod logs;
mod markdown;
mod plot;
pub mod plots;
pub mod runs;
pub mod shift;
pub mod summary;
mod svg;
mod text;

use crate::run::{CurvePoint, RunResult};

/// A page of results.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Heading of the page.
    pub title: String,
    /// Paragraphs under the heading.
    pub notes: Vec<String>,
    /// In the order in which they are shown.
    pub sections: Vec<Section>,
}

/// A titled part of a [`Report`].
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// Paragraphs under the table and the plot.
    pub notes: Vec<String>,
    /// Shown when it has a header.
    pub table: Table,
    /// Shown together in one plot when there are any.
    pub curves: Vec<Curve>,
    /// Further plots, below the curves.
    pub plots: Vec<Plot>,
}

impl Section {
    /// Whether there is something to read under its heading, where plots are not drawn.
    fn has_text(&self) -> bool {
        !(self.table.header.is_empty() && self.notes.is_empty())
    }
}

/// Rows of text; the first column is the row's name, the others are aligned to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Column headings.
    pub header: Vec<String>,
    /// As many cells in each as there are headings.
    pub rows: Vec<Vec<Cell>>,
}

/// One cell of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub tone: Tone,
}

/// How a cell looks; text output marks only [`Tone::Weak`], by parentheses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As usual.
    #[default]
    Plain,
    /// Too few samples to be relied on: grey.
    Weak,
    /// Worth a look, such as a loss.
    Bad,
    /// As it should be.
    Good,
    /// A stroke whose length counts: it begins at the left.
    Stroke,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, tone: Tone::Plain }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl Cell {
    /// A cell of the given look.
    #[must_use]
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

/// One percentile curve of a plot.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Number and name of the side it is a run of: these then stand for all of its runs, in colour and in the legend.
    pub side: Option<(usize, String)>,
    /// By rising quantile.
    pub points: Vec<CurvePoint>,
    /// Share of the sent datagrams that never arrived; the curve ends at 1 minus this, and the plot says so.
    pub lost_fraction: f64,
}

impl Curve {
    /// The response curve of a run.
    #[must_use]
    pub fn of(name: impl Into<String>, result: &RunResult) -> Self {
        Self {
            name: name.into(),
            side: None,
            points: result.curve.clone(),
            lost_fraction: result.ledger.loss_fraction(),
        }
    }
}

/// A plot other than that of percentiles, drawn already.
#[derive(Clone, Debug)]
pub struct Plot(String);

impl Report {
    /// One HTML file that needs nothing but itself: no script, no fonts, no network.
    #[must_use]
    pub fn to_html(&self) -> String {
        html::page(self)
    }

    /// Markdown for a comment; curves are left to the HTML.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        markdown::page(self)
    }

    /// Plain text for a terminal; curves are left to the HTML.
    #[must_use]
    pub fn to_text(&self) -> String {
        text::page(self)
    }
}
