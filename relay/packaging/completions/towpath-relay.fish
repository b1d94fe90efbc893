# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_towpath_relay_global_optspecs
    string join \n listen= listen-tcp= listen-tls= tls-certificate= tls-key= tcp-connections-max= tcp-connections-per-address-max= tcp-queue-kib= tcp-queues-mib= realm= user= user-file= secret-file= secret-validity-max= allow-peer= relay-ports= port-sharing= relay-address= external-ip= channel-numbers= allocations-max= allocations-per-user-max= deny-peer= deny-peer-ports= allocations-per-source-max= permissions-max= channels-max= new-peers-per-user= new-peers-per-source= new-peers-total= permissions-per-user-max= permissions-total-max= channels-per-user-max= channels-total-max= allocation-rate= user-rate= source-rate= total-rate= unpaid-replies= strict-reflection hairpin= drain-timeout= alternate-server= alternate-server-tls= workers= admin= admin-users= config= check-config confine= io= ingress= gso= no-offload= completions= busy-poll= log-format= h/help V/version
end

function __fish_towpath_relay_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_towpath_relay_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_towpath_relay_using_subcommand
    set -l cmd (__fish_towpath_relay_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l listen -d 'Where clients are served; port 0 takes any free one [default: 0.0.0.0:3478 [::]:3478]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l listen-tcp -d 'Where clients are served over TCP' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l listen-tls -d 'Where clients are served over TLS; needs --tls-certificate and --tls-key' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l tls-certificate -d 'The certificate for TLS as PEM, its own first, then those that lead to its authority' -r -F
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l tls-key -d 'The private key of the certificate as PEM' -r -F
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l tcp-connections-max -d 'Most connections over TCP and TLS in all [default: 10000]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l tcp-connections-per-address-max -d 'Most of them from one IPv4 address or IPv6 /64 [default: 256]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l tcp-queue-kib -d 'Most KiB that wait for one of them; beyond it the oldest data is dropped [default: 256]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l tcp-queues-mib -d 'Most MiB that wait for all of them together, an equal part of it for each where there are many [default: 768]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l realm -d 'Realm of the credentials [default: towpath]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l user -d 'A user; visible in the process list, so better in --user-file' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l user-file -d 'A file with one NAME:PASSWORD or NAME:0xKEY a line; # starts a comment. Also fd:N, or credential:NAME of systemd' -r -F
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l secret-file -d 'A file with secrets for time-limited user names (EXPIRY:ID), one a line; # starts a comment' -r -F
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l secret-validity-max -d 'How far in the future such a name may expire [default: 24h]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l allow-peer -d 'Peers to reach although they are not public, for example 10.1.0.0/16; never the relay\'s own sockets' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l relay-ports -d 'Ports for allocations [default: 49152-65535]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l port-sharing -d 'Whether several allocations may have one port where there are fewer ports than --allocations-max [default: auto]' -r -f -a "auto\t'Where there are fewer ports than allocations may be'
off\t'Never: allocations beyond the number of ports get 508'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l relay-address -d 'Addresses for allocations, one of each family [default: the one the client sends to]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l external-ip -d 'How the address for allocations is called outside a NAT' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l channel-numbers -d 'Which channel numbers clients may bind [default: rfc5766]' -r -f -a "rfc8656\t'0x4000 to 0x4FFF only'
rfc5766\t'0x4000 to 0x7FFF, which older clients use'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l allocations-max -d 'Most allocations in all [default: 10000]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l allocations-per-user-max -d 'Most allocations of one user [default: 1000]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l deny-peer -d 'Peers to refuse, whatever --allow-peer says' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l deny-peer-ports -d 'Peer ports to refuse in ChannelBind and Send, for example 1-442,444-1023; none for none [default: 1-442,444-1023,1900,11211]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l allocations-per-source-max -d 'Most allocations of one source address or IPv6 /64 [default: as many as of one user]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l permissions-max -d 'Most permissions of one allocation, 1 to 64 [default: 64]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l channels-max -d 'Most channels of one allocation, 1 to 64 [default: 64]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l new-peers-per-user -d 'New permissions and channels a second of one user, five seconds\' worth at once; 0 for any number [default: 20]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l new-peers-per-source -d 'The same of one source address or IPv6 /64 [default: any number]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l new-peers-total -d 'The same of all clients together [default: any number]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l permissions-per-user-max -d 'Most permissions of one user [default: any number]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l permissions-total-max -d 'Most permissions in all [default: any number]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l channels-per-user-max -d 'Most channels of one user [default: any number]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l channels-total-max -d 'Most channels in all [default: any number]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l allocation-rate -d 'Most that one allocation relays each way, for example 10mbit or 10mbit,5kpps [default: no limit]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l user-rate -d 'Most that all allocations of one user relay each way, for example 100mbit [default: no limit]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l source-rate -d 'Most that all allocations of one source address or IPv6 /64 relay each way [default: no limit]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l total-rate -d 'Most that all allocations together relay each way; those give way who take most [default: no limit]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l unpaid-replies -d 'Answers a second to requests without credentials, to each /24 or IPv6 /56, beyond the bytes that came from there [default: 10]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l hairpin -d 'Whether clients may reach each other\'s relayed addresses, and do so inside the relay [default: on]' -r -f -a "on\t'From client to client inside the relay'
off\t'Over both relay sockets, and only where --allow-peer says so'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l drain-timeout -d 'How long allocations may go on after SIGTERM; 0 ends at once [default: 25]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l alternate-server -d 'Where new clients over UDP and TCP are sent while the relay drains, one of each family [default: they get 508]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l alternate-server-tls -d 'Where new clients over TLS are sent, and the name in the certificate there where it is another [default: they get 508]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l workers -d 'Loops that serve clients, each on a thread of its own [default: one for each core that the relay may use]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l admin -d 'Where metrics, probes and the status page are, or off [default: 127.0.0.1:9641]' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l admin-users -d 'Whether user names are among what is shown there [default: on]' -r -f -a "on\t'Those who relay most, by name'
off\t'How many there are'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l config -d 'A TOML file with the same names as these flags; flags win' -r -F
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l confine -d 'Give up what is not needed to serve: privileges, system calls, files' -r -f -a "on\t'Used where the kernel has it'
off\t'Never used'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l io -d 'How packets leave' -r -f -a "auto\t'`uring` when a real probe succeeds, else `suspend`'
uring\t'Fixed ring, full-queue submission, completion thread'
threaded\t'Stack packets through two channels of 1,000 to writer threads'
suspend\t'Written at once; the loop is suspended while the socket is busy'
drop\t'Written at once; dropped and counted while the socket is busy'
runtime\t'tokio-uring: one owned buffer and one operation per packet'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l ingress -d 'How packets come in [default: epoll; for the tunnel with --io uring, uring where the kernel has it]' -r -f -a "uring\t'Multishot receive with provided buffers'
epoll\t'epoll and recvmmsg'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l gso -d 'Superpackets on UDP sockets and TUN devices' -r -f -a "on\t'Used where the kernel has it'
off\t'Never used'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l no-offload -d 'Offloads to do without, with commas between them: vnet-hdr, tun-tso, tun-gro, udp-gso, udp-gro' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l completions -d 'Who reaps completions; only with `--io uring` [default: thread]' -r -f -a "thread\t'A thread of its own'
inline\t'The submitting thread'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l busy-poll -d 'Look for input this long before going to sleep: wakes sooner, keeps a core busy; 0 for never' -r
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l log-format -d 'How log lines look' -r -f -a "text\t'For people: time, severity, message, fields'
json\t'One JSON object a line with `time`, `severity`, `message`, `target` and the event\'s fields'"
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l strict-reflection -d 'Answer requests without credentials only when the answer is no longer than the request'
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -l check-config -d 'Read flags and files, print what would run, and end'
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -s V -l version -d 'Print version'
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -f -a "status" -d 'Show what a running relay does: allocations, rates, what is lost and why, users'
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -f -a "import" -d 'Turn a configuration of coturn into one of this relay, and say what has no equivalent'
complete -c towpath-relay -n "__fish_towpath_relay_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand status" -l admin -d 'Where the relay shows its figures: its --admin' -r
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand status" -l json -d 'Print the figures as one line of JSON'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand status" -l watch -d 'Print them again every second, until Ctrl-C'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand status" -s h -l help -d 'Print help'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand import" -l output -d 'Where to write the configuration; users and secrets go into files beside it [default: standard output, without secrets]' -r -F
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand import" -l force -d 'Overwrite files that are there already'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand import" -s h -l help -d 'Print help'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand help; and not __fish_seen_subcommand_from status import help" -f -a "status" -d 'Show what a running relay does: allocations, rates, what is lost and why, users'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand help; and not __fish_seen_subcommand_from status import help" -f -a "import" -d 'Turn a configuration of coturn into one of this relay, and say what has no equivalent'
complete -c towpath-relay -n "__fish_towpath_relay_using_subcommand help; and not __fish_seen_subcommand_from status import help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
