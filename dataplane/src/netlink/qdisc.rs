//! Queueing disciplines: the bottleneck the lab puts behind a socket.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcStats2};

use super::{Error, Handle};

/// Attributes of tc-tbf(8) in linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_BURST: u16 = 6;
/// TC_LINKLAYER_ETHERNET: the kernel then computes the time per packet itself and needs no table.
const LINKLAYER_ETHERNET: u8 = 1;

/// Counters of a queueing discipline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QdiscStats {
    /// Packets that left through it; superpackets count one each unless the discipline cuts them up.
    pub packets: u32,
    /// Bytes that left through it.
    pub bytes: u64,
    /// Packets it dropped, which no sender is told about.
    pub drops: u32,
    /// Bytes queued now.
    pub backlog_bytes: u32,
}

impl Handle {
    /// Limits an interface to `rate_bytes` a second by a token bucket (tc-tbf(8)) at its root. At most `burst_bytes` go at
    /// once; what is above waits, up to `limit_bytes`, and is dropped silently beyond that.
    ///
    /// # Errors
    /// EOPNOTSUPP or ENOENT when the kernel has no sch_tbf, EINVAL when `burst_bytes` is below one packet.
    pub fn add_tbf(
        &mut self,
        index: u32,
        rate_bytes: u32,
        burst_bytes: u32,
        limit_bytes: u32,
    ) -> Result<(), Error> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, tbf_parameters(rate_bytes, limit_bytes))),
            TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst_bytes.to_ne_bytes().to_vec())),
        ]));
        self.change(
            &format!("limit interface {index} to {rate_bytes} bytes a second"),
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map_err(|error| match error.errno() {
            Some(libc::ENOENT) => error.with_remedy("this kernel has no token bucket: `modprobe sch_tbf`"),
            _ => error,
        })
    }

    /// Removes the discipline at an interface's root; the kernel's default takes its place.
    ///
    /// # Errors
    /// ENOENT when it has the default already.
    pub fn delete_qdisc(&mut self, index: u32) -> Result<(), Error> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::ROOT;
        self.change(
            &format!("remove the queueing discipline of interface {index}"),
            RouteNetlinkMessage::DelQueueDiscipline(message),
            0,
        )
    }

    /// The kind of the discipline at the root of every interface, by index.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn qdisc_kinds(&mut self) -> Result<Vec<(u32, String)>, Error> {
        let answers = self.query(
            "list the queueing disciplines",
            RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
            NLM_F_DUMP,
        )?;
        let kind = |answer| {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
            if message.header.parent != TcHandle::ROOT {
                return None;
            }
            let index = u32::try_from(message.header.index).ok()?;
            message.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some((index, kind)),
                _ => None,
            })
        };
        Ok(answers.into_iter().filter_map(kind).collect())
    }

    /// The counters of the discipline at an interface's root.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn qdisc_stats(&mut self, index: u32) -> Result<QdiscStats, Error> {
        let answers = self.query(
            &format!("read the queue counters of interface {index}"),
            RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index.cast_signed())),
            NLM_F_DUMP,
        )?;
        let root = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.index == index.cast_signed() && message.header.parent == TcHandle::ROOT =>
            {
                Some(message)
            }
            _ => None,
        });
        let mut stats = QdiscStats::default();
        for attribute in root.map(|message| message.attributes).unwrap_or_default() {
            let TcAttribute::Stats2(parts) = attribute else { continue };
            for part in parts {
                match part {
                    TcStats2::Basic(basic) => {
                        stats.bytes = basic.bytes;
                        stats.packets = basic.packets;
                    }
                    TcStats2::Queue(queue) => {
                        stats.drops = queue.drops;
                        stats.backlog_bytes = queue.backlog;
                    }
                    _ => {}
                }
            }
        }
        Ok(stats)
    }
}

/// `struct tc_tbf_qopt`:
///
/// ```text
///  0            12           24      28      32     36
///  |  rate       |  peak rate |  limit |  buffer |  mtu |
///  each rate: cell_log u8, linklayer u8, overhead u16, cell_align i16, mpu u16, bytes a second u32
/// ```
///
/// The buffer stays zero: TCA_TBF_BURST says it in bytes.
fn tbf_parameters(rate_bytes: u32, limit_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[1] = LINKLAYER_ETHERNET;
    bytes[8..12].copy_from_slice(&rate_bytes.to_ne_bytes());
    bytes[24..28].copy_from_slice(&limit_bytes.to_ne_bytes());
    bytes
}
