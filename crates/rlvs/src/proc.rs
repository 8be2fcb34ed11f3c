//! `rlvs proc`: what the kernel's IPVS has below `/proc/net`, of our table and in the kernel's words,
//! for programs that read it there.

use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use rlvs_control::memory::MemoryTable;
use rlvs_control::model::{
    Connection, DestinationEntry, Family, ForwardingMethod, Netmask, ServiceEntry, ServiceId,
    Traffic, Version,
};
use rlvs_control::table::Table;
use rlvs_linux::dataplane::load;
use rlvs_linux::dataplane::table::{BpfTable, Total};
use serde_json::json;

use crate::ipvsadm::{self, Columns, What};
use crate::json::{Json, SCHEMA, traffic};

/// The files that there are.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum File {
    /// Services and destinations
    #[value(name = "ip_vs")]
    Services,
    /// Connections
    #[value(name = "ip_vs_conn")]
    Connections,
    /// Connections, with where they were made
    #[value(name = "ip_vs_conn_sync")]
    Origins,
    /// Totals and rates
    #[value(name = "ip_vs_stats")]
    Stats,
    /// The same, for each CPU too
    #[value(name = "ip_vs_stats_percpu")]
    StatsByCpu,
    /// Helpers for protocols, of which there are none
    #[value(name = "ip_vs_app")]
    Helpers,
}

/// Arguments of `rlvs proc`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the file below /proc/net
    #[arg(value_enum)]
    file: File,
    #[command(flatten)]
    json: Json,
}

/// Runs `rlvs proc`.
///
/// # Errors
/// A missing capability, or pins of another layout.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let text = match arguments.json.json {
        true => as_json(arguments.file)?,
        false => text(arguments.file)?,
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the table at once and closes it before anything is written.
fn text(file: File) -> Result<String> {
    let mut table = BpfTable::open()?;
    Ok(match file {
        File::Services => {
            let entries = table.as_mut().map_or(Ok(Vec::new()), Table::services)?;
            let size = table.as_mut().map_or(Ok(SIZE), Table::connection_table_size)?;
            drop(table);
            services(&entries, size, ticks_per_second()?)
        }
        File::Connections | File::Origins => {
            let list = table.as_mut().map_or(Ok(Vec::new()), Table::connections)?;
            drop(table);
            connections(&list, matches!(file, File::Origins))
        }
        File::Stats => stats(&table.map_or_else(Total::default, |table| table.total())),
        File::StatsByCpu => {
            let (total, by_cpu) = table.map_or_else(
                || (Total::default(), vec![Traffic::default()]),
                |table| (table.total(), table.counted_by_cpu()),
            );
            stats_by_cpu(&by_cpu, &total)
        }
        File::Helpers => "prot port    usecnt name\n".to_owned(),
    })
}

/// Returns the same as a line of JSON, services and connections as `ipvsadm -L --json` has them.
fn as_json(file: File) -> Result<String> {
    let mut table = BpfTable::open()?;
    let value = match file {
        File::Services | File::Connections | File::Origins => {
            let mut empty = MemoryTable::default();
            let table: &mut dyn Table = match &mut table {
                Some(table) => table,
                None => &mut empty,
            };
            let what = match file {
                File::Services => What::Services { only: None, columns: Columns::Plain },
                _ => What::Connections { engines: true },
            };
            return Ok(ipvsadm::as_json(table, what)?);
        }
        File::Stats | File::StatsByCpu => {
            let (total, cpus) = table.map_or_else(
                || (Total::default(), Vec::new()),
                |table| (table.total(), table.counted_by_cpu()),
            );
            let mut value = json!({
                "schema": SCHEMA, "counters": traffic(&total.counted), "rates": traffic(&total.rates),
            });
            if matches!(file, File::StatsByCpu) {
                value["cpus"] = cpus.iter().map(traffic).collect();
            }
            value
        }
        File::Helpers => json!({ "schema": SCHEMA, "helpers": [] }),
    };
    Ok(format!("{value}\n"))
}

/// What is shown before there is a table.
const SIZE: u32 = 4096;

fn ticks_per_second() -> Result<u64> {
    Ok(1_000_000_000 / load::tick_ns()?)
}

