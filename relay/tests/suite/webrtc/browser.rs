//! Debian's browser without a window.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::program;
use crate::harness::stream::TestCertificate;

/// For the browser to end by itself, which it does in a fraction of this.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// A running browser; it and its helpers end when it is dropped.
pub struct Browser {
    child: Child,
    profile: tempfile::TempDir,
}

impl Browser {
    /// Opens this page, which may open others, with a camera that shows a moving picture and trust in this certificate.
    pub fn start(path: &Path, certificate: &TestCertificate, page: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let log = fs::File::create(profile.path().join("log")).unwrap();
        let mut command = program(path.to_str().unwrap());
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-breakpad", "--enable-logging=stderr", "--v=0"])
            // Both pages work at full speed, whichever is in front.
            .args(["--disable-background-timer-throttling", "--disable-renderer-backgrounding"])
            .arg("--disable-backgrounding-occluded-windows")
            .args(["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"])
            // Certificates of TURN servers are verified like those of web sites: without this there is no call over TLS.
            .arg(format!("--ignore-certificate-errors-spki-list={}", key_digest(certificate)))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--disable-popup-blocking", page])
            .env("HOME", profile.path())
            // Its socket's folder stays behind when it does not end by itself.
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // A group of its own, so that its helpers can be ended with it.
        command.process_group(0);
        Self { child: command.spawn().unwrap(), profile }
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.profile.path().join("log")).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // Gone already when this fails, as below.
        let _ = rustix::process::kill_process(group, Signal::TERM);
        let deadline = Instant::now() + END_PATIENCE;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Helpers that did not notice, and itself.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// SHA-256 of the certificate's public key, by which the browser knows it.
fn key_digest(certificate: &TestCertificate) -> String {
    use x509_cert::der::{Decode as _, Encode as _};
    let parsed = x509_cert::Certificate::from_der(&certificate.der).unwrap();
    let key = parsed.tbs_certificate.subject_public_key_info.to_der().unwrap();
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, &key))
}
