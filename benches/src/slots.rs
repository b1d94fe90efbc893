//! What the size of the fixed ring costs: the same superpackets through slots that are used in turn, few or many of them.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::egress::{Port, Target};
use dataplane::sys::ring;
use dataplane::sys::slab::Slab;
use dataplane::sys::udp::{RECEIVE_LEN, ReceiveBatch, UdpOptions, UdpSocket};

use crate::process::now;
use crate::zero_copy::cpu_nanoseconds;

/// Slots of 66 KiB that are compared.
pub const COUNTS: [usize; 6] = [1, 8, 16, 64, 256, 1024];
/// Bytes in a datagram, and datagrams in a superpacket.
const DATAGRAM: usize = 1252;
const SEGMENTS: usize = 50;

/// CPU nanoseconds of this thread for each datagram: copied into the slot whose turn it is, sent on loopback, received.
///
/// # Errors
/// When there is no ring, or something does not arrive.
pub fn cost(count: usize, duration: Duration) -> anyhow::Result<f64> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (source, sink) =
        (UdpSocket::bind(any, &UdpOptions::default())?, UdpSocket::bind(any, &UdpOptions::default())?);
    let (slab, slots) = Slab::new(count)?;
    let slab = Arc::new(slab);
    let mut slots = std::collections::VecDeque::from(slots);
    let (mut submit, mut reap) = ring::new(slab.clone(), count).context("io_uring is not available")?;
    let target =
        Target { port: Port(0), to: sink.local_addr(), from: None, traffic_class: 0, dont_fragment: false };
    let payload = vec![0x5a; DATAGRAM * SEGMENTS];
    let mut batch = ReceiveBatch::new(1, RECEIVE_LEN);
    let mut turn = || -> anyhow::Result<()> {
        let mut slot = slots.pop_front().context("every slot came back")?;
        slab.bytes(&mut slot)[..payload.len()].copy_from_slice(&payload);
        submit.push_send(slot, source.fd().as_fd(), &target, payload.len(), DATAGRAM, false);
        submit.submit()?;
        let mut result = 0;
        reap.reap(|slot, sent| {
            result = sent;
            slots.push_back(slot);
        });
        sink.receive_batch(&mut batch)?;
        let arrived: usize = batch.iter_mut().map(|arrival| arrival.bytes.len()).sum();
        if usize::try_from(result) != Ok(payload.len()) || arrived != payload.len() {
            bail!("{arrived} of {} bytes arrived, the send came to {result}", payload.len());
        }
        Ok(())
    };
    // Every page is touched once before it counts.
    for _ in 0..count {
        turn()?;
    }
    let (until, before) = (now() + duration, cpu_nanoseconds()?);
    let mut sent = 0;
    while now() < until {
        turn()?;
        sent += SEGMENTS;
    }
    Ok((cpu_nanoseconds()? - before) / sent as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_carries_what_it_is_given() {
        for count in [1, 8] {
            match cost(count, Duration::from_millis(20)) {
                Ok(cost) => assert!(cost > 0.0, "{cost}"),
                Err(error) => {
                    let required = std::env::var_os("TOWPATH_REQUIRE_ALL").is_some();
                    assert!(!required && error.to_string().contains("io_uring is not"), "{error:#}");
                    // Not by a macro, whose output the test runner hides.
                    let message = format!("left out: {error:#} (sysctl kernel.io_uring_disabled=0)\n");
                    let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
                }
            }
        }
    }
}
