//! All bodies side by side: a frame goes through XDP and its host twin, through TC and its, and each
//! pair must do the same to the frame and to every table.

use rlvs_datapath::connection::Value;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::local;
use rlvs_datapath::stage::go_on;
use rlvs_datapath::tables::TIME_MASK;

use crate::bpf::{Body, Bpf, Input, TC_CODES, XDP_CODES};
use crate::host::{HostFrame, HostTables, decide};
use crate::network::{self, Network};
use crate::packet::{Kind, Packet};
use crate::snapshot::{self, Snapshot};
use crate::table::{Description, FROZEN_SHIFT, Server, Virtual};

/// What one body did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// Everything that changed in the tables; see [`snapshot::changes`].
    pub changes: Vec<String>,
}

/// What the bodies did with a frame.
#[derive(Clone, Debug)]
pub struct Step {
    /// XDP.
    pub xdp: Outcome,
    /// TC.
    pub tc: Outcome,
}

impl Step {
    /// Returns the outcome that both had.
    ///
    /// # Panics
    /// They differ.
    #[must_use]
    #[track_caller]
    pub fn same(self) -> Outcome {
        assert_eq!(self.xdp, self.tc, "XDP, left, and TC, right");
        self.xdp
    }
}

struct Pair<const RESOLVES: bool> {
    host: HostTables,
    bpf: Bpf,
    body: Body,
}

impl<const R: bool> Pair<R> {
    /// Runs both; returns the verdict and the frame. `all` compares every table, else those that
    /// are not large.
    fn step(&self, network: &Network, input: &Input<'_>, all: bool) -> (Verdict, Vec<u8>) {
        let body = self.body;
        let mut frame = HostFrame::<R>::new(input.frame, input.interface, &network.routes);
        frame.segmented = input.segmented;
        frame.mark = if R { input.mark } else { 0 };
        if input.cramped {
            frame.headroom = 0;
        }
        let verdict = decide(&mut frame, &self.host);
        let ran = self.bpf.run(body, input).unwrap_or_else(|error| {
            panic!("running the {body:?} body on {}: {error:?}", shown(input.frame))
        });
        let [xdp_drop, xdp_pass, xdp_tx, xdp_redirect] = XDP_CODES;
        let [tc_unspec, tc_shot, tc_redirect] = TC_CODES;
        let expected = match (body, verdict) {
            (Body::Xdp, Verdict::Pass(_) | Verdict::Resolve { .. }) => xdp_pass,
            (Body::Xdp, Verdict::Next(stage)) if !stage.is_on_xdp() => xdp_pass,
            (Body::Xdp, Verdict::Drop(_)) => xdp_drop,
            (Body::Xdp, Verdict::Transmit { interface }) if interface == input.interface => xdp_tx,
            (Body::Xdp, Verdict::Transmit { .. }) => xdp_redirect,
            (Body::Tc, Verdict::Pass(_)) => tc_unspec,
            (Body::Tc, Verdict::Drop(_)) => tc_shot,
            (Body::Tc, Verdict::Transmit { .. } | Verdict::Resolve { .. }) => tc_redirect,
            (Body::Tc, Verdict::Arrive) => tc_redirect,
            (Body::Xdp, Verdict::Arrive) => panic!("only TC can do that"),
            (_, Verdict::Next(stage)) => panic!("stopped before {stage:?}"),
        };
        let of = format!("of {body:?} for {verdict:?} on {}", shown(input.frame));
        let difference = self.bpf.difference(&self.host, all).unwrap_or_default();
        assert_eq!(ran.code, expected, "return value {of}\n{difference}");
        // The frame of a failed refusal is dropped in whatever state it is.
        if !matches!(verdict, Verdict::Drop(_)) {
            assert_eq!(ran.bytes, frame.bytes, "bytes {of}\n{difference}");
        }
        assert_eq!(difference, "", "tables {of}");
        (verdict, ran.bytes)
    }

    fn told(&self, network: &Network, input: &Input<'_>) -> Outcome {
        let before = snapshot::take(&self.host);
        let (verdict, bytes) = self.step(network, input, true);
        let changes = snapshot::changes(&before, &snapshot::take(&self.host));
        Outcome { verdict, bytes, changes }
    }
}

/// Shows the headers of a frame.
fn shown(frame: &[u8]) -> String {
    let head: String = frame.iter().take(96).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes {head}", frame.len())
}

/// Tables in all bodies, equal at all times.
pub struct World<'a> {
    /// The namespace.
    pub network: &'a Network,
    xdp: Pair<false>,
    tc: Pair<true>,
    /// Coarse time when the clock's offset is 0.
    base: u32,
}

