//! A pcapng file: each packet with what was decided about it as its comment, in and out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};
use rlvs_linux::dataplane::capture::{Kept, Taken};

use super::show::{self, Names};

/// `epb_flags`: the way of a packet.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// `if_tsresol`: nanoseconds.
const NANOSECONDS: u8 = 9;

/// Says in the system's words what was wrong with a file of this name, if it is one.
fn told<T>(name: Option<&str>, written: Result<T, PcapError>) -> Result<T> {
    let written = written.map_err(|error| match error {
        PcapError::IoError(cause) => cause,
        other => io::Error::other(other),
    });
    match name {
        Some(name) => written.with_context(|| format!("writing {name}")),
        None => Ok(written?),
    }
}

/// A file that packets are written to.
pub(super) struct CaptureFile {
    /// Its name in messages; `None` for standard output.
    name: Option<String>,
    writer: PcapNgWriter<Box<dyn Write>>,
    names: Names,
    /// Number in the file of an interface of this host.
    numbers: BTreeMap<u32, u32>,
}

impl CaptureFile {
    /// Begins one, with all interfaces of the host.
    pub(super) fn begin(
        name: Option<String>,
        out: Box<dyn Write>,
        names: Names,
        snaplen: u32,
    ) -> Result<Self> {
        let mut writer = told(name.as_deref(), PcapNgWriter::new(out))?;
        let mut numbers = BTreeMap::new();
        for (number, (index, link)) in (0..).zip(names.all()) {
            let interface = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(link)),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            };
            told(name.as_deref(), writer.write_pcapng_block(interface))?;
            numbers.insert(index, number);
        }
        Ok(Self { name, writer, names, numbers })
    }

    /// Writes what came, and what went if that is another.
    pub(super) fn write(&mut self, taken: &Taken, at: Duration) -> Result<()> {
        let verdict = format!("{}: {}", taken.place.name(), show::verdict(&self.names, taken));
        self.packet(taken.interface, at, &taken.came, INBOUND, verdict)?;
        if show::went(taken) {
            let way = self.names.way_out(taken).unwrap_or(taken.interface);
            let comment = format!("after {}", show::describe(&taken.came.bytes));
            self.packet(way, at, &taken.went, OUTBOUND, comment)?;
        }
        Ok(())
    }

    fn packet(
        &mut self,
        index: u32,
        at: Duration,
        frame: &Kept,
        way: u32,
        comment: String,
    ) -> Result<()> {
        let block = EnhancedPacketBlock {
            // One that came after the file was begun stands as the first.
            interface_id: self.numbers.get(&index).copied().unwrap_or(0),
            timestamp: at,
            original_len: frame.length,
            data: Cow::Borrowed(&frame.bytes),
            options: vec![
                EnhancedPacketOption::Flags(way),
                EnhancedPacketOption::Comment(Cow::Owned(comment)),
            ],
        };
        told(self.name.as_deref(), self.writer.write_pcapng_block(block)).map(drop)
    }

    /// Ends the file.
    pub(super) fn end(self) -> Result<()> {
        told(self.name.as_deref(), self.writer.into_inner().flush().map_err(PcapError::IoError))
    }
}
