//! TCP states, driven by packets: the kernel's tables, every state by every event.

use e2e::bpf::Input;
use e2e::host::HostTables;
use e2e::network::{self, client};
use e2e::packet::Kind;
use e2e::scene::{TCP, description, destination, plain, reply, request, service};
use e2e::table::Description;
use e2e::world::World;
use rlvs_datapath::abi::{destination_flag, method, settings_flag};
use rlvs_datapath::connection::Value;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::state::State;
use rlvs_datapath::wide::{kind, kind_of};
use rlvs_wire::tcp::{ACK, FIN, RST, SYN};

/// Who sends, with which flags, and the state after that.
type Moment = (char, u8, &'static str);

/// ip_vs_proto_tcp.c, from left to right the states in the order of their numbers.
const INPUT: &str = "
    syn SR ES ES SR SR SR SR SR SR SR SR
    fin CL CW SS TW TW TW CL CW LA LI TW
    ack ES ES SS ES FW TW CL CW CL LI ES
    rst CL CL CL SR CL CL CL CL LA LI SR";
const OUTPUT: &str = "
    syn SS ES SS SR SS SS SS SS SS LI SR
    fin TW FW SS TW FW TW CL TW LA LI TW
    ack ES ES SS ES FW TW CL CW LA ES ES
    rst CL CL SS CL CL TW CL CL CL CL CL";
const INPUT_ONLY: &str = "
    syn SR ES ES SR SR SR SR SR SR SR SR
    fin CL FW SS TW FW TW CL CW LA LI TW
    ack ES ES SS ES FW TW CL CW CL LI ES
    rst CL CL CL SR CL CL CL CL LA LI CL";
/// The same of `secure_tcp`.
const STRICT_INPUT: &str = "
    syn SR ES ES SR SR SR SR SR SR SR SA
    fin CL CW SS TW TW TW CL CW LA LI SA
    ack ES ES SS SR FW TW CL CW CL LI SA
    rst CL CL CL SR CL CL CL CL LA LI CL";
const STRICT_OUTPUT: &str = "
    syn SS ES SS SA SS SS SS SS SS LI SA
    fin TW FW SS TW FW TW CL TW LA LI TW
    ack ES ES SS ES FW TW CL CW LA ES ES
    rst CL CL SS CL CL TW CL CL CL CL CL";
const STRICT_INPUT_ONLY: &str = "
    syn SA ES ES SR SA SA SA SA SA SA SA
    fin CL FW SS TW FW TW CL CW LA LI TW
    ack ES ES SS ES FW TW CL CW CL LI ES
    rst CL CL CL SR CL CL CL CL LA LI CL";
const SHORT: [&str; 11] = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"];
const ACTIVE: [&str; 4] = ["SS", "SR", "SA", "ES"];

fn next(table: &str, state: usize, event: &str) -> usize {
    let line = table.lines().find(|line| line.trim().starts_with(event)).unwrap();
    let short = line.split_whitespace().nth(1 + state).unwrap();
    SHORT.iter().position(|name| *name == short).unwrap()
}

/// Events with flags that mean them: RST comes first, then SYN, FIN, ACK.
const EVENTS: [(&str, u8); 8] = [
    ("syn", SYN),
    ("syn", SYN | FIN | ACK),
    ("fin", FIN),
    ("fin", FIN | ACK),
    ("ack", ACK),
    ("ack", ACK | 8),
    ("rst", RST),
    ("rst", RST | SYN | FIN | ACK),
];

fn put(value: u64, state: usize) -> u64 {
    value & !(15 << 25) | (state as u64) << 25
}

#[test]
fn every_state_by_every_event_is_the_kernels() {
    network::run("states", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let walks = [
            (4, method::DIRECT, INPUT_ONLY, false, 0),
            (4, method::MASQUERADE, INPUT, false, 0),
            (4, method::MASQUERADE, OUTPUT, true, 0),
            (6, method::DIRECT, INPUT_ONLY, false, 0),
            (6, method::MASQUERADE, INPUT, false, 0),
            (6, method::MASQUERADE, OUTPUT, true, 0),
            (4, method::DIRECT, STRICT_INPUT_ONLY, false, 1),
            (6, method::MASQUERADE, STRICT_INPUT, false, 1),
            (4, method::MASQUERADE, STRICT_OUTPUT, true, 1),
        ];
        for (family, method, table, replies, strict) in walks {
            world.reset(&plain(network, family, method));
            world.edit(|tables| tables.settings.strict = strict);
            let opening = request(network, family, Kind::Tcp(SYN)).bytes();
            let step = world.step_quietly(&Input::new(&opening, network.inside.index), false);
            assert_eq!(step.xdp, step.tc);
            if !replies {
                let entries = e2e::snapshot::connections(world.tables());
                let first = State::NAMES[next(table, 0, "syn")];
                assert!(entries.values().all(|value| value.starts_with(first)), "{entries:?}");
            }
            for (before, (event, flags)) in
                (0..11).flat_map(|state| EVENTS.map(|event| (state, event)))
            {
                world.edit(|tables| {
                    let four = tables.connections4.iter().flat_map(|bucket| &bucket.slots);
                    let six = tables.connections6.iter().flat_map(|bucket| &bucket.slots);
                    let values = four.map(|slot| &slot.value).chain(six.map(|slot| &slot.value));
                    for value in values.filter(|value| Value(value.get()).is_live()) {
                        value.set(put(value.get(), before));
                    }
                    let active = ACTIVE.contains(&SHORT[before]);
                    tables.counts[1].connections.set(if active { 1 } else { 1 << 32 });
                });
                let kind = Kind::Tcp(flags);
                let (packet, interface) = if replies {
                    (reply(network, family, kind), network.outside.index)
                } else {
                    (request(network, family, kind), network.inside.index)
                };
                let step = world.step_quietly(&Input::new(&packet.bytes(), interface), false);
                assert_eq!(step.xdp, step.tc);
                let after = next(table, before, event);
                let said = format!("{} and {event} ({flags:02x}) of {table}", SHORT[before]);
                let entries = e2e::snapshot::connections(world.tables());
                let name = State::NAMES[after];
                let client = client(family, 7);
                if method == method::MASQUERADE {
                    let half = |owner| entries.get(&format!("{client}:4242 {owner}")).cloned();
                    assert_eq!(half("s1"), Some(format!("{name} d1 paired")), "{said}");
                    assert_eq!(half("r1"), Some(format!("{name} d1 paired reply")), "{said}");
                    assert_eq!(entries.len(), 2, "{said}");
                } else {
                    let values: Vec<&String> = entries.values().collect();
                    assert_eq!(values, [&format!("{name} d1")], "{said}");
                }
                let counts = world.tables().counts[1].connections.get();
                let active = ACTIVE.contains(&SHORT[after]);
                assert_eq!(counts, if active { 1 } else { 1 << 32 }, "{said}");
            }
        }
    });
}

