//! What is printed is read again as the same, and no text does harm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use rlvs_conf::desired::*;
use rlvs_conf::{Secrets, print, read_text};
use rlvs_control::model::{Family, ForwardingMethod, Netmask, Protocol, Tunnel, TunnelChecksum};
use rlvs_control::routing::{Action, Bound, Hop, Line, Metric, Network, Route, RouteKind, Rule};

/// A name that is no keyword.
fn name() -> impl Strategy<Value = String> {
    "[A-Z][A-Za-z0-9_.-]{0,9}".prop_map(|name| format!("x{name}"))
}

/// Text with everything that could be taken for something else.
fn text() -> impl Strategy<Value = String> {
    "x[ -\\[\\]-}ä€]{0,12}".prop_filter("means something", |text| !text.contains(['$', '~']))
}

fn command() -> impl Strategy<Value = Vec<String>> {
    ("/[a-z]{1,8}", vec("[ -~äß\t]{0,10}", 0..3))
        .prop_map(|(program, words)| std::iter::once(program).chain(words).collect())
}

fn user() -> impl Strategy<Value = User> {
    (name(), of(name())).prop_map(|(user, group)| User { user, group })
}

fn script() -> BoxedStrategy<Script> {
    (command(), of(user())).prop_map(|(command, user)| Script { command, user }).boxed()
}

fn time() -> impl Strategy<Value = Duration> {
    (1..100_000_000u64).prop_map(Duration::from_micros)
}

fn seconds() -> impl Strategy<Value = Duration> {
    (0..100_000u64).prop_map(Duration::from_secs)
}

fn v4() -> impl Strategy<Value = IpAddr> {
    any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into())
}

fn v6() -> impl Strategy<Value = IpAddr> {
    any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into())
}

