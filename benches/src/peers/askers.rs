//! Clients that ask for an allocation and nothing else, as cheaply as can be: what one core of them asks has to be more than
//! one core of a relay can answer. Everything that can be made before the clock runs is.

use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::stun::{
    AttributeType, Class, ErrorCode, Key, Message, Method, TRANSPORT_UDP, TransactionId, Writer,
};
use dataplane::sys::udp::UdpSocket;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, connect, recv, send};

use super::relay::{PASSWORD, USER, server};
use crate::process::now;

/// How many ask at a time.
const AT_A_TIME: usize = 64;
/// How long there may be no answer before those who wait ask again (RFC 8489 section 6.2.1).
const RTO: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
/// Between two looks at what has come: clients who wait for each answer by itself are woken by the relay, which in a virtual
/// machine costs it more than the answer. It takes a relay several times as long to answer [`AT_A_TIME`].
const NAP: Duration = Duration::from_micros(200);
/// How long nobody may be answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// A request or an answer, at its longest.
const MESSAGE_LEN: usize = 1_500;
/// What a relay says to a request that is not signed.
const UNAUTHENTICATED: ErrorCode = ErrorCode(401);
/// SOFTWARE as long as the TURN client's, so that the relay's answer need not be shorter than it would like.
const SOFTWARE: [u8; 127] = [b' '; 127];

/// Clients that have their sockets, all watched, and nothing else yet.
pub struct Askers {
    clients: Vec<Asker>,
    epoll: OwnedFd,
    /// Of the first challenge; all clients are one user.
    key: Option<(Vec<u8>, Key)>,
}

struct Asker {
    socket: UdpSocket,
    granted: bool,
    /// What it sent last, to be sent again.
    request: Vec<u8>,
}

/// The two requests of a client: their transaction ids tell answers apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Unsigned,
    Signed,
}

impl Askers {
    /// Connects each socket to the relay, and has all of them watched.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn new(sockets: Vec<UdpSocket>) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.into_iter().enumerate() {
            connect(socket.fd(), &server())?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, socket.fd(), data, epoll::EventFlags::IN)?;
            clients.push(Asker { socket, granted: false, request: unsigned(index)? });
        }
        Ok(Self { clients, epoll, key: None })
    }

    /// All of them ask, a few at a time, until each has an allocation.
    ///
    /// # Errors
    /// What the relay refuses, or its silence.
    pub fn serve(&mut self) -> anyhow::Result<()> {
        let total = self.clients.len();
        let mut events = Vec::with_capacity(AT_A_TIME);
        let (mut begun, mut granted, mut heard) = (0, 0, now());
        while granted < total {
            while begun < total && begun - granted < AT_A_TIME {
                self.clients[begun].send()?;
                begun += 1;
            }
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&RTO))?;
            if events.is_empty() {
                if heard.elapsed() > PATIENCE {
                    bail!("the relay does not answer after {granted} of {total} clients");
                }
                // Something was lost.
                let mut waiting = self.clients[..begun].iter().filter(|client| !client.granted);
                waiting.try_for_each(Asker::send)?;
                continue;
            }
            heard = now();
            for event in &events {
                granted += usize::from(self.hear(event.data.u64() as usize)?);
            }
            sleep(NAP);
        }
        Ok(())
    }

    /// Takes what there is for a client, and goes on from there. Whether it has its allocation by it.
    fn hear(&mut self, index: usize) -> anyhow::Result<bool> {
        let mut buffer = [0; MESSAGE_LEN];
        let client = &mut self.clients[index];
        let length = match recv(client.socket.fd(), &mut buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error).context("the relay does not listen"),
        };
        let message = Message::parse(&buffer[..length]).ok().context("not STUN")?;
        let step = step_of(message.transaction(), index);
        match (message.class(), step) {
            // To a request that was sent twice.
            _ if client.granted => Ok(false),
            (Class::Error, Some(Step::Unsigned)) if code(&message) == Some(UNAUTHENTICATED) => {
                let realm = message.realm().context("401 without a realm")?;
                let nonce = message.nonce().context("401 without a nonce")?;
                if self.key.as_ref().is_none_or(|known| known.0 != realm) {
                    let key = Key::long_term(USER.as_bytes(), realm, PASSWORD.as_bytes());
                    self.key = Some((realm.to_vec(), key));
                }
                let (realm, key) = self.key.as_ref().context("set above")?;
                client.request = signed(index, realm, nonce, key)?;
                client.send()?;
                Ok(false)
            }
            (Class::Success, Some(Step::Signed)) => {
                let key = &self.key.as_ref().context("an answer to nothing")?.1;
                if !message.verify_integrity(key) || !matches!(message.xor_relayed_address(), Ok(Some(_))) {
                    bail!("the relay's answer is not signed, or names no relayed address");
                }
                client.granted = true;
                Ok(true)
            }
            (Class::Error, _) => bail!("the relay: {:?}", code(&message)),
            _ => Ok(false),
        }
    }
}

