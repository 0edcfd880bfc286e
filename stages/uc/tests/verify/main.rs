//! `uc verify` on honest and on hostile packs. The hostile ones have right sizes and digests as far as these can be had, so
//! that only the checks under test can find them. Every verification runs with an address space of 256 MiB.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

mod bounds;
mod builder;
mod compare;
mod damage;
mod identity;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Limit of the address space of every verification, KiB.
const ADDRESS_SPACE_KIB: u32 = 256 << 10;
/// Every pack here is small, so that a verification that takes this long is not bounded by the bytes on disk. An honest one
/// takes less than a second.
const LONGEST: Duration = Duration::from_secs(20);
const FAILED: i32 = 5;

/// Runs `uc verify` with 8 threads in a limited address space.
fn verify(pack: &Path, arguments: &[&str]) -> Output {
    let started = Instant::now();
    let limited = format!("ulimit -v {ADDRESS_SPACE_KIB}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_uc"), "verify"])
        .arg(pack)
        .args(["--threads", "8"])
        .args(arguments)
        // glibc reserves 64 MiB of address space for the arena of each thread, whatever it uses of it; how many there are
        // depends on how the threads meet.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .output()
        .expect("uc starts");
    let took = started.elapsed();
    assert!(took < LONGEST, "took {took:?}: {}", text(&output));
    output
}

/// Standard output and standard error.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks that a pack passes; returns what was printed.
#[track_caller]
fn passes(pack: &Path) -> String {
    let output = verify(pack, &[]);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Checks that a pack fails as a damaged one, with a message; returns what was printed.
#[track_caller]
fn fails(pack: &Path, message: &str) -> String {
    let output = verify(pack, &[]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(FAILED), "{text}");
    assert!(text.contains(message), "expected {message:?}: {text}");
    text
}