fn of_family(family: Family) -> BoxedStrategy<IpAddr> {
    if family == Family::V4 { v4().boxed() } else { v6().boxed() }
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn method() -> impl Strategy<Value = ForwardingMethod> {
    let checksum = prop_oneof![
        Just(TunnelChecksum::None),
        Just(TunnelChecksum::Outer),
        Just(TunnelChecksum::Remote)
    ];
    prop_oneof![
        Just(ForwardingMethod::Masquerade),
        Just(ForwardingMethod::DirectRoute),
        Just(ForwardingMethod::Tunnel(Tunnel::Ipip)),
        any::<bool>().prop_map(|checksum| ForwardingMethod::Tunnel(Tunnel::Gre { checksum })),
        (1..u16::MAX, checksum)
            .prop_map(|(port, checksum)| ForwardingMethod::Tunnel(Tunnel::Gue { port, checksum })),
    ]
}

fn timing(rise: u32) -> BoxedStrategy<Timing> {
    let times = (time(), time(), time(), time(), of(time()));
    (times, 0..9u32, 1..9u32, prop_oneof![Just(rise), 1..9u32])
        .prop_map(
            |(
                (delay_loop, warmup, delay_before_retry, connect_timeout, timeout),
                retry,
                fall,
                rise,
            )| {
                Timing {
                    delay_loop,
                    warmup,
                    retry,
                    delay_before_retry,
                    connect_timeout,
                    timeout,
                    fall,
                    rise,
                }
            },
        )
        .boxed()
}

fn url() -> BoxedStrategy<Url> {
    let code = (100..500u16, 0..400u16).prop_map(|(first, more)| (first, first + more));
    let regex = of((text(), any::<bool>()));
    (text(), of(name()), vec(code, 1..3), of(any::<[u8; 16]>()), regex)
        .prop_map(|(path, host, status, digest, regex)| Url {
            path,
            host,
            status,
            digest,
            regex,
            kept: Vec::new(),
        })
        .boxed()
}

fn kind() -> BoxedStrategy<CheckerKind> {
    let version =
        prop_oneof![Just(HttpVersion::V10), Just(HttpVersion::V10Close), Just(HttpVersion::V11)];
    let http = (any::<bool>(), vec(url(), 1..3), version, any::<bool>(), of(name())).prop_map(
        |(tls, urls, version, fast_recovery, server_name)| {
            let http = Http { tls, urls, version, fast_recovery, server_name };
            CheckerKind::Http(Box::new(http))
        },
    );
    let reply = (vec(of(0..16u8), 0..4), any::<u16>(), any::<u16>()).prop_map(
        |(halves, length_min, length_max)| {
            let nibbles = [halves.clone(), halves].concat();
            Reply { nibbles, length_min, length_max }
        },
    );
    prop_oneof![
        http,
        Just(CheckerKind::Tcp),
        Just(CheckerKind::Ping),
        (vec(any::<u8>(), 1..9), of(reply))
            .prop_map(|(payload, reply)| CheckerKind::Udp(Box::new(Udp { payload, reply }))),
        name().prop_map(|name| CheckerKind::Dns(Box::new(Dns { record: "MX".into(), name }))),
        name().prop_map(|helo| CheckerKind::Smtp { helo }),
        (command(), of(user()), time(), any::<bool>()).prop_map(
            |(command, user, timeout, dynamic)| CheckerKind::Misc(Box::new(Misc {
                command,
                user,
                timeout,
                dynamic
            }))
        ),
    ]
    .boxed()
}

fn checker(server: IpAddr, port: u16) -> BoxedStrategy<Checker> {
    let ends = (of(v4()), of(1..u16::MAX), of(v6()), of(1..u16::MAX), of(name()), any::<u32>());
    let ends = ends.prop_map(move |(address, to, source, source_port, interface, mark)| {
        let at = SocketAddr::new(address.unwrap_or(server), to.unwrap_or(port));
        let origin = Origin { address: source, port: source_port, interface, mark };
        let at = Some(at).filter(|at| *at != SocketAddr::new(server, port)).map(Box::new);
        (at, Some(origin).filter(|origin| *origin != Origin::default()).map(Box::new))
    });
    let rest = (ends, any::<bool>(), any::<bool>());
    (kind(), timing(2), rest)
        .prop_map(move |(kind, mut timing, (mut ends, starts_down, log))| {
            if matches!(kind, CheckerKind::Misc(_)) {
                timing.connect_timeout = Timing::default().connect_timeout;
                ends = (None, None);
            }
            let timing = Arc::new(timing);
            let (at, origin) = ends;
            let kept = Vec::new();
            Checker { kind, timing, at, origin, starts_down, log_all_failures: log, kept }
        })
        .boxed()
}

fn real_server(family: Family) -> BoxedStrategy<RealServer> {
    (of_family(family), any::<u16>())
        .prop_flat_map(|(address, port)| {
            let numbers = (0..=0x7fff_ffffu32, any::<u32>(), any::<u32>());
            let scripts = (of(script()), of(script()));
            let checkers = vec(checker(address, port), 0..3);
            (numbers, method(), scripts, any::<[bool; 2]>(), checkers).prop_map(
                move |((weight, upper, lower), method, (up, down), [inhibit, mail], checkers)| {
                    RealServer {
                        address,
                        port,
                        weight,
                        method,
                        upper_threshold: upper,
                        lower_threshold: lower,
                        inhibit,
                        up: up.map(Box::new),
                        down: down.map(Box::new),
                        mail,
                        checkers: checkers.into_iter().map(Arc::new).collect(),
                        kept: Vec::new(),
                    }
                },
            )
        })
        .boxed()
}

/// Gives a real server the service's port, if its method does not change ports.
fn keep_port(real: &mut RealServer, target: &Target) {
    let Target::Address(_, port) = *target else { return };
    if real.method == ForwardingMethod::Masquerade {
        return;
    }
    real.port = port;
    let own = SocketAddr::new(real.address, port);
    let own_at = |mut checker: Checker| {
        checker.at = checker.at.filter(|at| **at != own);
        Arc::new(checker)
    };
    real.checkers = real.checkers.iter().map(|checker| own_at((**checker).clone())).collect();
}

fn virtual_server() -> BoxedStrategy<VirtualServer> {
    (family(), method(), any::<[bool; 4]>(), 0..8u8)
        .prop_flat_map(|(family, method, [omega, suspend, mail, ops], flags)| {
            let target = prop_oneof![
                (of_family(family), 0..9u16)
                    .prop_map(|(address, port)| Target::Address(address, port)),
                (1..u32::MAX).prop_map(move |mark| Target::Mark(mark, family)),
            ];
            let engine = of(Just("sip".to_owned()));
            let mask = match family {
                Family::V4 => any::<[u8; 4]>().prop_map(Netmask::V4).boxed(),
                Family::V6 => (1..=128u8).prop_map(Netmask::V6).boxed(),
            };
            let persistence =
                (1..2_678_400u64, mask, engine).prop_map(|(seconds, granularity, engine)| {
                    Persistence { timeout: Duration::from_secs(seconds), granularity, engine }
                });
            let sorry = of((of_family(family), any::<u16>(), any::<bool>()).prop_map(
                move |(address, port, inhibit)| SorryServer { address, port, method, inhibit },
            ));
            let real = vec(real_server(family), 1..4);
            (target, persistence, of(Just(())), sorry, real, of(script())).prop_map(
                move |(target, persistence, keeps, sorry_server, mut real_servers, up)| {
                    for real in &mut real_servers {
                        keep_port(real, &target);
                    }
                    let mut met = Vec::new();
                    real_servers.retain(|real| {
                        let end = (real.address, real.port);
                        let new = !met.contains(&end);
                        met.push(end);
                        new
                    });
                    let sum: u64 = real_servers.iter().map(|real| u64::from(real.weight)).sum();
                    let weight = sum.min(3) as u32;
                    let every_port = matches!(target, Target::Address(_, 0));
                    let mark = matches!(target, Target::Mark(..));
                    let tcp = |real: &RealServer| {
                        real.checkers.iter().any(|checker| {
                            matches!(
                                checker.kind,
                                CheckerKind::Http(_) | CheckerKind::Tcp | CheckerKind::Smtp { .. }
                            )
                        })
                    };
                    let tcp = !ops && !mark || mark && real_servers.iter().any(tcp);
                    VirtualServer {
                        target,
                        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                        scheduler: "mh".into(),
                        scheduler_flags: flags,
                        one_packet: ops && !tcp,
                        persistence: (keeps.is_some() || every_port).then_some(persistence),
                        method,
                        sorry_server,
                        quorum: Quorum {
                            weight,
                            hysteresis: weight.saturating_sub(1),
                            up,
                            down: None,
                        },
                        notify_at_stop: omega,
                        suspend,
                        mail,
                        real_servers,
                        kept: Vec::new(),
                    }
                },
            )
        })
        .boxed()
}

fn virtual_address(family: Family) -> BoxedStrategy<VirtualAddress> {
    let broadcast = prop_oneof![
        Just(Broadcast::No),
        Just(Broadcast::Ones),
        Just(Broadcast::Zeros),
        v4().prop_map(Broadcast::Address)
    ];
    let names = (of(name()), of(name()), of(name()));
    let peer = of((of_family(family), 0..=32u8));
    let life = of((0..u64::from(u32::MAX)).prop_map(Duration::from_secs));
    (of_family(family), 0..=30u8, broadcast, names, peer, life, any::<[bool; 6]>())
        .prop_map(
            |(address, prefix, broadcast, (interface, scope, label), peer, preferred, flags)| {
                let [
                    home,
                    detect_duplicates,
                    manage_temporary,
                    no_prefix_route,
                    autojoin,
                    untracked,
                ] = flags;
                let kept = Vec::new();
                VirtualAddress {
                    address,
                    prefix,
                    interface,
                    broadcast,
                    scope,
                    label,
                    peer,
                    home,
                    detect_duplicates,
                    manage_temporary,
                    no_prefix_route,
                    autojoin,
                    untracked,
                    preferred,
                    kept,
                }
            },
        )
        .boxed()
}

fn weight() -> impl Strategy<Value = Weight> {
    (-253..=253i16, any::<bool>()).prop_map(|(change, reverse)| Weight { change, reverse })
}

fn notify() -> BoxedStrategy<Notify> {
    let scripts = [of(script()), of(script()), of(script()), of(script())];
    (scripts, of(script()), any::<[bool; 2]>())
        .prop_map(|([master, backup, fault, stop], any, [priority_changes, mail])| Notify {
            master,
            backup,
            fault,
            stop,
            any,
            lower_priority: None,
            priority_changes,
            mail,
        })
        .boxed()
}

fn garp() -> BoxedStrategy<Garp> {
    (seconds(), any::<u32>(), seconds(), 1..u32::MAX, seconds(), any::<u32>())
        .prop_map(
            |(
                delay,
                repeat,
                refresh,
                refresh_repeat,
                lower_priority_delay,
                lower_priority_repeat,
            )| {
                Garp {
                    delay,
                    repeat,
                    refresh,
                    refresh_repeat,
                    lower_priority_delay,
                    lower_priority_repeat,
                }
            },
        )
        .boxed()
}

fn transport(family: Family) -> BoxedStrategy<Transport> {
    let peer = (of_family(family), of(any::<u8>()), of(any::<u8>()))
        .prop_map(|(address, ttl_min, ttl_max)| Peer { address, ttl_min, ttl_max });
    prop_oneof![
        of_family(family).prop_map(|group| Transport::Multicast { group }),
        (vec(peer, 1..3), any::<u8>(), any::<bool>()).prop_map(
            |(peers, ttl, fault_without_peers)| {
                Transport::Unicast { peers, ttl, fault_without_peers }
            }
        ),
    ]
    .boxed()
}

fn network(family: Family) -> BoxedStrategy<Network> {
    let most = if family == Family::V4 { 32 } else { 128u8 };
    (of_family(family), 0..=most).prop_map(|(address, bits)| Network { address, bits }).boxed()
}

fn hop(family: Family) -> BoxedStrategy<Hop> {
    (of(of_family(family)), name(), 1..=256u16, any::<bool>())
        .prop_map(|(gateway, interface, weight, onlink)| Hop {
            gateway,
            interface: Some(interface.as_str().into()),
            weight,
            onlink,
        })
        .boxed()
}

fn route() -> BoxedStrategy<RouteEntry> {
    let metrics = vec((0..Metric::WORDS.len(), any::<u8>(), any::<bool>()), 0..4);
    let numbers = (any::<u32>(), of(any::<u32>()), any::<[u8; 3]>());
    family()
        .prop_flat_map(move |family| {
            let hops = vec(hop(family), 0..4);
            let ends = (network(family), of(of_family(family)));
            let kind = of(0..RouteKind::WORDS.len());
            (kind, ends, numbers.clone(), metrics.clone(), hops, any::<bool>())
        })
        .prop_map(|(kind, (destination, source), numbers, metrics, mut hops, untracked)| {
            let (table, metric, [scope, protocol, tos]) = numbers;
            if let [hop] = hops.as_mut_slice() {
                hop.weight = 0;
            }
            let metrics = metrics.into_iter().map(|(at, value, locked)| {
                let metric = Metric::WORDS[at].1;
                let locked = locked && [Metric::Mtu, Metric::Advmss].contains(&metric);
                let flag = [Metric::QuickAck, Metric::FastOpenNoCookie].contains(&metric);
                let value = u32::from(if flag { value % 2 } else { value });
                (metric, Bound { value, locked })
            });
            let route = Route {
                kind: kind.map_or(RouteKind::Unicast, |at| RouteKind::WORDS[at].1),
                destination,
                source,
                table,
                metric,
                scope,
                protocol,
                tos,
                metrics: metrics.collect(),
                hops,
                untracked,
                line: Line::default(),
            };
            RouteEntry { route, kept: Vec::new() }
        })
        .boxed()
}

fn rule() -> BoxedStrategy<RuleEntry> {
    let action = prop_oneof![
        any::<u32>().prop_map(Action::Table),
        any::<u32>().prop_map(Action::Goto),
        (0..Action::WORDS.len()).prop_map(|at| Action::WORDS[at].1),
    ];
    let ports = of((any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b))));
    let users = of((any::<u32>(), any::<u32>()).prop_map(|(a, b)| (a.min(b), a.max(b))));
    let who = (users, of(any::<u8>()), ports.clone(), ports, of((any::<u32>(), any::<u32>())));
    let numbers = (any::<u32>(), of(any::<u32>()), of(any::<u32>()), any::<[u8; 2]>());
    let names = (of(name()), of(name())).boxed();
    family()
        .prop_flat_map(move |family| {
            let ends = (of(network(family)), of(network(family)));
            let all = (Just(family), ends, names.clone(), who.clone(), numbers.clone());
            (all, action.clone(), any::<[bool; 2]>())
        })
        .prop_map(|((family, (from, to), names, who, numbers), action, flags)| {
            let (users, ip_protocol, source_ports, destination_ports, mark) = who;
            let (priority, tunnel, suppressed_bits, [tos, protocol]) = numbers;
            let rule = Rule {
                family,
                inverted: flags[0],
                from,
                to,
                incoming: names.0.map(|name| name.as_str().into()),
                outgoing: names.1.map(|name| name.as_str().into()),
                mark,
                tos,
                ip_protocol,
                source_ports,
                destination_ports,
                users,
                tunnel: tunnel.map(u64::from),
                suppressed_bits,
                priority,
                action,
                protocol,
                untracked: flags[1],
                line: Line::default(),
            };
            RuleEntry { rule, kept: Vec::new() }
        })
        .boxed()
}