/// The lives of connections as the kernel was seen to lead them.
#[test]
fn connections_live_as_in_the_kernel() {
    network::run("lives", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        // A capital letter is the client's, a small one the server's.
        let lives: [(u8, &[Moment]); 6] = [
            (
                method::MASQUERADE,
                &[
                    ('C', SYN, "SYN_RECV"),
                    ('s', SYN | ACK, "SYN_RECV"),
                    ('C', ACK, "ESTABLISHED"),
                    ('C', FIN | ACK, "CLOSE_WAIT"),
                    ('s', FIN | ACK, "TIME_WAIT"),
                    ('C', ACK, "TIME_WAIT"),
                ],
            ),
            (
                method::MASQUERADE,
                &[
                    ('C', SYN, "SYN_RECV"),
                    ('s', SYN | ACK, "SYN_RECV"),
                    ('C', ACK, "ESTABLISHED"),
                    ('s', FIN | ACK, "FIN_WAIT"),
                    ('C', FIN | ACK, "TIME_WAIT"),
                ],
            ),
            (method::MASQUERADE, &[('C', SYN, "SYN_RECV"), ('s', RST | ACK, "CLOSE")]),
            (
                method::MASQUERADE,
                &[
                    ('C', SYN, "SYN_RECV"),
                    ('s', SYN | ACK, "SYN_RECV"),
                    ('C', ACK, "ESTABLISHED"),
                    ('C', RST, "CLOSE"),
                ],
            ),
            (
                method::DIRECT,
                &[
                    ('C', SYN, "SYN_RECV"),
                    ('C', ACK, "ESTABLISHED"),
                    ('C', FIN | ACK, "FIN_WAIT"),
                    ('C', ACK, "FIN_WAIT"),
                ],
            ),
            (
                method::DIRECT,
                &[('C', SYN, "SYN_RECV"), ('C', ACK, "ESTABLISHED"), ('C', RST, "CLOSE")],
            ),
        ];
        for (family, (method, life)) in
            [4, 6].into_iter().flat_map(|family| lives.map(|life| (family, life)))
        {
            world.reset(&plain(network, family, method));
            for &(who, flags, state) in life {
                let kind = Kind::Tcp(flags);
                let outcome = if who == 'C' {
                    world.step(&request(network, family, kind).bytes())
                } else {
                    let frame = reply(network, family, kind).bytes();
                    world.step_with(&Input::new(&frame, network.outside.index))
                };
                assert!(matches!(
                    outcome.same().verdict,
                    rlvs_datapath::frame::Verdict::Transmit { .. }
                ));
                let entries = e2e::snapshot::connections(world.tables());
                assert!(entries.values().all(|value| value.starts_with(state)), "{entries:?}");
                let active = ["SYN_RECV", "ESTABLISHED"].contains(&state);
                let counts = world.tables().counts[1].connections.get();
                assert_eq!(counts, if active { 1 } else { 1 << 32 }, "{state}");
            }
        }
    });
}

