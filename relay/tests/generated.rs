//! Man pages and completions for shells are made from the flags, and those in the repository are up to date.
//!
//! `TOWPATH_UPDATE=1 cargo test -p relay --test generated` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

#[path = "../../dataplane/tests/support/generated.rs"]
mod files;
#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;
#[path = "../../dataplane/tests/support/unit.rs"]
mod unit;

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use relay::config::Args;

const NAME: &str = "towpath-relay";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// The page of the program and those of its sub-commands, by the names of their files.
fn man_pages() -> Vec<(PathBuf, Vec<u8>)> {
    files::pages(Args::command(), NAME, "1", concat!("towpath-relay ", env!("CARGO_PKG_VERSION")))
}

/// The completions, by the names that the shells look for.
fn completions() -> Vec<(PathBuf, Vec<u8>)> {
    let of = |shell: Shell, file: &str| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), NAME, &mut text);
        (PathBuf::from(format!("completions/{file}")), text)
    };
    let (bash, text) = of(Shell::Bash, &format!("{NAME}.bash"));
    // The generator takes the hyphen of the name for the way to a sub-command in half of the places, so that none of their
    // flags would be completed.
    let text = String::from_utf8(text).unwrap().replace("towpath__subcmd__relay", "towpath__relay");
    vec![
        (bash, text.into_bytes()),
        of(Shell::Zsh, &format!("_{NAME}")),
        of(Shell::Fish, &format!("{NAME}.fish")),
    ]
}

fn check(files: Vec<(PathBuf, Vec<u8>)>) {
    files::are_up_to_date(&packaging(), files, ["relay", "generated"]);
}

#[test]
fn the_man_pages_are_those_of_the_flags() {
    check(man_pages());
}

#[test]
fn the_completions_are_those_of_the_flags() {
    check(completions());
}

#[test]
fn every_flag_is_on_its_page() {
    let pages = man_pages();
    let seen = files::flags_on_pages(&Args::command(), &pages);
    assert!(seen > 40 && pages.len() == 3, "only {seen} flags on {} pages", pages.len());
}

#[test]
fn the_man_pages_are_read_without_a_warning() {
    files::are_read_without_a_warning(man_pages().into_iter().map(|(name, _)| packaging().join(name)));
}

#[test]
fn bash_completes_flags_and_sub_commands() {
    let complete = |words: &str| files::completed(&packaging(), NAME, words);
    let Some(flags) = complete("towpath-relay --allocations-per-u") else { return };
    assert_eq!(flags, "--allocations-per-user-max\n");
    assert_eq!(complete("towpath-relay imp").unwrap(), "import\n");
    assert_eq!(complete("towpath-relay import --fo").unwrap(), "--force\n");
    assert_eq!(complete("towpath-relay --port-sharing o").unwrap(), "off\n");
}
