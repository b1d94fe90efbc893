//! TURN over connections (RFC 8656 section 3.1): where a message ends, what waits to be written, and the socket, plain or
//! under TLS. Client and server have the same.

pub mod framing;
pub mod queue;
pub mod transport;
