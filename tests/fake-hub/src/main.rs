//! The fake Hub as a program: prints where it is as one JSON line, and runs until its standard input ends.

use std::io::Read;

use clap::Parser;
use uc_fake_hub::faults::Schedule;
use uc_fake_hub::{FakeHub, Options};

#[derive(Parser)]
#[command(name = "fake-hub", about = "A Hugging Face Hub on the loopback device")]
struct Cli {
    /// Bytes of a part of a large upload
    #[arg(long, default_value_t = 5_000_000)]
    part_size: u64,
    /// Entries on a page of a listing
    #[arg(long, default_value_t = 50)]
    page: usize,
    /// Of 100 requests so many meet a fault
    #[arg(long, default_value_t = 0)]
    faults: u32,
    /// Seed of the faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() {
    let cli = Cli::parse();
    let options = Options {
        part_size: cli.part_size,
        page: cli.page,
        ..Options::default()
    };
    let token = options.token.clone();
    let fake_hub = FakeHub::start(options);
    fake_hub.set_faults(Schedule::random(cli.seed, cli.faults, u32::MAX));
    println!(
        "{}",
        serde_json::json!({"endpoint": fake_hub.endpoint(), "token": token})
    );
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    for seen in fake_hub.seen() {
        let port = if seen.storage { "storage" } else { "hub" };
        eprintln!("{port} {}", seen.line.split('?').next().unwrap_or_default());
    }
}
