# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_towpath_global_optspecs
    string join \n f/foreground io= ingress= gso= no-offload= completions= busy-poll= crypto-threads= ecn= dscp= admin= log-format= h/help V/version
end

function __fish_towpath_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_towpath_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_towpath_using_subcommand
    set -l cmd (__fish_towpath_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c towpath -n "__fish_towpath_needs_command" -l io -d 'How packets leave' -r -f -a "auto\t'`uring` when a real probe succeeds, else `suspend`'
uring\t'Fixed ring, full-queue submission, completion thread'
threaded\t'Stack packets through two channels of 1,000 to writer threads'
suspend\t'Written at once; the loop is suspended while the socket is busy'
drop\t'Written at once; dropped and counted while the socket is busy'
runtime\t'tokio-uring: one owned buffer and one operation per packet'"
complete -c towpath -n "__fish_towpath_needs_command" -l ingress -d 'How packets come in [default: epoll; for the tunnel with --io uring, uring where the kernel has it]' -r -f -a "uring\t'Multishot receive with provided buffers'
epoll\t'epoll and recvmmsg'"
complete -c towpath -n "__fish_towpath_needs_command" -l gso -d 'Superpackets on UDP sockets and TUN devices' -r -f -a "on\t'Used where the kernel has it'
off\t'Never used'"
complete -c towpath -n "__fish_towpath_needs_command" -l no-offload -d 'Offloads to do without, with commas between them: vnet-hdr, tun-tso, tun-gro, udp-gso, udp-gro' -r
complete -c towpath -n "__fish_towpath_needs_command" -l completions -d 'Who reaps completions; only with `--io uring` [default: thread]' -r -f -a "thread\t'A thread of its own'
inline\t'The submitting thread'"
complete -c towpath -n "__fish_towpath_needs_command" -l busy-poll -d 'Look for input this long before going to sleep: wakes sooner, keeps a core busy; 0 for never' -r
complete -c towpath -n "__fish_towpath_needs_command" -l crypto-threads -d 'Threads that seal and open packets beside the loop; only with `--io uring`. `auto`: one where the program has two cores or more' -r
complete -c towpath -n "__fish_towpath_needs_command" -l ecn -d 'Copy the ECN bits of packets to what carries them, so that queues on the way can mark [default: on]' -r -f -a "on\t'Used where the kernel has it'
off\t'Never used'"
complete -c towpath -n "__fish_towpath_needs_command" -l dscp -d 'DSCP of what carries data: a number, or copy for that of the packet inside [default: 0]' -r
complete -c towpath -n "__fish_towpath_needs_command" -l admin -d 'Where Prometheus finds totals: /metrics, without a password, so better on 127.0.0.1 [default: nowhere]' -r
complete -c towpath -n "__fish_towpath_needs_command" -l log-format -d 'How log lines look' -r -f -a "text\t'For people: time, severity, message, fields'
json\t'One JSON object a line with `time`, `severity`, `message`, `target` and the event\'s fields'"
complete -c towpath -n "__fish_towpath_needs_command" -s f -l foreground -d 'Stay in the foreground'
complete -c towpath -n "__fish_towpath_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towpath -n "__fish_towpath_needs_command" -s V -l version -d 'Print version'
complete -c towpath -n "__fish_towpath_needs_command" -a "up" -d 'Bring up the tunnel of a configuration file in wg-quick\'s format, and stay in the foreground'
complete -c towpath -n "__fish_towpath_needs_command" -a "show" -d 'Show what the tunnels of this machine do: peers, paths, losses, and where time goes'
complete -c towpath -n "__fish_towpath_needs_command" -a "down" -d 'End a tunnel that `towpath up` runs, and take back what one that was killed has left behind'
complete -c towpath -n "__fish_towpath_needs_command" -a "reload" -d 'Set a running tunnel to what its file says now: peers, private key and port, while packets pass'
complete -c towpath -n "__fish_towpath_needs_command" -a "strip" -d 'Print what `wg setconf` and `wg syncconf` take of a configuration'
complete -c towpath -n "__fish_towpath_needs_command" -a "genkey" -d 'Print a new private key'
complete -c towpath -n "__fish_towpath_needs_command" -a "pubkey" -d 'Read a private key from standard input and print its public key'
complete -c towpath -n "__fish_towpath_needs_command" -a "genpsk" -d 'Print a new preshared key'
complete -c towpath -n "__fish_towpath_needs_command" -a "ticket" -d 'Print where a running tunnel can be reached, signed, for its peer; or give it the peer\'s'
complete -c towpath -n "__fish_towpath_needs_command" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c towpath -n "__fish_towpath_using_subcommand up" -l io -d 'How packets leave' -r -f -a "auto\t'`uring` when a real probe succeeds, else `suspend`'
uring\t'Fixed ring, full-queue submission, completion thread'
threaded\t'Stack packets through two channels of 1,000 to writer threads'
suspend\t'Written at once; the loop is suspended while the socket is busy'
drop\t'Written at once; dropped and counted while the socket is busy'
runtime\t'tokio-uring: one owned buffer and one operation per packet'"
complete -c towpath -n "__fish_towpath_using_subcommand up" -l ingress -d 'How packets come in [default: epoll; for the tunnel with --io uring, uring where the kernel has it]' -r -f -a "uring\t'Multishot receive with provided buffers'
epoll\t'epoll and recvmmsg'"
complete -c towpath -n "__fish_towpath_using_subcommand up" -l gso -d 'Superpackets on UDP sockets and TUN devices' -r -f -a "on\t'Used where the kernel has it'
off\t'Never used'"
complete -c towpath -n "__fish_towpath_using_subcommand up" -l no-offload -d 'Offloads to do without, with commas between them: vnet-hdr, tun-tso, tun-gro, udp-gso, udp-gro' -r
complete -c towpath -n "__fish_towpath_using_subcommand up" -l completions -d 'Who reaps completions; only with `--io uring` [default: thread]' -r -f -a "thread\t'A thread of its own'
inline\t'The submitting thread'"
complete -c towpath -n "__fish_towpath_using_subcommand up" -l busy-poll -d 'Look for input this long before going to sleep: wakes sooner, keeps a core busy; 0 for never' -r
complete -c towpath -n "__fish_towpath_using_subcommand up" -l crypto-threads -d 'Threads that seal and open packets beside the loop; only with `--io uring`. `auto`: one where the program has two cores or more' -r
complete -c towpath -n "__fish_towpath_using_subcommand up" -l ecn -d 'Copy the ECN bits of packets to what carries them, so that queues on the way can mark [default: on]' -r -f -a "on\t'Used where the kernel has it'
off\t'Never used'"
complete -c towpath -n "__fish_towpath_using_subcommand up" -l dscp -d 'DSCP of what carries data: a number, or copy for that of the packet inside [default: 0]' -r
complete -c towpath -n "__fish_towpath_using_subcommand up" -l admin -d 'Where Prometheus finds totals: /metrics, without a password, so better on 127.0.0.1 [default: nowhere]' -r
complete -c towpath -n "__fish_towpath_using_subcommand up" -l log-format -d 'How log lines look' -r -f -a "text\t'For people: time, severity, message, fields'
json\t'One JSON object a line with `time`, `severity`, `message`, `target` and the event\'s fields'"
complete -c towpath -n "__fish_towpath_using_subcommand up" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towpath -n "__fish_towpath_using_subcommand show" -l hlog -d 'Write the time that packets spend in each stage to this file, as an HdrHistogram log: since the tunnel\'s start, or with --watch second by second' -r -F
complete -c towpath -n "__fish_towpath_using_subcommand show" -l json -d 'One line of JSON for each tunnel, with everything that is known of every peer'
complete -c towpath -n "__fish_towpath_using_subcommand show" -l watch -d 'Look again every second: live in a terminal, q ends it; with --json, lines'
complete -c towpath -n "__fish_towpath_using_subcommand show" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand down" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand reload" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand strip" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand genkey" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand pubkey" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand genpsk" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand ticket" -l accept -d 'A peer\'s ticket, to be used from now on; - reads it from standard input' -r
complete -c towpath -n "__fish_towpath_using_subcommand ticket" -s h -l help -d 'Print help'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "up" -d 'Bring up the tunnel of a configuration file in wg-quick\'s format, and stay in the foreground'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "show" -d 'Show what the tunnels of this machine do: peers, paths, losses, and where time goes'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "down" -d 'End a tunnel that `towpath up` runs, and take back what one that was killed has left behind'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "reload" -d 'Set a running tunnel to what its file says now: peers, private key and port, while packets pass'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "strip" -d 'Print what `wg setconf` and `wg syncconf` take of a configuration'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "genkey" -d 'Print a new private key'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "pubkey" -d 'Read a private key from standard input and print its public key'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "genpsk" -d 'Print a new preshared key'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "ticket" -d 'Print where a running tunnel can be reached, signed, for its peer; or give it the peer\'s'
complete -c towpath -n "__fish_towpath_using_subcommand help; and not __fish_seen_subcommand_from up show down reload strip genkey pubkey genpsk ticket help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'

# The tunnels that run on this machine, as far as one may see them.
function __fish_towpath_tunnels
    for socket in /var/run/wireguard/*.sock
        string replace -r '.*/(.*)\.sock$' '$1' $socket
    end
end

complete -c towpath -n "__fish_towpath_using_subcommand show ticket" -f -a "(__fish_towpath_tunnels)"
complete -c towpath -n "__fish_towpath_using_subcommand down reload strip" -a "(__fish_towpath_tunnels)"
