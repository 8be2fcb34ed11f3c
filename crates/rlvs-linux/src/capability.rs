//! What the kernel lets the calling thread do: capabilities(7).

use std::fs;

/// A capability that something here needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Addresses, interfaces, attaching programs.
    NetAdmin,
    /// Raw and packet sockets.
    NetRaw,
    /// Mounting, and entering namespaces.
    SysAdmin,
    /// The verifier's full knowledge of pointers, without which it refuses our programs.
    Perfmon,
    /// Maps and programs.
    Bpf,
}

impl Capability {
    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }

    /// Its bit in a set, as in `linux/capability.h`.
    const fn bit(self) -> u64 {
        1 << match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysAdmin => 21,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    /// Returns whether a set is enough, as `bpf_capable()` and `perfmon_capable()` see it.
    const fn is_in(self, set: u64) -> bool {
        let either = match self {
            Self::Perfmon | Self::Bpf => self.bit() | Self::SysAdmin.bit(),
            _ => self.bit(),
        };
        set & either != 0
    }
}

/// Returns those that the calling thread lacks; none where the kernel does not tell (no /proc).
pub fn missing(needed: &[Capability]) -> Vec<Capability> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    lacking(needed, set.unwrap_or(u64::MAX))
}

fn lacking(needed: &[Capability], set: u64) -> Vec<Capability> {
    needed.iter().copied().filter(|one| !one.is_in(set)).collect()
}

/// Returns names as a sentence has them.
pub(crate) fn names(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(|one| one.name()).collect();
    match &names[..] {
        [rest @ .., before, last] if !rest.is_empty() => {
            format!("{}, {before} and {last}", rest.join(", "))
        }
        names => names.join(" and "),
    }
}

#[cfg(test)]
mod tests {
    use super::Capability::{Bpf, NetAdmin, NetRaw, Perfmon, SysAdmin};
    use super::*;

    #[test]
    fn a_set_is_read_as_the_kernel_reads_it() {
        let all = [NetAdmin, NetRaw, SysAdmin, Perfmon, Bpf];
        assert_eq!(lacking(&all, 0), all);
        assert_eq!(lacking(&all, u64::MAX), []);
        // What `setpriv --ambient-caps +net_admin,+net_raw,+bpf` leaves in CapEff.
        assert_eq!(lacking(&all, 0x80_0000_3000), [SysAdmin, Perfmon]);
        // Before Linux 5.8 there was CAP_SYS_ADMIN only, and it is still enough.
        assert_eq!(lacking(&all, 0x20_0000), [NetAdmin, NetRaw]);
    }

    #[test]
    fn names_make_a_sentence() {
        assert_eq!(names(&[Bpf]), "CAP_BPF");
        assert_eq!(names(&[Bpf, NetRaw]), "CAP_BPF and CAP_NET_RAW");
        assert_eq!(names(&[Bpf, Perfmon, NetRaw]), "CAP_BPF, CAP_PERFMON and CAP_NET_RAW");
    }
}
