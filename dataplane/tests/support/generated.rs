//! Manual pages and completions that are made from the flags of a program: up to date, whole, and read without a complaint.

use std::fs;
use std::path::{Path, PathBuf};

use clap_mangen::Man;

use super::unit::run;

/// The page of a command, with its name and where that stands in the packaging.
pub fn page(command: clap::Command, name: &str, section: &str, source: &str) -> (PathBuf, Vec<u8>) {
    let mut text = Vec::new();
    // No date: the page is the same until the flags change.
    let man = Man::new(command.display_name(name.to_owned())).title(name.to_uppercase());
    man.section(section).date("").source(source).render(&mut text).unwrap();
    // The generator knows of no other section for the pages of sub-commands.
    let text = String::from_utf8(text).unwrap().replace("(1)", &format!("({section})"));
    (PathBuf::from(format!("man/{name}.{section}")), text.into_bytes())
}

/// The page of a program and those of its sub-commands, by the names of their files.
pub fn pages(program: clap::Command, name: &str, section: &str, source: &str) -> Vec<(PathBuf, Vec<u8>)> {
    // There is no page for `help`, so none is named.
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let subs = program.get_subcommands();
    let subs = subs.map(|sub| page(sub.clone(), &format!("{name}-{}", sub.get_name()), section, source));
    let subs: Vec<_> = subs.collect();
    std::iter::once(page(program.clone(), name, section, source)).chain(subs).collect()
}

/// Compares files with what they should be, or writes them anew when that is asked for; `test` names the crate and the file of
/// tests.
pub fn are_up_to_date(
    packaging: &Path,
    files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>,
    test: [&str; 2],
) {
    for (name, expected) in files {
        let path = packaging.join(name);
        if std::env::var_os("TOWPATH_UPDATE").is_some_and(|value| value == "1") {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &expected).unwrap();
        }
        let there = fs::read(&path).unwrap_or_default();
        assert!(
            there == expected,
            "{} is not what the flags say; run: TOWPATH_UPDATE=1 cargo test -p {} --test {}",
            path.display(),
            test[0],
            test[1]
        );
    }
}

/// Each flag of a program and of its sub-commands is on its page; how many there are.
pub fn flags_on_pages(program: &clap::Command, pages: &[(PathBuf, Vec<u8>)]) -> usize {
    let commands = std::iter::once(program).chain(program.get_subcommands());
    let mut seen = 0;
    for (command, (name, page)) in commands.zip(pages) {
        // In a man page, a hyphen that is to be one is written with a backslash.
        let page = String::from_utf8(page.clone()).unwrap().replace('\\', "");
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(page.contains(&format!("--{flag}")), "--{flag} is not in {}", name.display());
            seen += 1;
        }
    }
    seen
}

/// Pages are formatted without a warning.
pub fn are_read_without_a_warning(pages: impl IntoIterator<Item = PathBuf>) {
    for path in pages {
        // The formatter behind man(1), with all its warnings.
        let arguments = ["-man", "-Tutf8", "-ww", "-z", path.to_str().unwrap()];
        let Some(output) = run("groff", &arguments, "groff-base") else { return };
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", path.display());
    }
}

/// What bash makes of words that begin with the name of a program, by its completions; `None` without bash.
pub fn completed(packaging: &Path, name: &str, words: &str) -> Option<String> {
    let script = packaging.join(format!("completions/{name}.bash"));
    let ask = format!(
        "source '{}'; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
         set -- $(complete -p {name}); while [ $# -gt 0 ] && [ \"$1\" != -F ]; do shift; done; \
         $2 {name} \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let output = run("bash", &["-c", &ask], "bash")?;
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}