fn instance(number: u8) -> BoxedStrategy<Instance> {
    (family(), any::<bool>(), any::<bool>())
        .prop_flat_map(move |(family, v2, master)| {
            let version = if v2 && family == Family::V4 { Version::V2 } else { Version::V3 };
            let interval = match version {
                Version::V2 => (1..255u64).prop_map(Duration::from_secs).boxed(),
                Version::V3 => (1..4096u64).prop_map(|cs| Duration::from_millis(cs * 10)).boxed(),
            };
            let password = of("[ -!#-\\[\\]-}]{1,8}").prop_map(move |password| {
                let password =
                    password.filter(|text| version == Version::V2 && !text.contains(['$', '~']));
                password.map(|text| Authentication::Password(Secret::new(text)))
            });
            let preempt = prop_oneof![
                Just(Preempt::Never),
                (0..1_000_000_000u64)
                    .prop_map(|micros| Preempt::After(Duration::from_micros(micros)))
            ];
            let who = (name(), name(), 1..=255u8, interval, 1..=100u8);
            let how =
                (transport(family), of(of_family(family)), password, preempt, garp(), notify());
            let what = (
                vec(virtual_address(family), 1..4),
                vec(virtual_address(family), 0..2),
                of(weight()),
                (vec(route(), 0..3), vec(rule(), 0..3)),
            );
            (who, how, what, any::<[bool; 9]>()).prop_map(
                move |(
                    (name, interface, priority, advert_interval, down_timer_adverts),
                    how,
                    what,
                    flags,
                )| {
                    let (transport, source, authentication, preempt, garp, notify) = how;
                    let (mut addresses, excluded_addresses, weight, (mut routes, mut rules)) = what;
                    // Those that are there twice are left out.
                    routes.dedup();
                    rules.dedup();
                    let mut met = Vec::new();
                    addresses.retain(|one| {
                        let new = !met.contains(&one.address);
                        met.push(one.address);
                        new
                    });
                    let tracked = Tracked { name: "Other".into(), weight };
                    Instance {
                        name: format!("{name}{number}"),
                        interface: Some(interface),
                        router_id: NonZeroU8::new(number).expect("a number of the test"),
                        family,
                        version,
                        state: if master { State::Master } else { State::Backup },
                        priority: NonZeroU8::new(priority).expect("1 at least"),
                        advert_interval,
                        down_timer_adverts,
                        preempt: if master { Preempt::After(Duration::ZERO) } else { preempt },
                        strict: false,
                        accept: flags[0],
                        transport,
                        source,
                        track_source: flags[1],
                        virtual_mac: flags[8].then(|| VirtualMac {
                            name: flags[7].then(|| "vmac0".into()),
                            address: flags[6].then_some([2, 0, 0, 0, 0, number]),
                        }),
                        authentication,
                        addresses,
                        excluded_addresses,
                        routes,
                        rules,
                        track_interfaces: vec![tracked],
                        track_scripts: Vec::new(),
                        track_files: Vec::new(),
                        track_processes: Vec::new(),
                        ignore_own_interface: flags[2],
                        garp,
                        lower_priority_no_advert: flags[3],
                        higher_priority_send_advert: flags[4],
                        skip_address_check: flags[5],
                        check_unicast_source: flags[6],
                        checksum_without_pseudo_header: flags[7],
                        promote_secondaries: flags[8],
                        notify,
                        kept: Vec::new(),
                    }
                },
            )
        })
        .boxed()
}

