//! Settings that the kernel's IPVS has below `net.ipv4.vs`, under the same names.

use rlvs_datapath::abi::{Settings, settings_flag};

use super::error::Error;
use super::load;
use super::maps::Maps;
use super::pins;
use super::stages::Group;

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// The largest value; the smallest is 0.
    pub max: u32,
    /// What it does.
    pub about: &'static str,
    get: fn(&Settings) -> u32,
    set: fn(&mut Settings, u32),
}

/// Every setting, by name.
pub const ALL: [Parameter; 3] = [
    Parameter {
        name: "conn_reuse_mode",
        max: 3,
        about: "a SYN on a connection that is over: 0 follows it, 1 opens a new one; with 2 added, \
                over direct routing also where the old one waits in FIN_WAIT",
        get: reuse,
        set: set_reuse,
    },
    Parameter {
        name: "expire_nodest_conn",
        max: 1,
        about: "connections of a removed real server: 0 stay silent until it returns or they run \
                out, 1 are opened anew to another",
        get: |settings| u32::from(settings.flags & settings_flag::EXPIRE_REMOVED != 0),
        set: |settings, value| put(settings, settings_flag::EXPIRE_REMOVED, value != 0),
    },
    Parameter {
        name: "tcp_mss",
        max: u16::MAX as u32,
        about: "the largest segment that ends of connections may announce to each other through \
                here, in bytes; 0 leaves what they announce (rlvs's own)",
        get: |settings| settings.mss,
        set: |settings, value| settings.mss = value,
    },
];

fn reuse(settings: &Settings) -> u32 {
    let has = |flag| settings.flags & flag != 0;
    match (has(settings_flag::FOLLOW_OVER), has(settings_flag::REUSE_FIN_WAIT)) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 3,
    }
}

fn set_reuse(settings: &mut Settings, value: u32) {
    put(settings, settings_flag::FOLLOW_OVER, value == 0);
    put(settings, settings_flag::REUSE_FIN_WAIT, value & 2 != 0);
}

fn put(settings: &mut Settings, flag: u32, on: bool) {
    settings.flags = if on { settings.flags | flag } else { settings.flags & !flag };
}

impl Parameter {
    /// Returns the setting of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|parameter| parameter.name == name)
    }

    /// Returns the value in the calling thread's network namespace.
    ///
    /// # Errors
    /// Nothing is attached, or a missing capability.
    pub fn read(&self) -> Result<u32, Error> {
        let folder = pins::open()?.ok_or(Error::NotAttached)?;
        Ok((self.get)(&Maps::open(&folder)?.settings()))
    }

    /// Changes the value there; the next packet goes by it. The caller keeps to [`max`](Self::max).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, value: u32) -> Result<(), Error> {
        let folder = pins::open()?.ok_or(Error::NotAttached)?;
        let _lock = folder.lock()?;
        let maps = Maps::open(&folder)?;
        let mut settings = maps.settings();
        (self.set)(&mut settings, value);
        if settings.mss != 0 {
            load::ensure_group(Group::Clamps)?;
        }
        maps.settings.update(0, &settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back() {
        let mut settings = Settings::default();
        let values = |settings: &Settings| ALL.map(|parameter| (parameter.get)(settings));
        assert_eq!(values(&settings), [1, 0, 0], "defaults are the kernel's");
        for (value, shown) in [(0, 0), (3, 3), (2, 3), (1, 1)] {
            set_reuse(&mut settings, value);
            assert_eq!(values(&settings), [shown, 0, 0]);
        }
        (ALL[1].set)(&mut settings, 1);
        assert_eq!(values(&settings), [1, 1, 0]);
    }
}
