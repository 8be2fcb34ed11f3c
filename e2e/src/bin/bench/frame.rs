//! The frames that are sent: TCP segments without data.

use std::net::IpAddr;

use rlvs_wire::{checksum, tcp};

use crate::course::{Course, FRAME, WORDS};
use crate::paths::{Kind, Path};
use crate::stage::{CLIENT4, CLIENT6, Interface};

/// The end of a flow that is not the client's.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// Returns a course whose frames run between the clients and `end`.
pub(crate) fn course(path: &Path, interface: &Interface, end: End, flags: u8) -> Course {
    let to_client = path.kind == Kind::Reply;
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&interface.mac.0);
    frame[6..12].copy_from_slice(&interface.router.0);
    let client = if path.family == 4 { IpAddr::from(CLIENT4) } else { CLIENT6.into() };
    let (source, target) = if to_client { (end.address, client) } else { (client, end.address) };
    let ports = if to_client { u32::from(end.port) << 16 } else { u32::from(end.port) };
    let segment = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            let total = (FRAME - 14) as u16;
            frame[14..16].copy_from_slice(&[0x45, 0]);
            frame[16..18].copy_from_slice(&total.to_be_bytes());
            frame[22..24].copy_from_slice(&[64, tcp::PROTOCOL]);
            frame[26..30].copy_from_slice(&source.octets());
            frame[30..34].copy_from_slice(&target.octets());
            34
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let payload = (FRAME - 54) as u16;
            frame[14] = 0x60;
            frame[18..20].copy_from_slice(&payload.to_be_bytes());
            frame[20..22].copy_from_slice(&[tcp::PROTOCOL, 64]);
            frame[22..38].copy_from_slice(&source.octets());
            frame[38..54].copy_from_slice(&target.octets());
            54
        }
        _ => unreachable!("both ends are of the path's family"),
    };
    frame[segment..segment + 4].copy_from_slice(&ports.to_be_bytes());
    frame[segment + 12..segment + 14].copy_from_slice(&[5 << 4, flags]);
    let mut sum = 0;
    let mut before_sum = 0;
    if path.family == 4 {
        let client_at = if to_client { 30 } else { 26 };
        let mut header: [u8; 20] = [0; 20];
        header.copy_from_slice(&frame[14..34]);
        header[client_at - 14..client_at - 10].fill(0);
        sum = checksum::fold(checksum::sum(&header)).into();
        before_sum = u32::from(u16::from_be_bytes([frame[22], frame[23]]));
    }
    Course {
        words: WORDS.map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&frame[at..at + 8]);
            u64::from_ne_bytes(word)
        }),
        client: match client {
            IpAddr::V4(client) => u32::from(client).into(),
            IpAddr::V6(client) => u128::from(client) as u64,
        },
        family: path.family.into(),
        to_client: to_client.into(),
        flows: 1,
        ports,
        sum,
        before_sum,
        ports_log2: crate::paths::PORTS_LOG2,
        ..Course::default()
    }
}