/// Tables with a service over TCP that has two destinations.
fn two(network: &network::Network, family: u8, method: u8, flags: u32) -> Description {
    let servers = [11, 12].map(|number| destination(family, number, method));
    let mut description = description(network, vec![service(family, TCP, servers.to_vec())]);
    description.flags = flags;
    description
}

/// Puts every half of a connection into a state, and the counts with it.
pub(crate) fn put_all(world: &mut World<'_>, state: State) {
    world.edit(|tables| {
        let four = tables.connections4.iter().flat_map(|bucket| &bucket.slots);
        let six = tables.connections6.iter().flat_map(|bucket| &bucket.slots);
        let wide = tables.wide.iter().flat_map(|bucket| &bucket.slots);
        let halves = wide.filter(|slot| kind_of(slot.key.get()) < kind::TEMPLATE);
        let values = four.map(|slot| &slot.value).chain(six.map(|slot| &slot.value));
        for value in values
            .chain(halves.map(|slot| &slot.value))
            .filter(|value| Value(value.get()).is_live())
        {
            value.set(put(value.get(), state.0 as usize));
        }
        tables.counts[1].connections.set(if state.is_active() { 1 } else { 1 << 32 });
    });
}

/// conn_reuse_mode: which server a SYN on a used port goes to, by mode, method and state.
#[test]
fn a_syn_leaves_a_connection_that_is_over() {
    use settings_flag::{FOLLOW_OVER, REUSE_FIN_WAIT};
    network::run("reuse", |network| {
        let mut world = World::new(network, &two(network, 4, method::DIRECT, 0));
        let states = [State::ESTABLISHED, State::FIN_WAIT, State::TIME_WAIT, State::CLOSE];
        let methods = [method::DIRECT, method::MASQUERADE];
        for (family, method, flags, state) in [4, 6]
            .into_iter()
            .flat_map(|family| methods.map(|method| (family, method)))
            .flat_map(|(family, method)| {
                [0, FOLLOW_OVER, REUSE_FIN_WAIT].map(|f| (family, method, f))
            })
            .flat_map(|(family, method, flags)| states.map(|state| (family, method, flags, state)))
        {
            world.reset(&two(network, family, method, flags));
            let syn = request(network, family, Kind::Tcp(SYN)).bytes();
            let _ = world.step(&syn).same();
            put_all(&mut world, state);
            let said = format!(
                "IPv{family}, method {method}, flags {flags}, {}",
                State::NAMES[state.0 as usize]
            );
            let outcome = world.step(&syn).same();
            let over = state == State::TIME_WAIT || state == State::CLOSE;
            let waits = state == State::FIN_WAIT && method == method::DIRECT;
            let leaves = over && flags != FOLLOW_OVER || waits && flags == REUSE_FIN_WAIT;
            let server = if leaves { 12 } else { 11 };
            assert_eq!(outcome.bytes[..6], network::server_mac(server), "{said}");
            let entries = e2e::snapshot::connections(world.tables());
            let halves = if method == method::MASQUERADE { 2 } else { 1 };
            assert_eq!(entries.len(), halves, "{said}: {entries:?}");
            let destination = format!(" d{}", if leaves { 2 } else { 1 });
            assert!(
                entries.values().all(|value| value.contains(&destination)),
                "{said}: {entries:?}"
            );
            let counts = [1, 2].map(|id: usize| world.tables().counts[id].connections.get());
            assert_eq!(counts, if leaves { [0, 1] } else { [1, 0] }, "{said}");
        }
    });
}

