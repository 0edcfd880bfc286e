//! `uc generate PACK`: continues a text, or converses, with the model of a pack.

mod conversation;
mod result;

use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use uc_infer::load::{self, Checks, LoadOptions};
use uc_infer::{
    Batch, BatchSettings, Finish, Generated, InferError, Message, Model, Request, Sampling,
    Template, generate,
};
use uc_input::printable;
use uc_model::Tokenizer;
use uc_pack::Pack;
use uc_store::{ExitCode, output};

use crate::cli::GenerateArgs;
use crate::process::signals::Listener;
use crate::report::failure::failure;
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;

/// Longest prompt, bytes.
const MAX_PROMPT: u64 = 256 << 20;

/// Runs the verb.
pub fn run(args: &GenerateArgs, display: &Display, signals: &Listener) -> anyhow::Result<()> {
    let threads = session::threads(args.runtime.threads);
    let sampling = Sampling::from(&args.sampling);
    // What does not depend on the model is refused before it is loaded.
    sampling.check(usize::MAX).map_err(classify)?;
    let text = prompt(args)?;
    if text.is_none() && args.json {
        let message = "--json: found a conversation, expected a text (-p TEXT or -f FILE)";
        return Err(failure(ExitCode::Usage, message));
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .build()
        .context("cannot start threads")?;
    pool.install(|| {
        let loaded = Loaded::load(args, sampling, threads, display)?;
        match text {
            Some(text) => loaded.answer(&text),
            None => conversation::run(&loaded, signals),
        }
    })
}

/// The prompt; none for a conversation.
fn prompt(args: &GenerateArgs) -> anyhow::Result<Option<String>> {
    if let Some(text) = &args.prompt {
        return Ok(Some(text.clone()));
    }
    if let Some(file) = &args.file {
        let text = uc_input::read_text(file, MAX_PROMPT);
        return bad_text(text, &printable(file.as_str())).map(Some);
    }
    if args.chat {
        return Ok(None);
    }
    let stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        let message =
            "found no text, expected -p TEXT, -f FILE, a text on standard input, or --chat";
        return Err(failure(ExitCode::Usage, message));
    }
    bad_text(read_stdin(stdin), "standard input").map(Some)
}

/// The text on standard input.
fn read_stdin(stdin: impl Read) -> std::io::Result<String> {
    let bytes = uc_input::read_from(stdin, MAX_PROMPT)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let message = format!("it is not UTF-8 from byte {at}");
        std::io::Error::new(std::io::ErrorKind::InvalidData, message)
    })
}

/// Names the source of a text that cannot be read.
fn bad_text(text: std::io::Result<String>, source: &str) -> anyhow::Result<String> {
    text.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => failure(
            ExitCode::BadInput,
            format!("{source}: {error}, expected UTF-8"),
        ),
        _ => anyhow::Error::from(error).context(format!("cannot read {source}")),
    })
}

/// A model that is ready to generate.
struct Loaded<'a> {
    args: &'a GenerateArgs,
    sampling: Sampling,
    threads: u32,
    display: &'a Display,
    pack: Pack,
    options: LoadOptions,
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    stop_tokens: Vec<u32>,
    load_time: Duration,
}

impl<'a> Loaded<'a> {
    fn load(
        args: &'a GenerateArgs,
        sampling: Sampling,
        threads: u32,
        display: &'a Display,
    ) -> anyhow::Result<Self> {
        let start = Instant::now();
        let pack = packs::open(&args.pack)?;
        let options = args.runtime.load_options(&pack);
        let checks = options.checks;
        if checks == Checks::Structure {
            display.warn(
                "--no-verify: the weights are NOT compared with the manifest; the text may be that of a damaged pack",
            );
        }
        let tokenizer = load::tokenizer(&pack, checks).map_err(classify)?;
        let template = match args.chat {
            true => Some(Template::load(&pack, checks).map_err(classify)?),
            false => None,
        };
        let mut stop_tokens = uc_infer::stop_tokens(&pack, checks).map_err(classify)?;
        let ends_turn = template.as_ref().map(Template::eos);
        stop_tokens.extend(ends_turn.and_then(|text| tokenizer.id(text)));
        if args.ignore_eos {
            stop_tokens.clear();
        }
        let model = load::load(&pack, options).map_err(classify)?;
        sampling.check(model.config().vocab).map_err(classify)?;
        Ok(Loaded {
            args,
            sampling,
            threads,
            display,
            pack,
            options,
            model: Arc::new(model),
            tokenizer: Arc::new(tokenizer),
            template,
            stop_tokens,
            load_time: start.elapsed(),
        })
    }

