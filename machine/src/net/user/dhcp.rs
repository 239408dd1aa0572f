//! The DHCP server of the user-mode network (RFC 2131): one address for each hardware address, in the order in which they ask.

use super::Settings;
use devices::net::Mac;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};
use std::net::{Ipv4Addr, SocketAddrV4};

pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;
/// Addresses that are given away.
const LEASES: usize = 16;
/// What BOOTP clients expect at least (RFC 1542 §2.1).
const SHORTEST: usize = 300;
const LEASE_SECONDS: u32 = 86400;
const HOST_NAME: u8 = 12;
const DOMAIN_NAME: u8 = 15;

/// Who has which address.
#[derive(Default)]
pub struct Leases(Vec<(Mac, Ipv4Addr)>);

/// An answer, and where it goes.
pub struct Answer {
    pub to: SocketAddrV4,
    pub bytes: Vec<u8>,
    pub mac: Mac,
    pub ip: Ipv4Addr,
}

impl Leases {
    fn of(&mut self, mac: Mac, net: &Settings) -> Option<Ipv4Addr> {
        if let Some(l) = self.0.iter().find(|l| l.0 == mac) {
            return Some(l.1);
        }
        let free = |ip: &Ipv4Addr| net.contains(*ip) && *ip != net.host && *ip != net.dns && self.0.iter().all(|l| l.1 != *ip);
        let first = u32::from(net.dhcp_start);
        let ip = (0..LEASES as u32 + 2).map(|i| Ipv4Addr::from(first.wrapping_add(i))).find(free)?;
        if self.0.len() == LEASES {
            return None;
        }
        self.0.push((mac, ip));
        Some(ip)
    }

    /// Answers a client's message, if it is to be answered.
    pub fn answer(&mut self, bytes: &[u8], net: &Settings) -> Option<Answer> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let ask = DhcpRepr::parse(&packet).ok()?;
        let mac = ask.client_hardware_address.0;
        let ip = self.of(mac, net)?;
        let kind = match ask.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request if ask.server_identifier.is_some_and(|s| s != net.host) => return None,
            DhcpMessageType::Request => {
                let wanted = ask.requested_ip.unwrap_or(ask.client_ip);
                if wanted == ip { DhcpMessageType::Ack } else { DhcpMessageType::Nak }
            }
            DhcpMessageType::Inform => DhcpMessageType::Ack,
            _ => return None,
        };
        let good = kind != DhcpMessageType::Nak;
        let yours = if good && ask.message_type != DhcpMessageType::Inform { ip } else { Ipv4Addr::UNSPECIFIED };
        let text = [(HOST_NAME, &net.hostname), (DOMAIN_NAME, &net.domain)];
        let more: Vec<DhcpOption> = text
            .iter()
            .filter(|(_, t)| good && !t.is_empty())
            .map(|(kind, t)| DhcpOption { kind: *kind, data: &t.as_bytes()[..t.len().min(60)] })
            .collect();
        let reply = DhcpRepr {
            message_type: kind,
            transaction_id: ask.transaction_id,
            secs: 0,
            client_hardware_address: EthernetAddress(mac),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: yours,
            server_ip: net.host,
            router: (good && !net.restrict).then_some(net.host),
            subnet_mask: good.then_some(net.mask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(net.host),
            parameter_request_list: None,
            dns_servers: good.then(|| std::iter::once(net.dns).collect()),
            max_size: None,
            lease_duration: good.then_some(LEASE_SECONDS),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &more,
        };
        let mut out = vec![0; reply.buffer_len().max(SHORTEST)];
        reply.emit(&mut DhcpPacket::new_unchecked(&mut out[..])).ok()?;
        // A client that has its address may be answered there; the others hear everything.
        let to = if ask.client_ip.is_unspecified() || !good { Ipv4Addr::BROADCAST } else { ask.client_ip };
        Some(Answer { to: SocketAddrV4::new(to, CLIENT_PORT), bytes: out, mac, ip })
    }
}