fn tracked_script() -> BoxedStrategy<TrackedScript> {
    let times = ((1000..9_000_000u64).prop_map(Duration::from_micros), time());
    (name(), command(), of(user()), times, weight(), 1..9u32, 1..9u32, any::<bool>())
        .prop_map(|(name, command, user, (interval, timeout), weight, rise, fall, starts_bad)| {
            TrackedScript { name, command, user, interval, timeout, weight, rise, fall, starts_bad }
        })
        .boxed()
}

fn tracked_file() -> BoxedStrategy<TrackedFile> {
    (name(), text(), weight(), of(any::<i32>()), any::<bool>())
        .prop_map(|(name, path, weight, initial, overwritten)| {
            let overwritten = overwritten && initial.is_some();
            TrackedFile { name, path, weight, initial, overwritten }
        })
        .boxed()
}

fn tracked_process() -> BoxedStrategy<TrackedProcess> {
    let numbers = (1..=100u32, of(100..=65535u32), any::<bool>());
    let compared = (0..5usize, vec(text(), 1..4), numbers, time(), time());
    (name(), weight(), compared)
        .prop_map(
            |(name, weight, (compared, mut command, numbers, fork_delay, terminate_delay))| {
                let all = [
                    Compared::Initial,
                    Compared::Partial,
                    Compared::Command,
                    Compared::Name,
                    Compared::Program,
                ];
                let compared = all[compared];
                match compared {
                    Compared::Name | Compared::Program => command.truncate(1),
                    Compared::Command => command.push("last".to_owned()),
                    Compared::Initial | Compared::Partial => {}
                }
                let (quorum, quorum_max, none) = numbers;
                let (quorum, quorum_max) = if none { (0, Some(0)) } else { (quorum, quorum_max) };
                TrackedProcess {
                    name,
                    command,
                    compared,
                    weight,
                    quorum,
                    quorum_max,
                    fork_delay,
                    terminate_delay,
                }
            },
        )
        .boxed()
}

