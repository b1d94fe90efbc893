//! Superpackets of a TUN device: taking apart what the kernel hands over, putting together what it is given.
//!
//! A TUN device opened with `IFF_VNET_HDR` prefixes every packet with a [`virtio`] header. With segmentation offload
//! one read or write then carries up to 64 KiB of one flow: one IP header, one TCP or UDP header, and the payload of
//! many packets (segments) in a row.
//!
//! ```text
//!            0          10            csum_start        hdr_len                                   10 + IP length
//! superpacket| virtio   | IP header   | TCP or UDP      | gso_size | gso_size | … | rest ≤ gso_size |
//!                          \______________ ______________/    |          |                |
//!                                         v                   v          v                v
//! packets             copied in front of each one:       | H | p 0 | | H | p 1 | … | H | p n-1 |
//!                     lengths, IP id, TCP sequence number, flags and both checksums made anew
//! ```
//!
//! `csum_start` and `hdr_len` count from the IP header. [`split::Splitter`] walks the picture downwards,
//! [`coalesce::Superpacket`] upwards; what goes up and down again comes out byte for byte (but for the IPv4
//! identification of packets with DF, which has no meaning: RFC 6864 section 4.1).
//!
//! Everything here is arithmetic on byte slices: no kernel, no allocation, no clock, and no input that panics. Downwards the
//! payload stays where it is; upwards it comes from memory once, for the copy and for the checksum
//! ([`checksum::copy_and_sum`]).

pub mod candidate;
pub mod checksum;
pub mod coalesce;
mod headers;
pub mod split;
pub mod virtio;

#[cfg(test)]
mod tests;
