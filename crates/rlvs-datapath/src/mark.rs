//! Firewall marks, which rules of ours give: packets meet us before netfilter does. By TC a mark that a
//! program before ours has given counts too, where no rule fits.
//!
//! The rules are a bounded list, the first that fits decides. It is looked through for a packet that may
//! open a connection and that no endpoint names; without rules its length is 0.

use crate::abi::{MARK_RULES, MarkRule};
use crate::connection::Context;
use crate::ip::{Ip, Packet};
use crate::tables::Tables;

impl<T: Tables> Context<'_, T> {
    /// Returns the mark that a packet gets, or 0.
    #[inline(never)]
    pub fn mark<A: Ip>(&self, packet: &Packet<A>) -> u32 {
        let Some(list) = self.tables.marks() else { return 0 };
        let (mut mark, length) = (0, list.length);
        for (index, rule) in (0..MARK_RULES).zip(&list.rules) {
            if index >= length {
                break;
            }
            let fits = 1 ^ self.tables.is_set(difference(rule, packet));
            let is_first = 1 ^ self.tables.is_set(mark);
            mark |= u64::from(rule.mark) & (fits & is_first).wrapping_neg();
            mark = self.tables.forget(mark);
        }
        mark as u32
    }
}

/// Returns 0 if a rule fits a packet, without a branch.
#[inline(always)]
fn difference<A: Ip>(rule: &MarkRule, packet: &Packet<A>) -> u64 {
    let ([high, low], [mask_high, mask_low]) = (rule.network, rule.mask);
    let address = packet.target.words();
    let [first, last] = rule.ports;
    let port = u64::from(packet.target_port);
    // A borrow sets the upper half.
    let ports =
        (port.wrapping_sub(first.into()) >> 32) | (u64::from(last).wrapping_sub(port) >> 32);
    let any = u64::from(rule.protocol != 0);
    ((address.0 & mask_high) ^ high)
        | ((address.1 & mask_low) ^ low)
        | u64::from(rule.family ^ A::FAMILY)
        | (u64::from(rule.protocol ^ packet.protocol) * any)
        | ports
}
