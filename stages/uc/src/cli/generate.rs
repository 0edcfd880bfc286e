//! The options of `uc generate`.

use camino::Utf8PathBuf;
use clap::Args;
use uc_infer::Sampling;

use super::OUTPUT;
use super::runtime::RuntimeArgs;

/// Heading of the options that choose tokens.
const SAMPLING: &str = "Sampling";
/// Heading of the options of the prompt.
const PROMPT: &str = "Prompt";

/// `uc generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// The text to continue, or with --chat the question [default: standard input]
    #[arg(short, long, value_name = "TEXT", help_heading = PROMPT, allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the text to continue
    #[arg(short, long, value_name = "FILE", help_heading = PROMPT, conflicts_with = "prompt")]
    pub file: Option<Utf8PathBuf>,
    /// Use the model's chat template; without a text, a conversation: one message a line, Ctrl-C ends an answer, Ctrl-D the
    /// conversation
    #[arg(long, help_heading = PROMPT)]
    pub chat: bool,
    /// What the assistant is told before the conversation
    #[arg(long, value_name = "TEXT", help_heading = PROMPT, requires = "chat", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Most tokens to generate [default: 256]
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 256,
        hide_default_value = true
    )]
    pub tokens: usize,
    /// Most tokens of prompt and text together [default: those asked for; with --chat the model's context]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// A text that ends the answer, which ends before it; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Go on when the model ends its text
    #[arg(long)]
    pub ignore_eos: bool,
    /// How the model is run.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// With --json: report the log-probabilities of so many most probable tokens, at most 100 [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = OUTPUT, requires = "json")]
    pub top_logprobs: usize,
    /// Print tokens, log-probabilities, times and settings as JSON at the end, in place of the text
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

/// Options that choose tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = SAMPLING)]
pub struct SamplingArgs {
    /// Divisor of the logits; 0 always takes the most probable token [default: 0]
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub temperature: f64,
    /// Consider so many most probable tokens; 0 for all [default: 0]
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    pub top_k: usize,
    /// Consider the most probable tokens whose probabilities sum to this [default: 1]
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub top_p: f64,
    /// Consider tokens at least this fraction as probable as the most probable one [default: 0]
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub min_p: f64,
    /// Factor that makes tokens of prompt and text less probable if above 1 [default: 1]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub repeat_penalty: f64,
    /// Subtract this from the logits of tokens of the text [default: 0]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f64,
    /// Subtract this from the logits of tokens for each time they occur in the text [default: 0]
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f64,
    /// Seed of the random choices [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub seed: u64,
    /// Add VALUE to the logit of the token ID; repeatable
    #[arg(long, value_name = "ID:VALUE", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f64)>,
}

impl From<&SamplingArgs> for Sampling {
    fn from(args: &SamplingArgs) -> Self {
        Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
            presence_penalty: args.presence_penalty,
            frequency_penalty: args.frequency_penalty,
            seed: args.seed,
            logit_bias: args.logit_bias.iter().copied().collect(),
        }
    }
}

/// Reads `ID:VALUE`.
fn parse_bias(text: &str) -> Result<(u32, f64), String> {
    let expected = || "expected ID:VALUE, for example 42:-1.5".to_owned();
    let (id, value) = text.split_once(':').ok_or_else(expected)?;
    match (id.parse(), value.parse()) {
        (Ok(id), Ok(value)) => Ok((id, value)),
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(parse_bias("42:-1.5"), Ok((42, -1.5)));
        for wrong in ["42", "42:", ":1", "-1:2", "a:1", "1:b"] {
            assert!(parse_bias(wrong).is_err(), "{wrong}");
        }
    }
}