fn global() -> BoxedStrategy<Global> {
    let ends = (vec(text(), 0..3), of(text()), of((name(), 1..u16::MAX)));
    let mail = (ends, of(text()), time(), any::<bool>(), any::<bool>()).prop_map(
        |((to, from, server), helo, timeout, no_faults, no_services)| Mail {
            to,
            from,
            server,
            helo,
            timeout,
            no_faults,
            no_services,
        },
    );
    let fifo = (text(), of(user()), of(script())).prop_map(|(path, owner, script)| Fifo {
        path: Some(path),
        owner,
        script,
    });
    let group4 = (0..1u32 << 28).prop_map(|bits| Ipv4Addr::from(0xe000_0000 | bits).into());
    let group6 = any::<u128>().prop_map(|bits| Ipv6Addr::from(0xff << 120 | bits).into());
    let numbers = (any::<u8>(), 1..=65507u16, 1..u16::MAX, 1..=255u8);
    let daemon = (name(), of(name()), of(numbers), of(v4())).prop_map(
        |(interface, instance, numbers, group)| SyncDaemon {
            interface,
            instance,
            id: numbers.map(|numbers| numbers.0),
            message_bytes_max: numbers.map(|numbers| numbers.1),
            port: numbers.map(|numbers| numbers.2),
            ttl: numbers.map(|numbers| numbers.3),
            group,
        },
    );
    let once = (script(), 1..=1000u64)
        .prop_map(|(script, s)| Once { script, timeout: Duration::from_secs(s) });
    let fifos = (fifo, of(once.boxed()));
    (mail, fifos, of(daemon), of(user()), of(text()), group4, group6, any::<[bool; 3]>())
        .prop_map(
            |(mail, (fifo, once), sync_daemon, script_user, router_id, group4, group6, flags)| {
                Global {
                    router_id,
                    mail,
                    script_user,
                    script_security: flags[0],
                    startup: once.clone().filter(|_| flags[1]),
                    shutdown: once,
                    group4,
                    group6,
                    fifo,
                    sync_daemon,
                    flush: flags[1],
                    initial_notifies: flags[2],
                    ..Global::default()
                }
            },
        )
        .boxed()
}

