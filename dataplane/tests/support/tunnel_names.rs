//! The names of running tunnels in completions: the generator knows of flags only.

/// Where `wg` finds tunnels, and so do shells.
pub const SOCKETS: &str = "/var/run/wireguard";

const BASH: &str = r#"
# The tunnels that run on this machine, as far as one may see them.
_towpath_tunnels() {
    compgen -G '/var/run/wireguard/*.sock' | sed 's,.*/,,; s,\.sock$,,'
}

# Offers them, and files where these are meant too, beside the flags.
_towpath_named() {
    _towpath "$@"
    local cur="${COMP_WORDS[COMP_CWORD]}"
    case "${COMP_WORDS[COMP_CWORD - 1]}" in
        up | show | down | reload | strip | ticket | --json | --watch) ;;
        *) return 0 ;;
    esac
    [[ ${COMP_CWORD} -lt 2 || ${cur} == -* ]] && return 0
    case "${COMP_WORDS[1]}" in
        show | ticket)
            COMPREPLY=($(compgen -W "$(_towpath_tunnels)" -- "${cur}"))
            ;;
        down | reload | strip)
            COMPREPLY=($(compgen -W "$(_towpath_tunnels)" -- "${cur}") $(compgen -f -- "${cur}"))
            ;;
        up)
            COMPREPLY=($(compgen -f -- "${cur}"))
            ;;
    esac
}

complete -F _towpath_named -o bashdefault -o default towpath
"#;

const ZSH: &str = r#"
# The tunnels that run on this machine, as far as one may see them.
_towpath_tunnels() {
    local -a tunnels
    tunnels=(/var/run/wireguard/*.sock(N:t:r))
    compadd -a tunnels
}

_towpath_tunnels_or_files() {
    _towpath_tunnels
    _files
}
"#;

const FISH: &str = r#"
# The tunnels that run on this machine, as far as one may see them.
function __fish_towpath_tunnels
    for socket in /var/run/wireguard/*.sock
        string replace -r '.*/(.*)\.sock$' '$1' $socket
    end
end

complete -c towpath -n "__fish_towpath_using_subcommand show ticket" -f -a "(__fish_towpath_tunnels)"
complete -c towpath -n "__fish_towpath_using_subcommand down reload strip" -a "(__fish_towpath_tunnels)"
"#;

/// The generated completions for bash, with names.
pub fn in_bash(generated: &str) -> String {
    format!("{generated}{BASH}")
}

/// Those for zsh. What is run comes last in it.
pub fn in_zsh(generated: &str) -> String {
    let mut text = generated.to_owned();
    for (argument, by) in [
        ("::interface -- Only this interface", ":_towpath_tunnels'"),
        (":interface -- The interface of a running tunnel", ":_towpath_tunnels'"),
        (":name -- The interface, or the configuration", ":_towpath_tunnels_or_files'"),
        (":file -- The configuration of a running tunnel", ":_towpath_tunnels_or_files'"),
        (
            ":file -- The configuration, or the name of one in /etc/towpath or /etc/wireguard:",
            ":_towpath_tunnels_or_files'",
        ),
    ] {
        let start = text.find(argument).expect(argument);
        let end = start + text[start..].find('\n').expect("the end of the line");
        let colon = start + text[start..end].rfind(":_").expect("an action");
        let quote = colon + text[colon..end].find('\'').expect("a quote");
        text.replace_range(colon..=quote, by);
    }
    let run = text.find("if [ \"$funcstack[1]\" = \"_towpath\" ]").expect("where it is run");
    text.insert_str(run, ZSH.trim_start());
    text
}

/// Those for fish.
pub fn in_fish(generated: &str) -> String {
    format!("{generated}{FISH}")
}
