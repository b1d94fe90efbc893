//! Man pages and completions for shells are made from the flags, and those in the repository are up to date.
//!
//! `TOWPATH_UPDATE=1 cargo test -p relay --test generated` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

mod harness;
#[path = "../../dataplane/tests/support/left_out.rs"]
mod left_out;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use harness::program;
use left_out::left_out;
use relay::config::Args;

const NAME: &str = "towpath-relay";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// The page of the program and those of its sub-commands, by the names of their files.
fn man_pages() -> Vec<(PathBuf, Vec<u8>)> {
    // There is no page for `help`, so none is named.
    let mut program = Args::command().disable_help_subcommand(true);
    program.build();
    let page = |command: clap::Command, name: &str| {
        let mut text = Vec::new();
        // No date: the page is the same until the flags change.
        let man = Man::new(command.display_name(name))
            .title(name.to_uppercase())
            .date("")
            .source(concat!("towpath-relay ", env!("CARGO_PKG_VERSION")));
        man.render(&mut text).unwrap();
        (PathBuf::from(format!("man/{name}.1")), text)
    };
    let subs = program.get_subcommands();
    let subs = subs.map(|sub| page(sub.clone(), &format!("{NAME}-{}", sub.get_name()))).collect::<Vec<_>>();
    std::iter::once(page(program.clone(), NAME)).chain(subs).collect()
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
    for (name, expected) in files {
        let path = packaging().join(name);
        if std::env::var_os("TOWPATH_UPDATE").is_some_and(|value| value == "1") {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &expected).unwrap();
        }
        let there = fs::read(&path).unwrap_or_default();
        assert!(
            there == expected,
            "{} is not what the flags say; run: TOWPATH_UPDATE=1 cargo test -p relay --test generated",
            path.display()
        );
    }
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
    let mut seen = 0;
    let program = Args::command();
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    for (command, (name, page)) in commands.zip(&pages) {
        // In a man page, a hyphen that is to be one is written with a backslash.
        let page = String::from_utf8(page.clone()).unwrap().replace('\\', "");
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(page.contains(&format!("--{flag}")), "--{flag} is not in {}", name.display());
            seen += 1;
        }
    }
    assert!(seen > 40 && pages.len() == 3, "only {seen} flags on {} pages", pages.len());
}

/// Runs a program that reads one of these files; `None` when it is not there.
fn run(name: &str, arguments: &[&str], install: &str) -> Option<Output> {
    let output = program(name).args(arguments).stdin(Stdio::null()).output();
    if output.is_err() {
        left_out(&format!("what {name} says of generated files: apt-get install {install}"));
    }
    output.ok()
}

#[test]
fn the_man_pages_are_read_without_a_warning() {
    for (name, _) in man_pages() {
        let path = packaging().join(name);
        // The formatter behind man(1), with all its warnings.
        let Some(output) =
            run("groff", &["-man", "-Tutf8", "-ww", "-z", path.to_str().unwrap()], "groff-base")
        else {
            return;
        };
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", path.display());
    }
}

#[test]
fn bash_completes_flags_and_sub_commands() {
    let script = packaging().join(format!("completions/{NAME}.bash"));
    let complete = |words: &str| {
        let ask = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             set -- $(complete -p {NAME}); while [ \"$1\" != -F ]; do shift; done; \
             $2 {NAME} \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = run("bash", &["-c", &ask], "bash")?;
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(flags) = complete("towpath-relay --allocations-per-u") else { return };
    assert_eq!(flags, "--allocations-per-user-max\n");
    assert_eq!(complete("towpath-relay imp").unwrap(), "import\n");
    assert_eq!(complete("towpath-relay import --fo").unwrap(), "--force\n");
    assert_eq!(complete("towpath-relay --port-sharing o").unwrap(), "off\n");
}