impl Asker {
    fn send(&self) -> anyhow::Result<()> {
        send(self.socket.fd(), &self.request, SendFlags::DONTWAIT).context("cannot ask the relay")?;
        Ok(())
    }
}

fn code(message: &Message<'_>) -> Option<ErrorCode> {
    message.error_code().ok().flatten()
}

fn transaction(index: usize, step: Step) -> TransactionId {
    let mut id = *b"asker-\0\0\0\0\0\0";
    id[7..11].copy_from_slice(&(index as u32).to_be_bytes());
    id[11] = step as u8;
    TransactionId(id)
}

fn step_of(id: TransactionId, index: usize) -> Option<Step> {
    [Step::Unsigned, Step::Signed].into_iter().find(|&step| transaction(index, step) == id)
}

fn unsigned(index: usize) -> anyhow::Result<Vec<u8>> {
    let mut buffer = [0; MESSAGE_LEN];
    let mut writer = allocate(&mut buffer, index, Step::Unsigned)?;
    writer.attribute(AttributeType::SOFTWARE, &SOFTWARE);
    let length = writer.finish(None, false).context("longer than a message")?;
    Ok(buffer[..length].to_vec())
}

fn signed(index: usize, realm: &[u8], nonce: &[u8], key: &Key) -> anyhow::Result<Vec<u8>> {
    let mut buffer = [0; MESSAGE_LEN];
    let mut writer = allocate(&mut buffer, index, Step::Signed)?;
    writer.username(USER.as_bytes()).realm(realm).nonce(nonce);
    let length = writer.finish(Some(key), false).context("longer than a message")?;
    Ok(buffer[..length].to_vec())
}

fn allocate(buffer: &mut [u8], index: usize, step: Step) -> anyhow::Result<Writer<'_>> {
    let mut writer = Writer::new(buffer, Class::Request, Method::Allocate, transaction(index, step))
        .context("no room for a header")?;
    writer.requested_transport(TRANSPORT_UDP);
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_by_client_and_step() {
        for (index, step) in [(0, Step::Unsigned), (9_999, Step::Signed)] {
            assert!(step_of(transaction(index, step), index) == Some(step));
            assert!(step_of(transaction(index, step), index + 1).is_none(), "another client's");
        }
    }

    #[test]
    fn the_signed_request_carries_what_the_relay_asked_for() {
        let key = Key::long_term(USER.as_bytes(), b"bench", PASSWORD.as_bytes());
        let bytes = signed(7, b"bench", b"nonce", &key).unwrap();
        let message = Message::parse(&bytes).unwrap();
        assert!(message.verify_integrity(&key));
        assert_eq!((message.realm(), message.nonce()), (Some(&b"bench"[..]), Some(&b"nonce"[..])));
        assert!(!Message::parse(&unsigned(7).unwrap()).unwrap().has_integrity());
    }
}