impl<'a> World<'a> {
    /// Loads the programs, with tables from a description.
    #[must_use]
    pub fn new(network: &'a Network, description: &Description) -> Self {
        let settings = description.settings();
        let xdp = Bpf::load(&settings, Body::Xdp);
        let tc = Bpf::load(&settings, Body::Tc);
        let base = base_of_clock(network, &xdp, description.buckets);
        let mut world = Self {
            network,
            xdp: Pair { host: description.build(), bpf: xdp, body: Body::Xdp },
            tc: Pair { host: description.build(), bpf: tc, body: Body::Tc },
            base,
        };
        world.reset(description);
        world
    }

    /// Begins again with other tables of the same sizes.
    pub fn reset(&mut self, description: &Description) {
        self.xdp.host = description.build();
        self.tc.host = description.build();
        for host in [&self.xdp.host, &self.tc.host] {
            host.cpu.set(self.network.cpu);
            host.jiffies.set(u64::from(self.base) << FROZEN_SHIFT);
        }
        self.edit(|_| {});
    }

    /// Does the same to the tables of all bodies, as the control plane does.
    pub fn edit(&mut self, change: impl Fn(&mut HostTables)) {
        change(&mut self.xdp.host);
        change(&mut self.tc.host);
        self.xdp.bpf.push(&self.xdp.host);
        self.tc.bpf.push(&self.tc.host);
    }

    /// Lets time pass.
    pub fn advance(&mut self, units: u32) {
        for (host, bpf) in [(&mut self.xdp.host, &self.xdp.bpf), (&mut self.tc.host, &self.tc.bpf)]
        {
            host.settings.clock_offset = host.settings.clock_offset.wrapping_add(units);
            bpf.set(&host.settings);
        }
    }

    /// Sets the clock to a coarse time.
    pub fn set_clock(&mut self, time: u32) {
        let units = time.wrapping_sub(self.base).wrapping_sub(self.tables().settings.clock_offset);
        self.advance(units & TIME_MASK);
    }

    /// Returns the tables of the XDP body.
    #[must_use]
    pub fn tables(&self) -> &HostTables {
        &self.xdp.host
    }

