//! The double as a program: prints where it is as one JSON line, and runs until its standard input ends.

use std::io::Read;

use clap::Parser;
use uc_hub_double::faults::Schedule;
use uc_hub_double::{Double, Options};

#[derive(Parser)]
#[command(
    name = "hub-double",
    about = "A Hugging Face Hub on the loopback device"
)]
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
    let double = Double::start(options);
    double.set_faults(Schedule::random(cli.seed, cli.faults, u32::MAX));
    println!(
        "{}",
        serde_json::json!({"endpoint": double.endpoint(), "token": token})
    );
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    for seen in double.seen() {
        let port = if seen.storage { "storage" } else { "hub" };
        eprintln!("{port} {}", seen.line.split('?').next().unwrap_or_default());
    }
}
