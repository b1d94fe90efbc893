//! The time of packets by stage as an HdrHistogram log: a line for each stage, named by its tag.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::{ShowError, Tunnel};
use crate::hlog::Writer;
use crate::stages::{Counts, Stage};
use crate::uapi::status::{Device, Stages};

/// A log that is being written.
pub(super) struct Log {
    path: PathBuf,
    state: State,
}

enum State {
    /// Nothing is known of the tunnel yet.
    New(File),
    Open {
        writer: Writer<BufWriter<File>>,
        started_unix_s: f64,
        before: Box<Device>,
    },
    /// What is wrong has been told.
    Broken,
}

impl Log {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn create(path: &Path) -> Result<Self, ShowError> {
        match File::create(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), state: State::New(file) }),
            Err(source) => Err(ShowError::File { path: path.to_owned(), source }),
        }
    }

    /// Writes everything since the start of the tunnel.
    ///
    /// # Errors
    /// What write(2) answers.
    pub fn write_all(&mut self, tunnel: &Tunnel) -> Result<(), ShowError> {
        let device = &tunnel.device;
        let started = Device { time_unix_s: device.time_unix_s - device.uptime_s, ..Device::default() };
        self.begin(&started)?;
        self.write_interval(tunnel)
    }

    /// Writes what was counted since the last call, of which the first only begins.
    ///
    /// # Errors
    /// What write(2) answers.
    pub fn write_interval(&mut self, tunnel: &Tunnel) -> Result<(), ShowError> {
        let device = &tunnel.device;
        if let State::New(_) = self.state {
            return self.begin(device);
        }
        let State::Open { writer, started_unix_s, before } = &mut self.state else {
            return Ok(());
        };
        // Another start counts from zero; its lines go on in the time of people.
        let restarted = device.uptime_s < before.uptime_s;
        let length_s = if restarted { device.uptime_s } else { device.uptime_s - before.uptime_s };
        let start_s = (device.time_unix_s - length_s - *started_unix_s).max(0.0);
        let none = Stages::default();
        let earlier = before.stages.as_ref().filter(|_| !restarted).unwrap_or(&none);
        let written = lines(writer, device.stages.as_ref().unwrap_or(&none), earlier, start_s, length_s);
        **before = device.clone();
        written.map_err(|source| self.broken(source))
    }

    fn begin(&mut self, first: &Device) -> Result<(), ShowError> {
        let State::New(file) = std::mem::replace(&mut self.state, State::Broken) else {
            return Ok(());
        };
        let started_ns = first.time_unix_s.max(0.0) * 1e9;
        let date = jiff::Timestamp::from_nanosecond(started_ns as i128)
            .map_or_else(|_| String::new(), |date| date.to_string());
        let comment = "towpath: time of packets by stage, in nanoseconds; the tag is the stage";
        match Writer::new(BufWriter::new(file), comment, started_ns as u64, &date) {
            Ok(writer) => {
                let before = Box::new(first.clone());
                self.state = State::Open { writer, started_unix_s: first.time_unix_s, before };
                Ok(())
            }
            Err(source) => Err(self.broken(source)),
        }
    }

    fn broken(&mut self, source: io::Error) -> ShowError {
        self.state = State::Broken;
        ShowError::File { path: self.path.clone(), source }
    }
}

/// One line for each stage, on disk when it returns: whoever watches may be killed.
fn lines(
    writer: &mut Writer<BufWriter<File>>,
    now: &Stages,
    before: &Stages,
    start_s: f64,
    length_s: f64,
) -> io::Result<()> {
    for stage in Stage::ALL {
        let counted: Counts = now.of(stage).since(before.of(stage));
        writer.line(Some(stage.name()), start_s, length_s, &counted.to_hdr())?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hlog;

    fn tunnel(uptime_s: f64, kernel: &str) -> Tunnel {
        let kernel = serde_json::from_str(kernel).unwrap();
        let stages = Some(Stages { kernel, ..Stages::default() });
        let time_unix_s = 1_700_000_000.0 + uptime_s;
        Tunnel { device: Device { uptime_s, time_unix_s, stages, ..Device::default() }, peers: vec![] }
    }

    fn kernel(path: &Path) -> Vec<(f64, f64, u64)> {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = hlog::read(&text).unwrap().into_iter();
        let kernel = lines.filter(|line| line.tag.as_deref() == Some("kernel"));
        kernel.map(|line| (line.start_s, line.length_s, line.histogram.len())).collect()
    }

    #[test]
    fn a_log_on_demand_goes_back_to_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.hlog");
        let mut log = Log::create(&path).unwrap();
        log.write_all(&tunnel(60.0, "[[70,5],[80,1]]")).unwrap();
        assert_eq!(kernel(&path), [(0.0, 60.0, 6)]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("#[StartTime: 1700000000.000 (seconds since epoch), 2023-11-14T22:13:20Z]"),
            "{text}"
        );
        let tags: Vec<_> = hlog::read(&text).unwrap().into_iter().filter_map(|line| line.tag).collect();
        assert_eq!(tags, ["read", "crypto", "ring", "kernel"]);
    }

    #[test]
    fn each_look_writes_what_was_new_and_a_restart_begins_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.hlog");
        let mut log = Log::create(&path).unwrap();
        for (uptime, counts) in
            [(10.0, "[[70,5]]"), (11.0, "[[70,7]]"), (12.0, "[[70,7]]"), (0.5, "[[70,3]]")]
        {
            log.write_interval(&tunnel(uptime, counts)).unwrap();
        }
        let lines = kernel(&path);
        assert_eq!(lines.iter().map(|line| line.2).collect::<Vec<_>>(), [2, 0, 3]);
        assert_eq!((lines[0].0, lines[0].1, lines[1].0), (0.0, 1.0, 1.0));
        assert!((lines[2].1 - 0.5).abs() < 1e-9);
    }
}
