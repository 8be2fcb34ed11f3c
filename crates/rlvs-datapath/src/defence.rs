//! What is done while the connection tables run full: as `update_defense_level()`, which asks how much
//! memory the machine has left. Tables of ours have their memory from the beginning, so what counts is
//! how much of it is free.
//!
//! The sweep counts what it leaves in each table, and at the end of a pass says by [`Levels`] what is
//! in force. The programs find these in the settings, where the sweep writes them: no process has a
//! part in it.

use crate::abi::{
    SLOTS4, SLOTS6, Settings, Slot4, Slot6, SweepCursor, WIDE_SLOTS, WideSlot, mode, settings_flag,
};
use crate::connection::Context;
use crate::tables::Tables;

/// What of the settings follows from how full the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// [`Settings::drop_rate`].
    pub drop_rate: u32,
    /// [`Settings::strict`].
    pub strict: u32,
    /// [`Settings::scarce`].
    pub scarce: u32,
}

impl Levels {
    /// Returns what is in force.
    #[inline(always)]
    #[must_use]
    pub const fn of(settings: &Settings) -> Self {
        let Settings { drop_rate, strict, scarce, .. } = *settings;
        Self { drop_rate, strict, scarce }
    }

    /// Returns what the modes make of a table that is full to one of `rate` new connections, or of
    /// tables with room for all with a `rate` of 0.
    #[inline(always)]
    #[must_use]
    pub const fn by_modes(settings: &Settings, rate: u32) -> Self {
        let scarce = (rate != 0) as u32;
        let drop_rate = match settings.drop_packet {
            _ if settings.flags & settings_flag::HELD != 0 => 1,
            mode::NEVER => 0,
            mode::ALWAYS => settings.drop_rate_wanted,
            _ => rate,
        };
        let strict = match settings.secure_tcp {
            mode::NEVER => 0,
            mode::ALWAYS => 1,
            _ => scarce,
        };
        Self { drop_rate, strict, scarce }
    }
}

/// Bytes of a table: all, and those of its free slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    bytes: u64,
    free: u64,
}

impl Room {
    #[inline(always)]
    const fn new(slots: u64, size: usize, filled: u64) -> Self {
        let size = size as u64;
        Self { bytes: slots * size, free: slots.saturating_sub(filled) * size }
    }

    /// Returns which new connection of so many there is no room for, 0 if there is room for all:
    /// `amemthresh / (amemthresh - available)`, where a threshold is at most half the table.
    #[inline(always)]
    fn rate(self, pages: u32) -> u32 {
        let wanted = u64::from(pages) << PAGE_BITS;
        let half = self.bytes / 2;
        let threshold = if wanted < half { wanted } else { half };
        let missing = threshold.saturating_sub(self.free);
        threshold.checked_div(missing).unwrap_or(0) as u32
    }
}

/// Bits of an offset into a page, as which `amemthresh` counts.
const PAGE_BITS: u32 = 12;
/// One group of so many is thinned out by a pass.
const SHARE: u32 = 32;

impl<T: Tables> Context<'_, T> {
    /// Returns what is to be in force after a pass that has left as many entries as the cursor says.
    #[inline(always)]
    pub fn levels(&self, cursor: &SweepCursor) -> Levels {
        let settings = self.settings;
        let slots = |mask: u32, slots: usize| (u64::from(mask) + 1) * slots as u64;
        let [filled4, filled6, filled_wide] = &cursor.filled;
        let rooms = [
            Room::new(slots(settings.connections4_mask, SLOTS4), size_of::<Slot4>(), filled4.get()),
            Room::new(slots(settings.connections6_mask, SLOTS6), size_of::<Slot6>(), filled6.get()),
            Room::new(
                slots(settings.wide_mask, WIDE_SLOTS),
                size_of::<WideSlot>(),
                filled_wide.get(),
            ),
        ];
        let mut rate = 0;
        for room in rooms {
            let asked = room.rate(settings.amemthresh);
            if asked != 0 && (rate == 0 || asked < rate) {
                rate = asked;
            }
        }
        Levels::by_modes(settings, rate)
    }

    /// Returns which groups this pass thins out: 1 more than their number modulo 32, or 0 for none.
    #[inline(always)]
    pub fn thinned(&self, cursor: &SweepCursor) -> u32 {
        let Settings { drop_entry, scarce, .. } = *self.settings;
        let thins = drop_entry == mode::ALWAYS || drop_entry != mode::NEVER && scarce != 0;
        if thins { cursor.passes.get() as u32 % SHARE + 1 } else { 0 }
    }
}

/// Returns whether a group is one of those that [`Context::thinned`] names.
#[inline(always)]
pub const fn is_thinned(bit: u32, thinned: u32) -> bool {
    bit % SHARE + 1 == thinned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_so_many_has_no_room() {
        const MIB: u64 = 1 << 20;
        // 32 MiB, of which 1,024 pages are the last eighth.
        for (free, pages, rate) in [
            (32 * MIB, 1024, 0),
            (4 * MIB, 1024, 0),
            (4 * MIB - 1, 1024, 4 << 20),
            (3 * MIB, 1024, 4),
            (2 * MIB, 1024, 2),
            (2 * MIB - 1, 1024, 1),
            (0, 1024, 1),
            (0, 0, 0),
            (16 * MIB, u32::MAX, 0),
            (12 * MIB, u32::MAX, 4),
        ] {
            assert_eq!(Room { bytes: 32 * MIB, free }.rate(pages), rate, "{free} {pages}");
        }
    }

    #[test]
    fn modes_decide_what_a_full_table_means() {
        let settings = |drop_packet, secure_tcp| Settings {
            drop_packet,
            secure_tcp,
            drop_rate_wanted: 10,
            ..Settings::default()
        };
        for (modes, rate, levels) in [
            ((mode::NEVER, mode::NEVER), 3, (0, 0, 1)),
            ((mode::ALWAYS, mode::ALWAYS), 0, (10, 1, 0)),
            ((mode::AUTOMATIC, mode::AUTOMATIC), 0, (0, 0, 0)),
            ((mode::AUTOMATIC, mode::AUTOMATIC), 3, (3, 1, 1)),
        ] {
            let (drop_rate, strict, scarce) = levels;
            let found = Levels::by_modes(&settings(modes.0, modes.1), rate);
            assert_eq!(found, Levels { drop_rate, strict, scarce }, "{modes:?} {rate}");
            let held = Settings { flags: settings_flag::HELD, ..settings(modes.0, modes.1) };
            let found = Levels::by_modes(&held, rate);
            assert_eq!(found, Levels { drop_rate: 1, strict, scarce }, "held, {modes:?} {rate}");
        }
    }

    #[test]
    fn every_group_is_thinned_once_in_32_passes() {
        for bit in 0..64 {
            assert_eq!((1..=SHARE).filter(|thinned| is_thinned(bit, *thinned)).count(), 1);
            assert!(!is_thinned(bit, 0));
        }
    }
}