    /// Returns what the tables of the XDP body hold.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        snapshot::take(self.tables())
    }

    /// Runs a frame from the clients' side through all bodies.
    #[must_use]
    pub fn step(&self, frame: &[u8]) -> Step {
        self.step_with(&Input::new(frame, self.network.inside.index))
    }

    /// Runs a frame through all bodies and tells what changed.
    #[must_use]
    pub fn step_with(&self, input: &Input<'_>) -> Step {
        Step { xdp: self.xdp.told(self.network, input), tc: self.tc.told(self.network, input) }
    }

    /// Runs a frame that leaves through the program for that and its twin, and tells what changed.
    ///
    /// # Panics
    /// They differ.
    #[must_use]
    pub fn step_out(&self, frame: &[u8]) -> Outcome {
        let input = Input::new(frame, self.network.outside.index);
        let (host, bpf) = (&self.tc.host, &self.tc.bpf);
        let before = snapshot::take(host);
        let mut twin = HostFrame::<true>::new(frame, input.interface, &self.network.routes);
        let mut verdict = local::depart(&mut twin, host);
        while let Verdict::Next(stage) = verdict {
            verdict = go_on(stage, &mut twin, host);
        }
        let ran = bpf.run_out(&input).expect("a frame that programs run on");
        let [tc_unspec, tc_shot, _] = TC_CODES;
        let expected = if matches!(verdict, Verdict::Drop(_)) { tc_shot } else { tc_unspec };
        assert_eq!((ran.code, &ran.bytes), (expected, &twin.bytes), "{}", shown(frame));
        assert_eq!(bpf.difference(host, true), None, "{}", shown(frame));
        let changes = snapshot::changes(&before, &snapshot::take(host));
        Outcome { verdict, bytes: ran.bytes, changes }
    }

    /// Runs a frame through all bodies without telling what changed, for tests of many packets;
    /// `all` compares every table, else those that are not large.
    #[must_use]
    pub fn step_quietly(&self, input: &Input<'_>, all: bool) -> Step {
        let outcome = |(verdict, bytes)| Outcome { verdict, bytes, changes: Vec::new() };
        Step {
            xdp: outcome(self.xdp.step(self.network, input, all)),
            tc: outcome(self.tc.step(self.network, input, all)),
        }
    }

    /// Runs a frame through XDP and its twin alone.
    #[must_use]
    pub fn step_xdp(&self, input: &Input<'_>) -> Outcome {
        self.xdp.told(self.network, input)
    }

    /// Runs a frame through TC and its twin alone.
    #[must_use]
    pub fn step_tc(&self, input: &Input<'_>) -> Outcome {
        self.tc.told(self.network, input)
    }

    /// Lets TC, which has run the same frame, be the one that XDP has left it to: its tables are then those of
    /// both.
    pub fn leave_to_tc(&mut self) {
        self.tc.bpf.pull(&mut self.xdp.host);
        self.xdp.bpf.push(&self.xdp.host);
    }

    /// Lets TC get what XDP, which has run a frame, leaves to it: its tables are then those of both.
    pub fn hand_to_tc(&mut self) {
        self.xdp.bpf.pull(&mut self.tc.host);
        self.tc.bpf.push(&self.tc.host);
    }

    /// Asserts that the tables of the XDP body are those of the TC body.
    ///
    /// # Panics
    /// They are not.
    pub fn assert_equal_tables(&self) {
        if let Some(difference) = self.xdp.bpf.difference(&self.tc.host, true) {
            panic!("XDP, called the kernel, and TC, called here: {difference}");
        }
    }

    /// Runs a frame through the host body as TC alone.
    #[must_use]
    pub fn step_on_host(&self, input: &Input<'_>) -> Outcome {
        let before = snapshot::take(&self.tc.host);
        let mut frame = HostFrame::<true>::new(input.frame, input.interface, &self.network.routes);
        if input.cramped {
            frame.headroom = 0;
        }
        let verdict = decide(&mut frame, &self.tc.host);
        let changes = snapshot::changes(&before, &snapshot::take(&self.tc.host));
        self.tc.bpf.push(&self.tc.host);
        Outcome { verdict, bytes: frame.bytes, changes }
    }

    /// Runs a frame through XDP as it is before anything has written the maps; returns the frame.
    ///
    /// # Panics
    /// The frame does not pass.
    #[must_use]
    pub fn run_with_zeroed_maps(&self, input: &Input<'_>) -> Vec<u8> {
        let bpf = Bpf::load(&self.tables().settings, Body::Xdp);
        let ran = bpf.run(Body::Xdp, input).expect("a frame that programs run on");
        assert_eq!(ran.code, XDP_CODES[1]);
        ran.bytes
    }

    /// Runs a frame that the hardware has summed through the TC program alone.
    ///
    /// # Errors
    /// The kernel found the sum wrong afterwards.
    pub fn run_summed(&self, frame: &[u8]) -> std::io::Result<crate::bpf::Ran> {
        let input = Input { summed: true, ..Input::new(frame, self.network.inside.index) };
        self.tc.bpf.run(Body::Tc, &input)
    }
}

/// Asks the kernel what the stopped clock shows: the time of a connection made now.
fn base_of_clock(network: &Network, bpf: &Bpf, buckets: u32) -> u32 {
    let (client, vip) = (network::client(4, 1), network::vip(4, 100));
    let server = Server {
        address: network::server(4, 11),
        port: 53,
        method: rlvs_datapath::abi::method::DIRECT,
        weight: 1,
        upper: 0,
        lower: 0,
        tunnel: rlvs_datapath::abi::Tunnel::default(),
    };
    let service = Virtual {
        address: vip,
        port: 53,
        protocol: rlvs_wire::udp::PROTOCOL,
        scheduler: rlvs_datapath::abi::scheduler::RR,
        scheduler_flags: 0,
        servers: vec![server],
    };
    let description = Description {
        services: vec![service],
        interfaces: vec![network.inside.interface(0)],
        buckets,
        flags: rlvs_datapath::abi::settings_flag::ANY,
        mss: 0,
        cpus: network.cpus,
        clock: 0,
    };
    let packet = Packet {
        from: network::GATEWAY_MAC,
        to: network.inside.mac,
        source: (client, 1000).into(),
        target: (vip, 53).into(),
        kind: Kind::Udp,
        ttl: 64,
        payload: Vec::new(),
    };
    let mut tables = description.build();
    bpf.push(&tables);
    bpf.run(Body::Xdp, &Input::new(&packet.bytes(), network.inside.index)).expect("a packet");
    bpf.pull(&mut tables);
    let mut slots = tables.connections4.iter().flat_map(|bucket| &bucket.slots);
    let time = slots.find_map(|slot| {
        let value = Value(slot.value.get());
        value.is_live().then_some(value.time())
    });
    time.expect("a connection")
}
