//! The fake Hub as a program. It prints its endpoint and token as one JSON line and runs until standard input ends. Then it
//! prints the requests that it received, one line each, to standard error.

use std::io::Read;

use clap::Parser;
use uc_fake_hub::faults::Schedule;
use uc_fake_hub::{FakeHub, Options};

#[derive(Parser)]
#[command(
    name = "fake-hub",
    about = "A fake Hugging Face Hub on the loopback interface"
)]
struct Cli {
    /// Part size of large uploads in bytes
    #[arg(long, default_value_t = 5_000_000)]
    part_size: u64,
    /// Entries on one page of a listing
    #[arg(long, default_value_t = 50)]
    page_size: usize,
    /// Percentage of requests that meet a fault
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
        page_size: cli.page_size,
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
    for request in fake_hub.requests() {
        let port = if request.storage { "storage" } else { "hub" };
        eprintln!(
            "{port} {}",
            request.line.split('?').next().unwrap_or_default()
        );
    }
}
