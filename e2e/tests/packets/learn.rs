//! What another director tells of a connection, while packets of it come in.

use std::net::IpAddr;

use e2e::host::{HostFrame, HostTables, decide};
use e2e::network::{self, Network, client, server, vip};
use e2e::packet::Kind;
use e2e::scene::{PORT, REAL_PORT, TCP, plain, reply};
use e2e::snapshot;
use e2e::table::{Description, SECOND, address_words};
use rlvs_datapath::abi::method;
use rlvs_datapath::ip::{V4, V6};
use rlvs_datapath::learn::{Learnt, Record, connection};
use rlvs_datapath::state::State;
use rlvs_wire::tcp::ACK;

use crate::persistence::any_port;

/// Swaps that learning a connection, or changing it, takes at most.
const SWAPS_MAX: u32 = 20;

/// A connection of client 7 over NAT with server 11.
struct Told {
    family: u8,
    /// Whether its service is of any port, so that the wide table has it.
    wide: bool,
}

impl Told {
    fn scene(&self, network: &Network) -> Description {
        match self.wide {
            true => any_port(network, self.family, method::MASQUERADE),
            false => plain(network, self.family, method::MASQUERADE),
        }
    }

    fn learn(&self, tables: &HostTables, state: State) -> Learnt {
        let words = |address: IpAddr| address_words(address).into();
        let record = Record {
            client: words(client(self.family, 7)),
            target: words(vip(self.family, 100)),
            server: words(server(self.family, 11)),
            port: 4242,
            target_port: PORT,
            protocol: TCP,
            service: 1,
            destination: 1,
            state: state.0,
            timeout: 60 * SECOND,
        };
        let words = record.words();
        let number = match (self.family, self.wide) {
            (4, false) => connection::<V4, _, false>(tables, &words),
            (4, true) => connection::<V4, _, true>(tables, &words),
            (_, false) => connection::<V6, _, false>(tables, &words),
            (_, true) => connection::<V6, _, true>(tables, &words),
        };
        Learnt::from_number(number).unwrap()
    }

    /// Has the server answer after so many compare-and-swaps of what learns that the client is done. Returns
    /// how often it had to be told, or `None` if there were fewer swaps.
    fn changed_beside_an_answer(&self, network: &Network, swaps: u32) -> Option<u32> {
        let tables = self.scene(network).build();
        let set = |tables: &HostTables, units: u64, cpu: u32| {
            tables.jiffies.set(units << tables.settings.clock_shift);
            tables.cpu.set(cpu);
        };
        set(&tables, 1_000, 0);
        assert_eq!(self.learn(&tables, State::ESTABLISHED), Learnt::Entered);
        let mut answer = reply(network, self.family, Kind::Tcp(ACK));
        answer.source.set_port(if self.wide { PORT } else { REAL_PORT });
        let (bytes, routes, outside) =
            (answer.bytes(), network.routes.clone(), network.outside.index);
        tables.meanwhile.set(swaps, move |tables| {
            set(tables, 1_001, 1);
            let mut frame = HostFrame::<true>::new(&bytes, outside, &routes);
            decide(&mut frame, tables);
            assert_ne!(frame.bytes, bytes, "the answer is the connection's");
            set(tables, 1_000, 0);
        });
        let mut told = 1;
        while self.learn(&tables, State::FIN_WAIT) == Learnt::Busy {
            told += 1;
            assert!(told <= 3, "user space tells no more than three times");
        }
        if tables.meanwhile.is_left() {
            return None;
        }
        let halves = match self.wide {
            true => snapshot::wide_entries(&tables),
            false => snapshot::connections(&tables),
        };
        assert_eq!(halves.len(), 2, "{halves:?}");
        for (half, value) in &halves {
            assert!(value.contains("FIN_WAIT"), "{swaps} swaps: {half} = {value}");
        }
        snapshot::assert_counts(&tables);
        assert_eq!(tables.counts[1].connections.get(), State::FIN_WAIT.one());
        Some(told)
    }
}

#[test]
fn both_halves_are_as_told_whenever_the_server_answers() {
    network::run("told-halves", |network| {
        assert!(network.cpus > 1, "a race needs two CPUs");
        for (family, wide) in [(4, false), (6, false), (4, true), (6, true)] {
            let told = Told { family, wide };
            let runs =
                (0..SWAPS_MAX).map_while(|swaps| told.changed_beside_an_answer(network, swaps));
            let runs: Vec<u32> = runs.collect();
            // The lock and both halves are swapped; where an answer met one of them it was told again.
            assert!(runs.len() > 2 && (runs.len() as u32) < SWAPS_MAX, "{runs:?}");
            assert!(runs.iter().any(|times| *times > 1), "{runs:?}");
        }
    });
}
