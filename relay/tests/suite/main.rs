//! The relay as a whole, in one program: to link some thirty of them costs minutes. What measures, needs the machine to itself or is
//! run with arguments of its own is a program beside this one.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

mod admin;
mod admin_abuse;
mod admin_page;
mod advice;
mod auth;
mod certificates;
mod confined;
mod container;
#[path = "../../../dataplane/tests/support/debian.rs"]
mod deb;
mod debian;
mod families;
mod hairpin;
#[path = "../harness/mod.rs"]
mod harness;
mod import;
mod kubernetes;
mod loopback;
mod mixed;
mod monitoring;
mod operated;
#[path = "../abuse/ranges.rs"]
mod ranges;
mod ssrf_namespace;
mod streams;
mod streams_loop;
mod uclient;
#[path = "../../../dataplane/tests/support/unit.rs"]
mod unit;
mod unit_file;
#[path = "../../../dataplane/tests/support/unwritable.rs"]
mod unwritable;
#[path = "../../../dataplane/tests/support/user_namespace.rs"]
mod user_namespace;
mod webrtc;
mod workers;

use user_namespace::left_out;
