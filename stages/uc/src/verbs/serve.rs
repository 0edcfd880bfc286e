//! `uc serve PACK`: answers the requests of programs and browsers with the model of a pack.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::unbounded;
use uc_infer::load::{self, Checks};
use uc_infer::{BatchSettings, InferError, Template};
use uc_input::printable;
use uc_pack::Pack;
use uc_serve::{Access, Served, Server, Settings};
use uc_store::ExitCode;

use super::generate::classify;
use crate::cli::ServeArgs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;

/// Longest file with a key, bytes.
const MAX_KEY: u64 = 4096;
/// Shortest key, so that it cannot be guessed.
const MIN_KEY: usize = 16;
/// Longest time for a request to arrive, once it has begun.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Longest time that a client may not read what is sent.
const WRITE_TIME: Duration = Duration::from_secs(60);
/// Most open connections.
const CONNECTIONS: usize = 1024;

/// Runs the verb.
pub fn run(args: &ServeArgs, display: &Display, signals: &Listener) -> anyhow::Result<()> {
    let start = Instant::now();
    let key = args.api_key_file.as_ref().map(|file| read_key(file));
    let key = key.transpose()?;
    // The address is taken before the model is loaded: a server that already runs is noticed at once.
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address}; --port PORT chooses another port"))?;
    let address = listener.local_addr().context("cannot find the port")?;
    let threads = session::threads(args.runtime.threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .build()
        .context("cannot start threads")?;
    let served = pool.install(|| load(args, display))?;
    let (name, arithmetic) = (served.name.clone(), served.arithmetic);
    let context = context(args, &served)?;
    let access = Access {
        key,
        hosts: args.allow_host.clone(),
    };
    warn_of_open_access(&access, address, display);
    let settings = settings(args, context, access);
    let server = Server::new(served, settings, Arc::new(pool)).map_err(classify)?;
    display.info(&format!(
        "serving {} at http://{address}, {} answers at a time, {context} tokens of context, {} arithmetic; loaded in {:.1} s",
        printable(&name),
        args.parallel,
        arithmetic,
        start.elapsed().as_secs_f64(),
    ));
    end_on_signals(&server, signals);
    let ended = server.run(listener);
    signals.detach();
    let ended = ended.context("the server has failed")?;
    match ended.cut {
        0 => display.info("ended; every answer was complete"),
        cut => display.warn(&format!(
            "ended; {cut} answers were cut after {} s",
            args.drain
        )),
    }
    Ok(())
}

/// The first signal ends the server in order, the second at once.
fn end_on_signals(server: &Server, signals: &Listener) {
    let (to_us, received) = unbounded();
    signals.attach(to_us);
    let control = server.control();
    std::thread::spawn(move || {
        if received.recv().is_ok() {
            control.end();
        }
        if received.recv().is_ok() {
            control.cut();
        }
    });
}

/// Loads the model of the pack.
fn load(args: &ServeArgs, display: &Display) -> anyhow::Result<Served> {
    let pack = packs::open(&args.pack)?;
    let options = args.runtime.load_options(&pack);
    let checks = options.checks;
    if checks == Checks::Structure {
        display.warn(
            "--no-verify: the weights are NOT compared with the manifest; the answers may be those of a damaged pack",
        );
    }
    let tokenizer = load::tokenizer(&pack, checks).map_err(classify)?;
    let template = match Template::load(&pack, checks) {
        Ok(template) => Some(template),
        Err(InferError::NoTemplate) => None,
        Err(error) => return Err(classify(error)),
    };
    let mut stop_tokens = uc_infer::stop_tokens(&pack, checks).map_err(classify)?;
    let ends_turn = template.as_ref().map(Template::eos);
    stop_tokens.extend(ends_turn.and_then(|text| tokenizer.id(text)));
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    let model = load::load(&pack, options).map_err(classify)?;
    Ok(Served {
        name: args.model_name.clone().unwrap_or_else(|| name(args, &pack)),
        fingerprint: pack.fingerprint().to_string(),
        model: Arc::new(model),
        arithmetic: options.arithmetic,
        tokenizer: Arc::new(tokenizer),
        template,
        stop_tokens,
    })
}

/// The model's name: the repository that it is from, the folder that was compressed, or the pack's folder.
fn name(args: &ServeArgs, pack: &Pack) -> String {
    let source = &pack.manifest().source;
    if let Some(hub) = &source.hub {
        return hub.repository.clone();
    }
    let folder = source.name.trim_end_matches('/').rsplit('/').next();
    let names = [folder, args.pack.file_name()];
    let name = names.into_iter().flatten().find(|name| !name.is_empty());
    name.unwrap_or("model").to_owned()
}

fn context(args: &ServeArgs, served: &Served) -> anyhow::Result<usize> {
    let expected = served.model.config().context;
    match args.context {
        Some(found) if found == 0 || found > expected => {
            Err(classify(InferError::ContextRange { found, expected }))
        }
        chosen => Ok(chosen.unwrap_or(expected)),
    }
}

fn settings(args: &ServeArgs, context: usize, access: Access) -> Settings {
    Settings {
        batch: BatchSettings {
            slots: args.parallel as usize,
            step_tokens: uc_infer::batch::STEP_TOKENS,
            context,
            precision: args.runtime.cache.into(),
            prefix_bytes: u64::from(args.prefix_cache) << 20,
        },
        queue: args.queue as usize,
        body_bytes: (args.body_limit as usize) << 20,
        body_time: REQUEST_TIME,
        timeout: Duration::from_secs(args.timeout.into()),
        write_time: WRITE_TIME,
        head_time: REQUEST_TIME,
        drain: Duration::from_secs(args.drain.into()),
        connections: CONNECTIONS,
        log_prompts: args.log_prompts,
        access,
    }
}

/// The key in a file: its only line.
fn read_key(file: &camino::Utf8Path) -> anyhow::Result<String> {
    let shown = printable(file.as_str());
    let text =
        uc_input::read_text(file, MAX_KEY).with_context(|| format!("cannot read {shown}"))?;
    let key = text.trim();
    let is_printable = key.bytes().all(|byte| byte.is_ascii_graphic());
    if key.len() < MIN_KEY || !is_printable {
        let message = format!(
            "{shown}: found something else than a key, expected one line of at least {MIN_KEY} letters, digits or signs; make one: \
             openssl rand -hex 32"
        );
        return Err(failure(ExitCode::BadInput, message));
    }
    Ok(key.to_owned())
}

fn warn_of_open_access(access: &Access, address: SocketAddr, display: &Display) {
    if access.key.is_none() && !address.ip().is_loopback() {
        display.warn(&format!(
            "{address} can be reached by other machines and there is no key: anybody who reaches it can use it; --api-key-file \
             FILE asks for a key"
        ));
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use camino::Utf8Path;

    #[test]
    fn a_key_is_one_line_that_cannot_be_guessed() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("key");
        let file = Utf8Path::from_path(&file).expect("UTF-8");
        for (text, expected) in [
            ("0123456789abcdef\n", Some("0123456789abcdef")),
            ("short\n", None),
            ("", None),
            ("0123456789abcdef\n0123456789abcdef\n", None),
            ("0123456789 abcdef", None),
        ] {
            std::fs::write(file, text).expect("written");
            assert_eq!(read_key(file).ok().as_deref(), expected, "{text:?}");
        }
        assert!(read_key(Utf8Path::new("/nonexistent")).is_err());
    }
}
