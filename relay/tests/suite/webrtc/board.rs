//! A notice board over HTTP: pages post mail into named boxes, and take it out of their own. It serves the pages, too.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// A page that asks for mail is told that there is none after this time, and asks again: less than anyone's patience with
/// an HTTP answer.
const WAIT: Duration = Duration::from_secs(5);

/// What is served besides mail: path, type, text.
const FILES: [(&str, &str, &str); 2] = [
    ("/page.html", "text/html", include_str!("page.html")),
    ("/page.js", "text/javascript", include_str!("page.js")),
];

/// A box, both ends; each lock is held by one connection or test at a time.
struct Mailbox {
    sender: Mutex<Sender<Value>>,
    receiver: Mutex<Receiver<Value>>,
}

/// The board; served for as long as the test process runs.
pub struct Board {
    pub address: SocketAddr,
    boxes: Arc<HashMap<&'static str, Mailbox>>,
}

impl Board {
    /// Serves these boxes on loopback: a thread accepts, and has one more for each request.
    pub fn start(names: &[&'static str]) -> Self {
        let mailbox = || {
            let (sender, receiver) = mpsc::channel();
            Mailbox { sender: Mutex::new(sender), receiver: Mutex::new(receiver) }
        };
        let boxes: Arc<HashMap<_, _>> = Arc::new(names.iter().map(|&name| (name, mailbox())).collect());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let served = boxes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, boxes) = (stream.unwrap(), served.clone());
                // A browser opens connections ahead and may leave them; such a thread ends with its connection.
                std::thread::spawn(move || handle(&stream, &boxes));
            }
        });
        Self { address, boxes }
    }

    pub fn post(&self, name: &str, mail: Value) {
        self.boxes[name].sender.lock().unwrap().send(mail).unwrap();
    }

    /// The next mail, if it comes in time.
    pub fn take(&self, name: &str, patience: Duration) -> Option<Value> {
        self.boxes[name].receiver.lock().unwrap().recv_timeout(patience).ok()
    }
}

/// One request. Whatever the browser gives up is no failure of the test.
fn handle(stream: &TcpStream, boxes: &HashMap<&'static str, Mailbox>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    let mut words = request.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;

    let path = target.split('?').next()?;
    if let Some((_, kind, text)) = FILES.iter().find(|(name, ..)| *name == path) {
        return answer(stream, 200, kind, text);
    }
    let Some(mailbox) = path.strip_prefix("/mail/").and_then(|name| boxes.get(name)) else {
        return answer(stream, 404, "text/plain", "");
    };
    if method == "POST" {
        let mail = serde_json::from_slice(&body).unwrap();
        mailbox.sender.lock().unwrap().send(mail).unwrap();
        return answer(stream, 204, "text/plain", "");
    }
    match mailbox.receiver.lock().unwrap().recv_timeout(WAIT) {
        Ok(mail) => answer(stream, 200, "application/json", &mail.to_string()),
        Err(_) => answer(stream, 204, "text/plain", ""),
    }
}

fn answer(mut stream: &TcpStream, status: u16, kind: &str, text: &str) -> Option<()> {
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(text.as_bytes()).ok()
}