/// Writes services and destinations as `ip_vs`, whose times are in ticks.
// As ip_vs_info_seq_show().
pub fn services(entries: &[ServiceEntry], size: u32, ticks_per_second: u64) -> String {
    let version = Version::default();
    let mut text = format!(
        "IP Virtual Server version {version} (size={size})\n\
         Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
    );
    for entry in entries {
        let service = &entry.service;
        let scheduler = &service.scheduler;
        let ops = if service.one_packet { "ops " } else { "" };
        text.push_str(&match service.id {
            ServiceId::Address { protocol, address, port } => {
                let rest = if address.is_ipv4() { format!("{ops} ") } else { String::new() };
                format!("{protocol}  {}:{port:04X} {scheduler} {rest}", bracketed(address))
            }
            ServiceId::Mark { mark, .. } => format!("FWM  {mark:08X} {scheduler} {ops}"),
        });
        if let Some(persistence) = service.persistence {
            let ticks = u64::from(persistence.timeout_s) * ticks_per_second;
            let mask = match persistence.netmask {
                Netmask::V4(octets) => u32::from_be_bytes(octets),
                // The kernel has the length in network order, and shows it the other way round.
                Netmask::V6(length) => u32::from(length).to_be(),
            };
            text.push_str(&format!("persistent {ticks} {mask:08X}"));
        }
        text.push('\n');
        entry.destinations.iter().for_each(|to| text.push_str(&destination(to)));
    }
    text
}

fn destination(entry: &DestinationEntry) -> String {
    let to = &entry.destination;
    let method = match to.method {
        ForwardingMethod::Masquerade | ForwardingMethod::FullNat => "Masq",
        ForwardingMethod::DirectRoute => "Route",
        ForwardingMethod::Tunnel(_) => "Tunnel",
    };
    format!(
        "  -> {}:{:04X}      {method:<7} {:<6} {:<10} {:<10}\n",
        bracketed(to.id.address),
        to.id.port,
        to.weight,
        entry.active,
        entry.inactive
    )
}

fn bracketed(address: IpAddr) -> String {
    match Family::of(address) {
        Family::V4 => plain(address),
        Family::V6 => format!("[{}]", plain(address)),
    }
}

fn plain(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{:08X}", v4.to_bits()),
        IpAddr::V6(v6) => v6.segments().map(|word| format!("{word:04x}")).join(":"),
    }
}

/// Writes connections as `ip_vs_conn`, or `ip_vs_conn_sync`, which tells their origin.
// As ip_vs_conn_seq_show() and ip_vs_conn_sync_seq_show().
pub fn connections(list: &[Connection], with_origin: bool) -> String {
    let rest = if with_origin { "Origin Expires" } else { "Expires PEName PEData" };
    let mut text = format!("Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       {rest}\n");
    for line in list {
        let ends = [line.client, line.virtual_address, line.destination]
            .map(|end| format!("{} {:04X}", plain(end.ip()), end.port()))
            .join(" ");
        let Connection { protocol, state, expires_s, is_learnt, .. } = line;
        let origin = match (with_origin, is_learnt) {
            (false, _) => "",
            (true, false) => "LOCAL  ",
            (true, true) => "SYNC   ",
        };
        text.push_str(&format!("{protocol:<3} {ends} {state:<11} {origin}{expires_s:>7}\n"));
    }
    text
}

fn row(traffic: &Traffic) -> String {
    let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = traffic;
    format!("{connections:8X} {in_packets:8X} {out_packets:8X} {in_bytes:16X} {out_bytes:16X}\n")
}

/// Writes totals and rates as `ip_vs_stats`.
// As ip_vs_stats_show(): all numbers are hexadecimal.
pub fn stats(total: &Total) -> String {
    format!(
        "   Total Incoming Outgoing         Incoming         Outgoing\n\
         \x20  Conns  Packets  Packets            Bytes            Bytes\n\
         {}\n\
         \x20Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n\
         {}",
        row(&total.counted),
        row(&total.rates)
    )
}

/// Writes what each CPU has counted, totals and rates as `ip_vs_stats_percpu`.
// As ip_vs_stats_percpu_show().
pub fn stats_by_cpu(by_cpu: &[Traffic], total: &Total) -> String {
    let mut text = "       Total Incoming Outgoing         Incoming         Outgoing\n\
                    CPU    Conns  Packets  Packets            Bytes            Bytes\n"
        .to_owned();
    for (cpu, counted) in by_cpu.iter().enumerate() {
        text.push_str(&format!("{cpu:3X} {}", row(counted)));
    }
    text.push_str(&format!(
        "  ~ {}\n     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n    {}",
        row(&total.counted),
        row(&total.rates)
    ));
    text
}