fn desired() -> BoxedStrategy<Desired> {
    let instances = (instance(1), instance(2), instance(3)).prop_map(|(a, b, c)| vec![a, b, c]);
    let tracked = (tracked_script(), tracked_file(), tracked_process());
    let namespace = of(name());
    (global(), tracked, instances, notify(), virtual_server(), weight(), namespace)
        .prop_map(
            |(
                global,
                (script, file, process),
                mut instances,
                notify,
                server,
                weight,
                namespace,
            )| {
                let tracked = |name: &String| Tracked { name: name.clone(), weight: Some(weight) };
                instances[0].track_scripts = vec![tracked(&script.name)];
                instances[0].track_files = vec![tracked(&file.name)];
                instances[0].track_processes = vec![tracked(&process.name)];
                let members = instances[1..].iter().map(|instance| instance.name.clone()).collect();
                let group = SyncGroup {
                    name: "Together".into(),
                    members,
                    track_interfaces: Vec::new(),
                    track_scripts: Vec::new(),
                    track_files: vec![Tracked { name: file.name.clone(), weight: None }],
                    track_processes: vec![tracked(&process.name)],
                    notify,
                    kept: Vec::new(),
                };
                Desired {
                    global,
                    namespace,
                    scripts: vec![script],
                    files: vec![file],
                    processes: vec![process],
                    instances,
                    sync_groups: vec![group],
                    virtual_servers: vec![server],
                    ..Desired::default()
                }
            },
        )
        .boxed()
}

