//! The one table of metrics: names, types, texts, values. The reference docs/metrics.md is made from it.

use super::host::{Machine, Process};
use super::reading::{Destination, Fill, Interface, Program, Reading, Service, Sweep, SyncDaemon};
use super::text::Kind::{Counter, Gauge};
use super::text::Value::{Real, Whole};
use super::text::{Family, Value};
use crate::keepalived::daemon::state::{
    Attempt, Check, Counters, Group, Instance, RouterState, Script, Server,
    Service as VirtualServer, State,
};

pub(super) type Labels<const N: usize> = [&'static str; N];

pub(super) const NONE: Labels<0> = [];
pub(super) const BUILD: Labels<2> = ["version", "backend"];
pub(super) const INTERFACE: Labels<2> = ["interface", "mode"];
pub(super) const SERVICE: Labels<4> = ["proto", "local_address", "local_port", "local_mark"];
pub(super) const SERVICE_SCHEDULER: Labels<5> =
    ["proto", "local_address", "local_port", "local_mark", "scheduler"];
pub(super) const DESTINATION: Labels<6> =
    ["proto", "local_address", "local_port", "local_mark", "remote_address", "remote_port"];
pub(super) const TABLE: Labels<1> = ["table"];
pub(super) const REASON: Labels<1> = ["reason"];
pub(super) const PROGRAM: Labels<1> = ["program"];
pub(super) const SYNC_DAEMON: Labels<3> = ["role", "interface", "sync_id"];
pub(super) const SYNC_EVENT: Labels<2> = ["role", "event"];
pub(super) const ROUTER: Labels<3> = ["iname", "intf", "vrid"];
pub(super) const ROUTER_ADDRESS: Labels<4> = ["iname", "intf", "vrid", "ip_address"];
pub(super) const ROUTER_REASON: Labels<4> = ["iname", "intf", "vrid", "reason"];
pub(super) const ROUTER_WHY: Labels<6> = ["iname", "intf", "vrid", "state", "master", "why"];
pub(super) const GROUP: Labels<1> = ["group"];
pub(super) const NAME: Labels<1> = ["name"];
pub(super) const VIRTUAL_SERVER: Labels<1> = ["virtual_server"];
pub(super) const SERVER: Labels<3> = ["virtual_server", "remote_address", "remote_port"];
pub(super) const CHECK: Labels<4> = ["virtual_server", "remote_address", "remote_port", "check"];
pub(super) const CHECK_WHY: Labels<5> =
    ["virtual_server", "remote_address", "remote_port", "check", "why"];
pub(super) const EVENT: Labels<1> = ["event"];
pub(super) const MODE: Labels<1> = ["mode"];

const fn gauge<T>(
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<Value>,
) -> Family<T> {
    Family { name, kind: Gauge, help, value }
}

const fn counter<T>(
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<Value>,
) -> Family<T> {
    Family { name, kind: Counter, help, value }
}

fn flag(is_so: bool) -> Option<Value> {
    Some(Whole(u64::from(is_so)))
}

fn seconds_of_ms(milliseconds: u64) -> Option<Value> {
    Some(Real(milliseconds as f64 / 1e3))
}

fn state_number(state: RouterState) -> Option<Value> {
    Some(Whole(match state {
        RouterState::Init | RouterState::Stopped => 0,
        RouterState::Backup => 1,
        RouterState::Master => 2,
        RouterState::Fault => 3,
    }))
}

fn one<T>(_: &T) -> Option<Value> {
    Some(Whole(1))
}

fn itself(number: &u64) -> Option<Value> {
    Some(Whole(*number))
}

pub(super) const BUILDS: &[Family<Reading>] =
    &[gauge("rlvs_build_info", "Version, and whose table is shown; always 1.", one)];

pub(super) const WHOLE: &[Family<Reading>] = &[
    gauge("rlvs_table_readable", "Whether the table could be read.", |of| flag(of.error.is_none())),
    gauge("rlvs_attached_interfaces", "Interfaces on which the programs hang.", |of| {
        Some(Whole(of.interfaces.len() as u64))
    }),
    gauge("rlvs_services", "Virtual services in the table.", |of| {
        Some(Whole(of.services.len() as u64))
    }),
    gauge("rlvs_destinations", "Destinations of all virtual services.", |of| {
        Some(Whole(of.destinations.len() as u64))
    }),
    gauge(
        "rlvs_active_connections",
        "Connections in an active state, of all destinations.",
        |of| Some(Whole(of.services.iter().map(|one| one.active).sum())),
    ),
    gauge(
        "rlvs_inactive_connections",
        "Connections in any other state, of all destinations.",
        |of| Some(Whole(of.services.iter().map(|one| one.inactive).sum())),
    ),
    gauge("keepalived_up", "Whether the daemon answers.", |of| flag(of.daemon.is_some())),
];

pub(super) const INTERFACES: &[Family<Interface>] = &[gauge(
    "rlvs_interface_info",
    "An interface on which the programs hang, and how; always 1.",
    one,
)];

pub(super) const SERVICE_INFOS: &[Family<Service>] =
    &[gauge("rlvs_service_info", "A virtual service and its scheduler; always 1.", one)];

pub(super) const SERVICES: &[Family<Service>] = &[
    gauge("rlvs_service_destinations", "Destinations of a virtual service.", |of| {
        Some(Whole(of.destinations))
    }),
    gauge("rlvs_service_active_connections", "Connections in an active state.", |of| {
        Some(Whole(of.active))
    }),
    gauge("rlvs_service_inactive_connections", "Connections in any other state.", |of| {
        Some(Whole(of.inactive))
    }),
    counter("rlvs_service_connections_total", "Connections scheduled.", |of| {
        Some(Whole(of.counters.connections))
    }),
    counter("rlvs_service_incoming_packets_total", "Packets from clients.", |of| {
        Some(Whole(of.counters.in_packets))
    }),
    counter(
        "rlvs_service_outgoing_packets_total",
        "Packets to clients that passed the director.",
        |of| Some(Whole(of.counters.out_packets)),
    ),
    counter("rlvs_service_incoming_bytes_total", "Bytes of IP packets from clients.", |of| {
        Some(Whole(of.counters.in_bytes))
    }),
    counter(
        "rlvs_service_outgoing_bytes_total",
        "Bytes of IP packets to clients that passed the director.",
        |of| Some(Whole(of.counters.out_bytes)),
    ),
    gauge(
        "rlvs_service_connection_rate",
        "Connections scheduled in a second, as ipvsadm --rate shows.",
        |of| Some(Whole(of.rates.connections)),
    ),
    gauge("rlvs_service_incoming_packet_rate", "Packets from clients in a second.", |of| {
        Some(Whole(of.rates.in_packets))
    }),
    gauge("rlvs_service_outgoing_packet_rate", "Packets to clients in a second.", |of| {
        Some(Whole(of.rates.out_packets))
    }),
    gauge("rlvs_service_incoming_byte_rate", "Bytes from clients in a second.", |of| {
        Some(Whole(of.rates.in_bytes))
    }),
    gauge("rlvs_service_outgoing_byte_rate", "Bytes to clients in a second.", |of| {
        Some(Whole(of.rates.out_bytes))
    }),
];

pub(super) const DESTINATIONS: &[Family<Destination>] = &[
    gauge("rlvs_destination_weight", "Share of new connections; 0 takes none.", |of| {
        Some(Whole(of.weight.into()))
    }),
    gauge(
        "rlvs_destination_upper_threshold",
        "Connections at which it takes no more, where there is a limit.",
        |of| (of.upper_threshold != 0).then_some(Whole(of.upper_threshold.into())),
    ),
    gauge("rlvs_destination_active_connections", "Connections in an active state.", |of| {
        Some(Whole(of.active.into()))
    }),
    gauge("rlvs_destination_inactive_connections", "Connections in any other state.", |of| {
        Some(Whole(of.inactive.into()))
    }),
    gauge(
        "rlvs_destination_persistent_connections",
        "Persistence templates, where there are some.",
        |of| (of.persistent != 0).then_some(Whole(of.persistent.into())),
    ),
    counter("rlvs_destination_connections_total", "Connections scheduled.", |of| {
        Some(Whole(of.counters.connections))
    }),
    counter("rlvs_destination_incoming_packets_total", "Packets from clients.", |of| {
        Some(Whole(of.counters.in_packets))
    }),
    counter(
        "rlvs_destination_outgoing_packets_total",
        "Packets to clients that passed the director.",
        |of| Some(Whole(of.counters.out_packets)),
    ),
    counter("rlvs_destination_incoming_bytes_total", "Bytes of IP packets from clients.", |of| {
        Some(Whole(of.counters.in_bytes))
    }),
    counter(
        "rlvs_destination_outgoing_bytes_total",
        "Bytes of IP packets to clients that passed the director.",
        |of| Some(Whole(of.counters.out_bytes)),
    ),
];

pub(super) const TABLES: &[Family<Fill>] = &[
    gauge("rlvs_table_slots", "Slots of a table of connections.", |of| Some(Whole(of.slots))),
    gauge(
        "rlvs_table_used_slots",
        "Slots in use, by the counts of connections: one each, two with NAT; one for a template.",
        |of| Some(Whole(of.used)),
    ),
];

pub(super) const PACKETS: &[Family<u64>] =
    &[counter("rlvs_packets_total", "Packets that were not simply forwarded, by reason.", itself)];

pub(super) const SYNC_DAEMONS: &[Family<SyncDaemon>] = &[gauge(
    "rlvs_sync_daemon_info",
    "A connection synchronisation daemon that runs; always 1.",
    one,
)];

pub(super) const SYNC_EVENTS: &[Family<u64>] = &[counter(
    "rlvs_sync_events_total",
    "Messages and entries of connection synchronisation, by what became of them, since the daemon began.",
    itself,
)];

pub(super) const SWEEPS: &[Family<Sweep>] = &[
    counter("rlvs_sweep_passes_total", "Passes of expiry over all tables.", |of| {
        Some(Whole(of.passes))
    }),
    counter("rlvs_sweep_removed_entries_total", "Entries that expiry has removed.", |of| {
        Some(Whole(of.removed))
    }),
];

pub(super) const PROGRAMS: &[Family<Program>] = &[
    gauge(
        "rlvs_program_verified_instructions",
        "Instructions that the verifier walked at loading.",
        |of| Some(Whole(of.verified)),
    ),
    counter(
        "rlvs_program_runs_total",
        "Runs of a program; counted while the kernel's bpf_stats_enabled is 1.",
        |of| (of.runs != 0).then_some(Whole(of.runs)),
    ),
    counter(
        "rlvs_program_run_seconds_total",
        "Time that a program and those that it hands on to have run; counted likewise.",
        |of| (of.runs != 0).then_some(Real(of.run_ns as f64 / 1e9)),
    ),
];

pub(super) const DAEMON: &[Family<State>] = &[
    gauge("rlvs_daemon_start_time_seconds", "When the daemon started, since 1970.", |of| {
        seconds_of_ms(of.started_unix_ms)
    }),
    gauge(
        "rlvs_configuration_time_seconds",
        "When the configuration in force was read, since 1970.",
        |of| seconds_of_ms(of.configuration.read_unix_ms),
    ),
    gauge(
        "rlvs_configuration_last_reload_successful",
        "Whether the last reload was carried out; 1 if there was none.",
        |of| flag(of.configuration.refused.is_none()),
    ),
    counter("rlvs_configuration_reloads_total", "Reloads carried out.", |of| {
        Some(Whole(of.configuration.reloads))
    }),
    counter(
        "rlvs_configuration_reloads_refused_total",
        "Reloads refused: all went on as before.",
        |of| Some(Whole(of.configuration.reloads_refused)),
    ),
    gauge(
        "rlvs_table_changes_refused",
        "Changes that the table refused when it was last asked, and that are tried again.",
        |of| Some(Whole(of.refused.len() as u64)),
    ),
    counter(
        "rlvs_log_lines_lost_total",
        "Lines that whoever reads the log was too slow for.",
        |of| Some(Whole(of.log.lost)),
    ),
    counter(
        "rlvs_log_lines_held_back_total",
        "Lines equal to others shortly before, of which the number was told.",
        |of| Some(Whole(of.log.held_back)),
    ),
];

pub(super) const EVENTS: &[Family<u64>] = &[counter(
    "rlvs_events_total",
    "Things that have happened since the daemon started, by kind.",
    itself,
)];

pub(super) const ROUTERS: &[Family<Instance>] = &[
    gauge("rlvs_vrrp_state", "State: 0 init, 1 backup, 2 master, 3 fault.", |of| {
        state_number(of.state)
    }),
    gauge("rlvs_vrrp_state_time_seconds", "When it took on this state, since 1970.", |of| {
        seconds_of_ms(of.since_unix_ms)
    }),
    gauge("rlvs_vrrp_priority", "Priority with all weights.", |of| Some(Whole(of.priority.into()))),
    gauge("rlvs_vrrp_configured_priority", "Priority before anything tracked.", |of| {
        Some(Whole(of.configured_priority.into()))
    }),
    gauge("rlvs_vrrp_interval_seconds", "Time between its advertisements.", |of| {
        seconds_of_ms(of.interval_ms)
    }),
    counter("rlvs_vrrp_transitions_total", "Changes of state.", |of| {
        Some(Whole(of.counters.transitions))
    }),
    counter(
        "rlvs_vrrp_announcements_total",
        "Gratuitous ARPs and neighbour advertisements sent.",
        |of| Some(Whole(of.counters.announcements)),
    ),
    counter(
        "rlvs_vrrp_restored_addresses_total",
        "Addresses put back that somebody took away.",
        |of| Some(Whole(of.counters.restored)),
    ),
];

pub(super) const ROUTER_INFOS: &[Family<Instance>] = &[gauge(
    "rlvs_vrrp_info",
    "State, the other that was last heard as master, and why the state is what it is; always 1.",
    one,
)];

pub(super) const REJECTED: &[Family<u64>] = &[counter(
    "rlvs_vrrp_rejected_packets_total",
    "Packets that did not count, by reason.",
    itself,
)];

pub(super) const GROUPS: &[Family<Group>] =
    &[gauge("rlvs_vrrp_group_state", "State of a sync group, as of rlvs_vrrp_state.", |of| {
        state_number(of.state)
    })];

fn rejected(counters: &Counters, reason: &str) -> Option<Value> {
    Some(Whole(counters.rejected.get(reason).copied().unwrap_or(0)))
}

/// The names that exporters for keepalived have.
pub(super) const KNOWN: &[Family<Counters>] = &[
    counter("keepalived_advertisements_received_total", "Advertisements received.", |of| {
        Some(Whole(of.received))
    }),
    counter("keepalived_advertisements_sent_total", "Advertisements sent.", |of| {
        Some(Whole(of.sent))
    }),
    counter("keepalived_become_master_total", "How often it became master.", |of| {
        Some(Whole(of.became_master))
    }),
    counter("keepalived_release_master_total", "How often it ceased to be master.", |of| {
        Some(Whole(of.released_master))
    }),
    counter("keepalived_packet_length_errors_total", "Packets of a wrong length.", |of| {
        rejected(of, "length")
    }),
    counter(
        "keepalived_advertisements_interval_errors_total",
        "Packets with another interval.",
        |of| rejected(of, "interval"),
    ),
    counter("keepalived_ip_ttl_errors_total", "Packets that a router has forwarded.", |of| {
        rejected(of, "hops")
    }),
    counter(
        "keepalived_invalid_type_received_total",
        "Packets that are no advertisements.",
        |of| rejected(of, "type"),
    ),
    counter("keepalived_address_list_errors_total", "Advertisements of other addresses.", |of| {
        Some(Whole(of.addresses_differ))
    }),
    counter(
        "keepalived_authentication_invalid_total",
        "Packets with another type of authentication.",
        |of| rejected(of, "authentication_type"),
    ),
    counter(
        "keepalived_authentication_mismatch_total",
        "Always 0: counted with the invalid ones.",
        |_| Some(Whole(0)),
    ),
    counter("keepalived_authentication_failure_total", "Packets with another password.", |of| {
        rejected(of, "password")
    }),
    counter("keepalived_priority_zero_received_total", "Resignations received.", |of| {
        Some(Whole(of.resignations_received))
    }),
    counter("keepalived_priority_zero_sent_total", "Resignations sent.", |of| {
        Some(Whole(of.resignations_sent))
    }),
];

pub(super) const KNOWN_STATES: &[Family<Instance>] = &[gauge(
    "keepalived_vrrp_state",
    "State: 0 init, 1 backup, 2 master, 3 fault; for each address.",
    |of| state_number(of.state),
)];
pub(super) const KNOWN_EXCLUDED: &[Family<Instance>] =
    &[gauge("keepalived_vrrp_excluded_state", "The same for each excluded address.", |of| {
        state_number(of.state)
    })];
pub(super) const SCRIPTS: &[Family<Script>] = &[gauge(
    "keepalived_script_status",
    "Whether a tracked script last succeeded, once it has ended.",
    |of| flag(of.good?),
)];

pub(super) const VIRTUAL_SERVERS: &[Family<VirtualServer>] = &[
    gauge("rlvs_quorum_held", "Whether enough servers are good.", |of| flag(of.quorum.held)),
    gauge("rlvs_quorum_time_seconds", "When that was last gained or lost, since 1970.", |of| {
        seconds_of_ms(of.quorum.since_unix_ms)
    }),
    gauge("rlvs_quorum_weight", "Sum of weights of good servers.", |of| {
        Some(Whole(of.quorum.weight))
    }),
    gauge("rlvs_quorum_lost_below", "Sum of weights below which the quorum is lost.", |of| {
        Some(Whole(of.quorum.lost_below))
    }),
    counter("rlvs_quorum_losses_total", "How often the quorum was lost.", |of| {
        Some(Whole(of.quorum.losses))
    }),
    gauge(
        "rlvs_sorry_server_serves",
        "Whether the sorry server serves, where there is one.",
        |of| flag(of.sorry.as_ref()?.serves),
    ),
    gauge("rlvs_checks_suspended", "Whether the checks rest.", |of| flag(of.suspended)),
];

pub(super) const SERVERS: &[Family<Server>] = &[
    gauge("rlvs_server_up", "Whether all checks of a real server are good.", |of| flag(of.up)),
    gauge("rlvs_server_time_seconds", "When it last went up or down, since 1970.", |of| {
        seconds_of_ms(of.since_unix_ms)
    }),
    gauge("rlvs_server_weight", "The weight that it has while it is good.", |of| {
        Some(Whole(of.weight.into()))
    }),
    counter("rlvs_server_downs_total", "How often it went down.", |of| Some(Whole(of.downs))),
];

pub(super) const CHECKS: &[Family<Check>] = &[
    gauge("rlvs_check_up", "Whether the server is good, as far as this check can tell.", |of| {
        flag(of.up)
    }),
    gauge("rlvs_check_duration_seconds", "How long the last attempt took.", |of| {
        Some(Real(of.last.as_ref()?.took_us as f64 / 1e6))
    }),
    counter("rlvs_check_attempts_total", "Attempts that have ended.", |of| {
        Some(Whole(of.attempts))
    }),
    counter("rlvs_check_failures_total", "Those of them that failed.", |of| {
        Some(Whole(of.failures))
    }),
];

pub(super) const CHECK_FAILURES: &[Family<Attempt>] = &[gauge(
    "rlvs_check_failure_info",
    "What a check saw whose last attempt did not succeed; always 1.",
    one,
)];

pub(super) const PROCESS: &[Family<Process>] = &[
    counter("process_cpu_seconds_total", "Time that this process has used processors for.", |of| {
        Some(Real(of.cpu_seconds))
    }),
    gauge("process_resident_memory_bytes", "Memory that this process has.", |of| {
        Some(Whole(of.resident_bytes))
    }),
    gauge(
        "process_virtual_memory_bytes",
        "Addresses that this process has, with the tables that it maps.",
        |of| Some(Whole(of.virtual_bytes)),
    ),
    gauge("process_threads", "Threads of this process.", |of| Some(Whole(of.threads))),
    gauge("process_open_fds", "Descriptors that this process has open.", |of| {
        Some(Whole(of.open_descriptors))
    }),
    gauge("process_max_fds", "Descriptors that it may have open, if there is a limit.", |of| {
        Some(Whole(of.max_descriptors?))
    }),
    gauge("process_start_time_seconds", "When this process started, since 1970.", |of| {
        Some(Real(of.started_seconds))
    }),
];

pub(super) const MACHINE: &[Family<Machine>] = &[
    gauge("rlvs_machine_processors", "Processors of the machine.", |of| Some(Whole(of.processors))),
    gauge("rlvs_machine_memory_bytes", "Memory of the machine.", |of| Some(Whole(of.memory_bytes))),
    gauge(
        "rlvs_machine_available_memory_bytes",
        "Memory that programs can have without swapping.",
        |of| Some(Whole(of.available_bytes)),
    ),
    gauge("rlvs_machine_load1", "Load of the last minute.", |of| Some(Real(of.load1))),
    gauge("rlvs_machine_boot_time_seconds", "When the machine started, since 1970.", |of| {
        Some(Real(of.started_seconds))
    }),
];

pub(super) const MACHINE_CPU: &[Family<f64>] = &[counter(
    "rlvs_machine_cpu_seconds_total",
    "Time of all processors by what they did; packets are softirq.",
    |of| Some(Real(*of)),
)];