    /// Continues a text, or answers a single question.
    fn answer(&self, text: &str) -> anyhow::Result<()> {
        let prompt = match self.template {
            Some(_) => {
                let mut messages = self.system_message();
                messages.push(Message::new("user", text));
                self.conversation_tokens(&messages)?
            }
            None => self.text_tokens(text)?,
        };
        let mut batch = self.batch(prompt.len())?;
        let request = self.request(prompt);
        let json = self.args.json;
        let mut on_text = |text: &str| {
            if !json {
                output::print(text);
            }
            match output::is_closed() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let generated = self.generate(&mut batch, &request, &mut on_text)?;
        if json {
            return print_json(&result::report(self, &request, &generated, &batch)?);
        }
        output::print_line("");
        self.say_times(&request, &generated);
        Ok(())
    }

    fn generate(
        &self,
        batch: &mut Batch,
        request: &Request,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> anyhow::Result<Generated> {
        generate(batch, request.clone(), on_text).map_err(classify)
    }

    /// The tokens of a text to continue, with the leading special token of the tokenizer once.
    fn text_tokens(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.encode(text)?;
        if let Some(bos) = self.tokenizer.bos()
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// The tokens of a conversation. The template writes the special tokens.
    fn conversation_tokens(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let template = self.template.as_ref().context("no template is loaded")?;
        self.encode(&template.render(messages).map_err(classify)?)
    }

    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(text);
        tokens.map_err(|error| classify(error.into()))
    }

    /// What the assistant is told first.
    fn system_message(&self) -> Vec<Message> {
        let system = self.args.system.iter();
        system.map(|text| Message::new("system", text)).collect()
    }

    /// A batch for one request at a time, for a prompt of this many tokens and what follows, or for a conversation.
    fn batch(&self, prompt: usize) -> anyhow::Result<Batch> {
        let most = self.model.config().context;
        let needed = match self.args.chat {
            true => most,
            false => prompt.saturating_add(self.args.tokens).clamp(1, most),
        };
        let settings = BatchSettings {
            slots: 1,
            step_tokens: uc_infer::batch::STEP_TOKENS,
            context: self.args.context.unwrap_or(needed),
            precision: self.args.runtime.cache.into(),
            // What the conversation needs anyway.
            prefix_bytes: match self.args.chat {
                true => u64::MAX,
                false => 0,
            },
        };
        Batch::new(self.model.clone(), self.tokenizer.clone(), settings).map_err(classify)
    }

    /// Most tokens of a conversation.
    fn conversation_context(&self) -> usize {
        self.args.context.unwrap_or(self.model.config().context)
    }

    fn request(&self, prompt: Vec<u32>) -> Request {
        Request {
            prompt,
            tokens: self.args.tokens,
            sampling: self.sampling.clone(),
            stop: self.args.stop.clone(),
            stop_tokens: self.stop_tokens.clone(),
            top: self.args.top_logprobs,
            ..Request::default()
        }
    }

    fn say_times(&self, request: &Request, generated: &Generated) {
        let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
        let (prompt, tokens) = (request.prompt.len(), generated.tokens.len());
        self.display.info(&format!(
            "{prompt} tokens of prompt at {:.1}/s, {tokens} of text at {:.1}/s, {} arithmetic; loaded in {:.1} s{}",
            rate(prompt, generated.usage.prompt_time),
            rate(tokens, generated.usage.generation_time),
            self.options.arithmetic,
            self.load_time.as_secs_f64(),
            match generated.finish {
                Finish::Context => "; the context is full",
                _ => "",
            },
        ));
    }
}

/// Assigns a class to an error of the runtime.
pub fn classify(error: InferError) -> anyhow::Error {
    let code = match error {
        InferError::Pack(error) => return packs::classify(error),
        InferError::Io { .. } => return error.into(),
        InferError::Layers { .. }
        | InferError::NoTensor { .. }
        | InferError::Tensor { .. }
        | InferError::Digest { .. }
        | InferError::Overflow { .. } => ExitCode::Damaged,
        InferError::ContextRange { .. } | InferError::Empty | InferError::Option { .. } => {
            ExitCode::Usage
        }
        _ => ExitCode::BadInput,
    };
    failure(code, format!("{:#}", anyhow::Error::from(error)))
}
