//! What the benchmark and its wrapper program agree on; the benchmark includes this file too.

/// Length of every frame: the headers of an IPv6 packet over TCP and four bytes more.
pub const FRAME: usize = 78;

/// Where the words of a frame stand in it. No field that a program reads at once lies across two of
/// them, as reading back what two stores have just written would take time that frames from a
/// network card do not take.
pub const WORDS: [usize; 10] = [0, 6, 14, 22, 30, 38, 46, 54, 62, 70];

/// Cache lines of the table that a line is read of by the program `floor_line`: 64 MiB, as many as a
/// million connections of direct routing have at the design load.
pub const TABLE_LINES: u32 = 1 << 20;

/// Port of the first flow of each client.
pub const FIRST_PORT: u32 = 1024;

/// [`Course::order`]: any of the flows, as a generator says.
pub const RANDOM: u32 = 0;
/// [`Course::order`]: one flow after the other.
pub const SEQUENTIAL: u32 = 1;
/// [`Course::order`]: a flow that was not there before.
pub const NEW: u32 = 2;

/// The one element of the map `course`: the frame that is put in place of what the program under
/// test has left, and the flow that it belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    /// The frame.
    pub words: [u64; WORDS.len()],
    /// Frames sent so far.
    pub counter: u64,
    /// Address of the first client in host order: of an IPv6 one, its lower half.
    pub client: u64,
    /// 4 or 6.
    pub family: u32,
    /// 1 if the client is whom the frame goes to, 0 if it comes from it.
    pub to_client: u32,
    /// [`RANDOM`], [`SEQUENTIAL`] or [`NEW`].
    pub order: u32,
    /// Number of flows.
    pub flows: u32,
    /// The ports, source first, in host order, with 0 for the client's.
    pub ports: u32,
    /// Sum of the IPv4 header's 16-bit words without the client's address and the checksum.
    pub sum: u32,
    /// Time to live, protocol: the half word before the IPv4 header's checksum.
    pub before_sum: u32,
    /// Binary logarithm of the number of flows that one client has.
    pub ports_log2: u32,
    /// What the program `clock` read.
    pub jiffies: u64,
    /// What the program `floor_line` read.
    pub read: u64,
}

impl Course {
    /// Returns how far a flow is from the first one.
    #[inline(always)]
    pub const fn flow(&self, counter: u64) -> u64 {
        match self.order {
            RANDOM => {
                let mut mixed = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                mixed ^= mixed >> 29;
                mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
                ((mixed >> 32) * self.flows as u64) >> 32
            }
            SEQUENTIAL => match counter.checked_rem(self.flows as u64) {
                Some(flow) => flow,
                None => 0,
            },
            NEW => counter,
            _ => 0,
        }
    }

    /// Returns the client's address, as much of it as differs, and port.
    #[inline(always)]
    pub const fn client(&self, flow: u64) -> (u64, u32) {
        let log2 = self.ports_log2 & 15;
        let port = FIRST_PORT + (flow as u32 & ((1 << log2) - 1));
        (self.client + (flow >> log2), port)
    }
}
