//! A client on a stream, and certificates for it to trust.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use dataplane::stun::{Class, Key, Message, Method, TransactionId, Writer, channel_data};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{PASSWORD, PATIENCE, REALM, USER, write_private};

/// A certificate for "relay.test" that signs itself, and its key.
pub struct TestCertificate {
    pub der: CertificateDer<'static>,
    pub pem: String,
    pub key_pem: String,
}

impl TestCertificate {
    pub fn new() -> Self {
        Self::until(4000)
    }

    /// Good until a year begins.
    pub fn until(year: i32) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["relay.test".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap();
        Self { der: certificate.der().clone(), pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// Writes both files and returns flags that name them.
    pub fn write(&self, folder: &Path) -> [String; 4] {
        let (certificate, key) = (folder.join("relay.pem"), folder.join("relay.key"));
        write_private(&certificate, &self.pem);
        write_private(&key, &self.key_pem);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        ["--tls-certificate".to_owned(), text(&certificate), "--tls-key".to_owned(), text(&key)]
    }
}

/// A TLS client that trusts this certificate only.
pub fn trusting(certificate: &TestCertificate) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), "relay.test".try_into().unwrap()).unwrap()
}

/// A connection that gives up after [`PATIENCE`].
pub fn connect(relay: SocketAddr) -> TcpStream {
    try_connect(relay).unwrap()
}

/// The same where nobody may be listening.
pub fn try_connect(relay: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(relay)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The same under TLS.
pub fn connect_tls(
    relay: SocketAddr,
    certificate: &TestCertificate,
) -> StreamOwned<ClientConnection, TcpStream> {
    try_connect_tls(relay, certificate).unwrap()
}

/// The same where nobody may be listening.
pub fn try_connect_tls(
    relay: SocketAddr,
    certificate: &TestCertificate,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    Ok(StreamOwned::new(trusting(certificate), try_connect(relay)?))
}

/// A client that sends one request at a time.
pub struct StreamClient<S> {
    pub stream: S,
    nonce: Vec<u8>,
    transactions: u8,
}

impl<S: Read + Write> StreamClient<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, nonce: Vec::new(), transactions: 0 }
    }

    fn key() -> Key {
        Key::long_term(USER.as_bytes(), REALM.as_bytes(), PASSWORD.as_bytes())
    }

    /// The next message of the stream, padding included.
    ///
    /// # Errors
    /// When the stream ends or is silent.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut message = vec![0; 4];
        self.stream.read_exact(&mut message)?;
        let len = usize::from(u16::from_be_bytes([message[2], message[3]]));
        let rest = if message[0] >> 6 == 1 { len.next_multiple_of(4) } else { len + 16 };
        message.resize(4 + rest, 0);
        self.stream.read_exact(&mut message[4..])?;
        Ok(message)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// The next request with credentials, as far as they are known.
    pub fn request(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
        self.transactions = self.transactions.wrapping_add(1);
        let transaction = TransactionId([self.transactions; 12]);
        let mut buffer = [0; 1000];
        let mut writer = Writer::new(&mut buffer, Class::Request, method, transaction).unwrap();
        fill(&mut writer);
        writer.username(USER.as_bytes()).realm(REALM.as_bytes()).nonce(&self.nonce);
        let len = writer.finish(Some(&Self::key()), true).unwrap();
        buffer[..len].to_vec()
    }

    /// Whether this is the last word on a request, and not a challenge to ask again.
    pub fn is_final(&mut self, reply: &[u8]) -> bool {
        let message = Message::parse(reply).unwrap();
        assert_eq!(message.transaction(), TransactionId([self.transactions; 12]));
        match message.error_code().unwrap().map(|code| code.0) {
            Some(401 | 438) => {
                self.nonce = message.nonce().unwrap().to_vec();
                false
            }
            _ => {
                assert!(message.verify_integrity(&Self::key()));
                true
            }
        }
    }

    /// Sends a request with credentials; the first one is challenged and sent again.
    pub fn ask(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> Vec<u8> {
        self.try_ask(method, fill).expect("an answer")
    }

    /// As [`StreamClient::ask`], on a connection that may end.
    pub fn try_ask(&mut self, method: Method, fill: impl Fn(&mut Writer<'_>)) -> io::Result<Vec<u8>> {
        for _ in 0..2 {
            let request = self.request(method, &fill);
            self.stream.write_all(&request)?;
            self.stream.flush()?;
            let reply = self.receive()?;
            if self.is_final(&reply) {
                return Ok(reply);
            }
        }
        panic!("the relay does not accept these credentials")
    }

    /// Allocates and returns the relayed address.
    pub fn allocate(&mut self) -> SocketAddr {
        relayed(&self.ask(Method::Allocate, |writer| {
            writer.requested_transport(17);
        }))
    }
}

/// The relayed address of an answer.
pub fn relayed(reply: &[u8]) -> SocketAddr {
    let message = Message::parse(reply).unwrap();
    assert_eq!(message.class(), Class::Success, "{:?}", message.error_code());
    message.xor_relayed_address().unwrap().unwrap()
}

/// A request without credentials.
pub fn bare(method: Method) -> Vec<u8> {
    let mut buffer = [0; 20];
    let writer = Writer::new(&mut buffer, Class::Request, method, TransactionId([1; 12])).unwrap();
    assert_eq!(writer.finish(None, false), Some(20));
    buffer.to_vec()
}

/// ChannelData with the padding of a stream.
pub fn channel_message(number: channel_data::ChannelNumber, payload: &[u8]) -> Vec<u8> {
    let mut bytes = channel_data::header(number, payload.len()).unwrap().to_vec();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub fn send_indication(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; payload.len() + 100];
    let mut writer =
        Writer::new(&mut buffer, Class::Indication, Method::Send, TransactionId([2; 12])).unwrap();
    writer.xor_peer_address(peer).data(payload);
    let len = writer.finish(None, false).unwrap();
    buffer.truncate(len);
    buffer
}
