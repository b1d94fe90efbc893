//! The report in a browser without a network: every plot is drawn, in the light and in the dark, and nothing goes wrong.

use std::fs;
use std::path::{Path, PathBuf};

use dataplane::hlog;
use hdrhistogram::Histogram;
use serde_json::Value;
use tools::format::bundle;
use tools::run::distribution::{HIGHEST_NS, curve, histogram};
use tools::run::{Distribution, Histograms, RunResult};

use super::user_namespace::{self, left_out::left_out};
use super::{Reflector, output};

/// Width of the window; the height is that of the page.
const WIDTH: u32 = 1_280;

/// Debian's browser, or its part without a window.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-headless-shell"];
    let mut all = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.find(|path| path.exists())
}

/// A run of `side` at `rate_pps`, made up after a real one: an exponential of `mean_ns`, of which some are lost.
fn made_up(
    real: &RunResult,
    directory: &Path,
    side: &str,
    rate_pps: f64,
    number: u64,
    mean_ns: f64,
    lost: u64,
) {
    let mut result = real.clone();
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ((random >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let mut response = histogram();
    let intervals: Vec<Histogram<u32>> = (0..10)
        .map(|second| {
            let mut part = Histogram::<u32>::new_with_bounds(1, HIGHEST_NS, 3).unwrap();
            for _ in 0..2_000 {
                let stall = if second == 6 && uniform() < 0.05 { 5e6 } else { 0.0 };
                let value = (20_000.0 - mean_ns * uniform().ln() + stall) as u64;
                part.record(value).unwrap();
                response.record(value).unwrap();
            }
            part
        })
        .collect();
    result.spec.label = side.to_owned();
    result.spec.rate_pps = rate_pps;
    result.started_unix_ns += number * 60_000_000_000;
    result.ledger.lost = lost;
    result.latency.response = Distribution::new(&response, lost);
    result.curve = curve(&response, lost);
    let empty = histogram();
    let histograms = Histograms {
        response,
        service: empty.clone(),
        lateness: empty.clone(),
        to_device: None,
        kernel: None,
        up: None,
        down: None,
        tail: empty,
    };
    result.histograms = Some(histograms);
    bundle::write(&result, directory).unwrap();
    // As a run writes it while it goes on.
    let log = fs::File::create(directory.join(bundle::LATENCY_HLOG)).unwrap();
    let mut log = hlog::Writer::new(log, "", result.started_unix_ns, &result.started).unwrap();
    for (second, part) in intervals.iter().enumerate() {
        log.line(None, second as f64, 1.0, part).unwrap();
    }
    log.finish().unwrap();
}

/// The page over two sides at three loads, four runs a side at the middle one.
fn page(directory: &Path) -> PathBuf {
    let reflector = Reflector::start("127.0.0.1:0");
    let real = directory.join("real");
    let path = real.to_str().unwrap();
    let run = [
        "run",
        "udp",
        &reflector.address,
        "--pace",
        "sleep",
        "--duration",
        "300ms",
        "--drain",
        "200ms",
        "--out",
        path,
    ];
    let (code, _, stderr) = output(&run);
    assert!(code == 0 || code == 4, "{code} {stderr}");
    let real = bundle::read(&real).unwrap();
    let runs = directory.join("runs");
    let mut number = 0;
    for (rate, count) in [(5_000.0, 1), (10_000.0, 4), (20_000.0, 1)] {
        for _ in 0..count {
            for (side, mean_ns, lost) in [("uring", 60_000.0, 0), ("suspend", 75_000.0, 20)] {
                number += 1;
                let mean_ns = if rate > 15_000.0 { 4.0 * mean_ns } else { mean_ns };
                made_up(
                    &real,
                    &runs.join(side).join(format!("{number:02}")),
                    side,
                    rate,
                    number,
                    mean_ns,
                    lost,
                );
            }
        }
    }
    let page = directory.join("report.html");
    let (code, _, stderr) = output(&["report", runs.to_str().unwrap(), "--html", page.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    page
}

/// Opens a page and answers what the browser printed. Nothing may have been written to the console.
fn open(browser: &Path, directory: &Path, page: &Path, arguments: &[String]) -> String {
    #[expect(clippy::disallowed_methods, reason = "the test runs a browser")]
    // A browser that hangs must not hang the tests.
    let output = std::process::Command::new("timeout")
        .args(["120", browser.to_str().unwrap()])
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ])
        .args(["--force-device-scale-factor=1", "--enable-logging=stderr", "--v=0"])
        .arg(format!("--user-data-dir={}", directory.join("profile").display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .env("HOME", directory)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let console: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(":CONSOLE:") && !line.contains("source: chrome://"))
        .collect();
    assert!(console.is_empty(), "{console:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where each plot is on the page, and the height of the page. The page itself must not run scripts, so that a copy which may
/// is asked.
fn places(browser: &Path, directory: &Path, page: &Path) -> (u32, Vec<(String, [u32; 4])>) {
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("default-src 'none'; style-src 'unsafe-inline'\""), "no script and no network");
    let script = "<script>const all=[...document.querySelectorAll('figure')].map(f=>{const r=f.querySelector('svg').getBoundingClientRect();\
        return [f.dataset.plot,[r.x,r.y,r.width,r.height].map(Math.floor)]});\
        document.body.dataset.places=JSON.stringify([document.documentElement.scrollHeight,all])</script></body>";
    let html = html
        .replace("style-src 'unsafe-inline'\"", "style-src 'unsafe-inline'; script-src 'unsafe-inline'\"");
    let copy = directory.join("copy.html");
    fs::write(&copy, html.replace("</body>", script)).unwrap();
    let arguments = ["--dump-dom".to_owned(), format!("--window-size={WIDTH},1000")];
    let dom = open(browser, directory, &copy, &arguments);
    let (_, rest) = dom.split_once("data-places=\"").expect("the script has run");
    let json = rest.split_once('"').unwrap().0.replace("&quot;", "\"");
    let json: Value = serde_json::from_str(&json).unwrap();
    serde_json::from_value(json).unwrap()
}

/// A picture, three or four bytes a pixel.
struct Picture {
    width: usize,
    bytes_per_pixel: usize,
    bytes: Vec<u8>,
}

impl Picture {
    fn take(browser: &Path, directory: &Path, page: &Path, height: u32, more: &[&str]) -> Self {
        let file = directory.join("screen.png");
        let mut arguments =
            vec![format!("--screenshot={}", file.display()), format!("--window-size={WIDTH},{height}")];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        open(browser, directory, page, &arguments);
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(file).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert!(info.width == WIDTH && info.height >= height - 200, "{}x{}", info.width, info.height);
        Self { width: info.width as usize, bytes_per_pixel: info.color_type.samples(), bytes }
    }

    fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let at = (y as usize * self.width + x as usize) * self.bytes_per_pixel;
        [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2]]
    }

    /// Pixels that are of a colour rather than grey.
    fn coloured(&self, [left, top, width, height]: [u32; 4]) -> usize {
        let is_coloured = |[red, green, blue]: [u8; 3]| {
            let (low, high) = (red.min(green).min(blue), red.max(green).max(blue));
            high - low > 40
        };
        let rows = top..(top + height).min((self.bytes.len() / self.bytes_per_pixel / self.width) as u32);
        rows.flat_map(|y| (left..left + width).map(move |x| (x, y)))
            .filter(|&(x, y)| is_coloured(self.pixel(x, y)))
            .count()
    }
}

#[test]
fn every_plot_of_a_report_is_drawn_without_a_network() {
    let Some(browser) = browser() else {
        return left_out("the report in a browser: apt-get install chromium");
    };
    if !user_namespace::inside("browser::every_plot_of_a_report_is_drawn_without_a_network") {
        return;
    }
    let mut handle = dataplane::netlink::Handle::open().unwrap();
    let loopback = handle.link_index("lo").unwrap();
    handle.set_up(loopback).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let page = page(directory);
    let (height, places) = places(&browser, directory, &page);
    let count = |kind: &str| places.iter().filter(|(name, _)| name == kind).count();
    // Three loads: curves, shift and dots of each; a map of each run at the outer loads and of all eight in the middle.
    assert_eq!(["percentiles", "shift", "runs", "heat", "load"].map(count), [3, 3, 3, 12, 1], "{places:?}");
    for (name, background, more) in [
        ("light", [255, 255, 255], "--blink-settings=preferredColorScheme=1"),
        ("dark", [20, 23, 27], "--blink-settings=preferredColorScheme=0"),
    ] {
        let picture = Picture::take(&browser, directory, &page, height, &[more]);
        assert_eq!(picture.pixel(1, 1), background, "{name}");
        assert_eq!(picture.coloured([0, 0, 20, height]), 0, "the margin of a page is empty");
        for (plot, place) in &places {
            let coloured = picture.coloured(*place);
            assert!(coloured > 300, "{name}: {plot} at {place:?} has only {coloured} pixels of colour");
        }
    }
}
