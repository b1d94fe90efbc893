_towpath__relay() {
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="towpath__relay"
                ;;
            towpath__relay,help)
                cmd="towpath__relay__subcmd__help"
                ;;
            towpath__relay,import)
                cmd="towpath__relay__subcmd__import"
                ;;
            towpath__relay,status)
                cmd="towpath__relay__subcmd__status"
                ;;
            towpath__relay__subcmd__help,help)
                cmd="towpath__relay__subcmd__help__subcmd__help"
                ;;
            towpath__relay__subcmd__help,import)
                cmd="towpath__relay__subcmd__help__subcmd__import"
                ;;
            towpath__relay__subcmd__help,status)
                cmd="towpath__relay__subcmd__help__subcmd__status"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        towpath__relay)
            opts="-h -V --listen --listen-tcp --listen-tls --tls-certificate --tls-key --tcp-connections-max --tcp-connections-per-address-max --tcp-queue-kib --tcp-queues-mib --realm --user --user-file --secret-file --secret-validity-max --allow-peer --relay-ports --port-sharing --relay-address --external-ip --channel-numbers --allocations-max --allocations-per-user-max --deny-peer --deny-peer-ports --allocations-per-source-max --permissions-max --channels-max --new-peers-per-user --new-peers-per-source --new-peers-total --permissions-per-user-max --permissions-total-max --channels-per-user-max --channels-total-max --allocation-rate --user-rate --source-rate --total-rate --unpaid-replies --strict-reflection --hairpin --drain-timeout --alternate-server --alternate-server-tls --workers --admin --admin-users --config --check-config --confine --io --ingress --gso --no-offload --completions --busy-poll --log-format --help --version status import help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --listen)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --listen-tcp)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --listen-tls)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tls-certificate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tls-key)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp-connections-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp-connections-per-address-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp-queue-kib)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --tcp-queues-mib)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --realm)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --user)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --user-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --secret-file)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --secret-validity-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --allow-peer)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --relay-ports)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --port-sharing)
                    COMPREPLY=($(compgen -W "auto off" -- "${cur}"))
                    return 0
                    ;;
                --relay-address)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --external-ip)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --channel-numbers)
                    COMPREPLY=($(compgen -W "rfc8656 rfc5766" -- "${cur}"))
                    return 0
                    ;;
                --allocations-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --allocations-per-user-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --deny-peer)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --deny-peer-ports)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --allocations-per-source-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --permissions-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --channels-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --new-peers-per-user)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --new-peers-per-source)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --new-peers-total)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --permissions-per-user-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --permissions-total-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --channels-per-user-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --channels-total-max)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --allocation-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --user-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --source-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --total-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --unpaid-replies)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --hairpin)
                    COMPREPLY=($(compgen -W "on off" -- "${cur}"))
                    return 0
                    ;;
                --drain-timeout)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --alternate-server)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --alternate-server-tls)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --workers)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --admin)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --admin-users)
                    COMPREPLY=($(compgen -W "on off" -- "${cur}"))
                    return 0
                    ;;
                --config)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --confine)
                    COMPREPLY=($(compgen -W "on off" -- "${cur}"))
                    return 0
                    ;;
                --io)
                    COMPREPLY=($(compgen -W "auto uring threaded suspend drop runtime" -- "${cur}"))
                    return 0
                    ;;
                --ingress)
                    COMPREPLY=($(compgen -W "uring epoll" -- "${cur}"))
                    return 0
                    ;;
                --gso)
                    COMPREPLY=($(compgen -W "on off" -- "${cur}"))
                    return 0
                    ;;
                --no-offload)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --completions)
                    COMPREPLY=($(compgen -W "thread inline" -- "${cur}"))
                    return 0
                    ;;
                --busy-poll)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log-format)
                    COMPREPLY=($(compgen -W "text json" -- "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        towpath__relay__subcmd__help)
            opts="status import help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        towpath__relay__subcmd__help__subcmd__help)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        towpath__relay__subcmd__help__subcmd__import)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        towpath__relay__subcmd__help__subcmd__status)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        towpath__relay__subcmd__import)
            opts="-h --output --force --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --output)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        towpath__relay__subcmd__status)
            opts="-h --admin --json --watch --help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --admin)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _towpath__relay -o nosort -o bashdefault -o default towpath-relay
else
    complete -F _towpath__relay -o bashdefault -o default towpath-relay
fi