#[cfg(test)]
mod tests {
    use rlvs_control::model::{Destination, DestinationId, Persistence, Protocol, Service, Tunnel};

    use super::*;

    /// The numbers and columns were seen in a kernel.
    #[test]
    fn totals_are_those_of_the_kernel() {
        let counted = Traffic {
            connections: 0x1a,
            in_packets: 0xa7,
            out_packets: 0x4e,
            in_bytes: 0x2269,
            out_bytes: 0x1005,
        };
        let rates = Traffic {
            connections: 1,
            in_packets: 8,
            out_packets: 3,
            in_bytes: 0x193,
            out_bytes: 0x9f,
        };
        let expected = "   Total Incoming Outgoing         Incoming         Outgoing
   Conns  Packets  Packets            Bytes            Bytes
      1A       A7       4E             2269             1005

 Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
       1        8        3              193               9F
";
        assert_eq!(stats(&Total { counted, rates }), expected);
    }

    #[test]
    fn services_are_in_the_kernels_words() {
        let mut table = MemoryTable::default();
        let mut add = |id, netmask: Option<Netmask>, to: &str, method| {
            let persistence = netmask.map(|netmask| Persistence { timeout_s: 100, netmask });
            let service = Service {
                id,
                scheduler: "rr".to_owned(),
                scheduler_flags: 0,
                one_packet: false,
                persistence,
                persistence_engine: None,
            };
            table.add_service(&service).unwrap();
            let to = Destination {
                id: DestinationId { address: to.parse().unwrap(), port: 8080 },
                method,
                weight: 1,
                upper_threshold: 0,
                lower_threshold: 0,
            };
            table.add_destination(id, &to).unwrap();
        };
        let at = |address: &str| ServiceId::Address {
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port: 80,
        };
        let mask = Netmask::V4([255, 255, 255, 0]);
        add(at("10.0.0.1"), None, "10.0.0.2", ForwardingMethod::Masquerade);
        add(at("10.0.0.3"), Some(mask), "10.0.0.4", ForwardingMethod::DirectRoute);
        add(at("2001:db8::1"), None, "10.0.0.5", ForwardingMethod::Tunnel(Tunnel::Ipip));
        let mark = ServiceId::Mark { family: Family::V4, mark: 77 };
        add(mark, None, "10.0.0.6", ForwardingMethod::Masquerade);
        let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000001:0050 rr  \n\
\x20 -> 0A000002:1F90      Masq    1      0          0         \n\
TCP  0A000003:0050 rr  persistent 25000 FFFFFF00
  -> 0A000004:1F90      Route   1      0          0         \n\
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 rr \n\
\x20 -> 0A000005:1F90      Tunnel  1      0          0         \n\
FWM  0000004D rr \n\
\x20 -> 0A000006:1F90      Masq    1      0          0         \n";
        assert_eq!(services(&table.services().unwrap(), 4096, 250), expected);
    }

    #[test]
    fn connections_are_in_the_kernels_words() {
        let line = |protocol, ends: [&str; 3]| {
            let [client, virtual_address, destination] = ends.map(|end| end.parse().unwrap());
            let (state, expires_s, engine) = ("ESTABLISHED", 899, None);
            Connection {
                protocol,
                state,
                expires_s,
                client,
                virtual_address,
                destination,
                engine,
                is_learnt: protocol == Protocol::Udp,
            }
        };
        let list = [
            line(Protocol::Tcp, ["10.9.0.2:6001", "10.9.0.100:80", "10.1.0.11:8080"]),
            line(Protocol::Udp, ["[fd09::2]:1", "[fd09::100]:53", "[fd01::11]:53"]),
        ];
        let expected = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A090002 1771 0A090064 0050 0A01000B 1F90 ESTABLISHED     899
UDP fd09:0000:0000:0000:0000:0000:0000:0002 0001 fd09:0000:0000:0000:0000:0000:0000:0100 0035 \
fd01:0000:0000:0000:0000:0000:0000:0011 0035 ESTABLISHED     899
";
        assert_eq!(connections(&list, false), expected);
        let with_origin = connections(&list, true);
        let local = "TCP 0A090002 1771 0A090064 0050 0A01000B 1F90 ESTABLISHED LOCAL      899\n";
        assert!(with_origin.contains(local), "{with_origin}");
        assert!(with_origin.ends_with(" 0035 ESTABLISHED SYNC       899\n"), "{with_origin}");
    }
}
