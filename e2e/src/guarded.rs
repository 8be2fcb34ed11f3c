//! Tables whose services are guarded.

use std::collections::BTreeMap;

use rlvs_control::access::{self, Access};
use rlvs_control::model::{Family, ServiceId};
use rlvs_datapath::abi::{service_flag, settings_flag};

use crate::host::{Book, HostTables};
use crate::table::SECOND;

/// Names the rules of a test's service by its id, however it is found.
#[must_use]
pub fn own(id: u32) -> ServiceId {
    ServiceId::Mark { family: Family::V4, mark: id }
}

/// Puts rules in force: those of [`own`] services, and those of all.
pub fn put(tables: &mut HostTables, access: &Access) {
    let numbers: BTreeMap<_, _> = access.services.keys().copied().zip(1..).collect();
    let unit_ns = 1_000_000_000 / u64::from(SECOND);
    tables.book = Some(Book(access::book(access, &numbers, unit_ns, "")));
    for (id, record) in (0..).zip(&mut tables.services) {
        record.access = numbers.get(&own(id)).copied().unwrap_or(0);
        record.flags &= !service_flag::GUARDED;
        if record.family != 0 && access.guards(own(id)) {
            record.flags |= service_flag::GUARDED;
        }
    }
    tables.settings.flags &= !settings_flag::NUMBERED;
    if access.is_numbered() {
        tables.settings.flags |= settings_flag::NUMBERED;
    }
}