/// expire_nodest_conn: what becomes of packets whose server was removed or quiesced.
#[test]
fn connections_of_removed_servers_are_opened_anew_if_asked() {
    let gone = |tables: &mut HostTables| tables.destinations[1].flags = 0;
    let quiet = |tables: &mut HostTables| tables.destinations[1].weight = 0;
    network::run("nodest", |network| {
        let mut world = World::new(network, &two(network, 4, method::DIRECT, 0));
        for family in [4, 6] {
            let frame = |flags| request(network, family, Kind::Tcp(flags)).bytes();
            let expire = two(network, family, method::MASQUERADE, settings_flag::EXPIRE_REMOVED);
            for (flags, change, moves) in [
                (SYN, &gone as &dyn Fn(&mut HostTables), true),
                (SYN, &quiet, true),
                (ACK, &quiet, false),
            ] {
                world.reset(&expire);
                let _ = world.step(&frame(SYN)).same();
                world.edit(change);
                let outcome = world.step(&frame(flags)).same();
                let server = network::server_mac(if moves { 12 } else { 11 });
                assert_eq!(outcome.bytes[..6], server);
                let counts = [1, 2].map(|id: usize| world.tables().counts[id].connections.get());
                assert_eq!(counts, if moves { [0, 1] } else { [1, 0] });
            }
            // What starts nothing is left to the stack, which resets it.
            world.reset(&expire);
            let _ = world.step(&frame(SYN)).same();
            world.edit(gone);
            let outcome = world.step(&frame(ACK)).same();
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
            assert!(e2e::snapshot::connections(world.tables()).is_empty());
            assert_eq!(world.tables().counts[1].connections.get(), 0);
            // Unasked it stays silent, and speaks again when the server returns.
            world.reset(&two(network, family, method::MASQUERADE, 0));
            let _ = world.step(&frame(SYN)).same();
            world.edit(gone);
            let silent = world.step(&frame(SYN)).same();
            assert_eq!(silent.verdict, Verdict::Drop(Reason::Removed));
            world.edit(|tables| tables.destinations[1].flags = destination_flag::AVAILABLE);
            let again = world.step(&frame(ACK)).same();
            assert_eq!(again.bytes[..6], network::server_mac(11));
        }
    });
}

/// A client that tries again, or another from the same port, does not wait for a server that has not
/// answered and was taken out: by what it sends, state of the connection and how the server is.
#[test]
fn a_half_open_connection_leaves_a_server_that_is_out_of_service() {
    let retired = |tables: &mut HostTables| {
        tables.destinations[1].weight = 0;
        tables.destinations[1].retired_at = 1;
    };
    let quiet = |tables: &mut HostTables| tables.destinations[1].weight = 0;
    network::run("halfopen", |network| {
        let mut world = World::new(network, &two(network, 4, method::DIRECT, 0));
        for (family, method) in
            [4, 6].into_iter().flat_map(|it| [(it, method::DIRECT), (it, method::MASQUERADE)])
        {
            let frame = |flags| request(network, family, Kind::Tcp(flags)).bytes();
            for (flags, state, change, moves) in [
                (SYN, State::SYN_RECV, &retired as &dyn Fn(&mut HostTables), true),
                (ACK, State::SYN_RECV, &retired, false),
                (SYN, State::ESTABLISHED, &retired, false),
                (SYN, State::FIN_WAIT, &retired, false),
                (SYN, State::SYN_RECV, &quiet, false),
            ] {
                world.reset(&two(network, family, method, 0));
                let _ = world.step(&frame(SYN)).same();
                put_all(&mut world, state);
                world.edit(change);
                let outcome = world.step(&frame(flags)).same();
                let said = format!("IPv{family}, method {method}, {state:?}, moves: {moves}");
                let server = network::server_mac(if moves { 12 } else { 11 });
                assert_eq!(outcome.bytes[..6], server, "{said}");
                let destination = format!(" d{}", if moves { 2 } else { 1 });
                let entries = e2e::snapshot::connections(world.tables());
                assert!(
                    entries.values().all(|it| it.contains(&destination)),
                    "{said}: {entries:?}"
                );
                assert_eq!(world.tables().counts[1].connections.get() == 0, moves, "{said}");
            }
        }
    });
}
