//! Debian's browser.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;

/// The program, or its part without a window, when one is installed.
pub fn path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-headless-shell"];
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.exists())
}