fn check(desired: &Desired) {
    let text = print(desired, Secrets::Shown);
    let again = read_text(&text);
    let told: Vec<_> =
        again.diagnostics.iter().map(|found| found.render(&again.sources, false)).collect();
    assert_eq!(&again.desired, desired, "{text}\n{}", told.join("\n"));
    assert!(!again.diagnostics.has_errors(), "{text}\n{}", told.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_printed_is_read_as_the_same(desired in desired()) {
        check(&desired);
    }

    #[test]
    fn whatever_is_read_is_printed_and_read_as_the_same(
        words in vec(prop_oneof![
            proptest::sample::select(WORDS).prop_map(str::to_owned),
            "[0-9]{1,3}",
        ], 0..60)
    ) {
        let read = read_text(&words.join(" "));
        let text = print(&read.desired, Secrets::Shown);
        let again = read_text(&text);
        prop_assert_eq!(again.desired, read.desired, "{}", text);
    }
}

/// Words that make configurations, and those that break them.
const WORDS: &[&str] = &[
    "{",
    "}",
    "\n",
    "\n",
    "vrrp_instance V {\n",
    "virtual_server 10.0.0.1 80 {\n",
    "global_defs {\n",
    "real_server 10.0.0.2 80 {\n",
    "HTTP_GET {\n",
    "url {\n",
    "path /x\n",
    "}\n",
    "interface eth0\n",
    "virtual_router_id",
    "virtual_ipaddress {",
    "10.0.0.3/24",
    "priority",
    "weight",
    "\"",
    "#",
    "!",
    "$A=x",
    "$A",
    "${A}",
    "~SEQ(A,1,3)",
    "auth_pass",
    "track_interface {",
    "alpha",
    "static_routes {\n",
    "via 10.0.0.1",
    "fwmark",
    "MISC_CHECK {\n",
    "misc_path \"/x y\"\n",
    "retry",
    "fall",
    "timeout",
    "use_vmac",
    "lvs_sync_daemon eth0",
    "inst",
    "notify \"/x\"\n",
    "virtual_server fwmark",
    "bfd_instance B {\n",
];
