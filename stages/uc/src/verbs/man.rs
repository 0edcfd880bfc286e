//! `uc man --out DIR`: the manual pages, made from the declarations of the options.

use camino::Utf8Path;
use clap::Command;
use clap_mangen::Man;
use uc_store::atomic;

use crate::cli::{self, ManArgs};
use crate::report::progress::Display;

/// Runs the verb.
pub fn run(args: &ManArgs, display: &Display) -> anyhow::Result<()> {
    let mut command = cli::command();
    // Names the pages of the verbs `uc-VERB`.
    command.build();
    atomic::create_dir_all(&args.out)?;
    write_page(&command, &args.out)?;
    let verbs = command.get_subcommands();
    let verbs: Vec<&Command> = verbs.filter(|verb| verb.get_name() != "help").collect();
    for verb in &verbs {
        write_page(verb, &args.out)?;
    }
    display.info(&format!("{} pages in {}", verbs.len() + 1, args.out));
    Ok(())
}

fn write_page(command: &Command, folder: &Utf8Path) -> anyhow::Result<()> {
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page)?;
    atomic::write_bytes(&folder.join(man.get_filename()), &page)?;
    Ok(())
}
