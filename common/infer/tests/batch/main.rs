//! Shows that the answer to a request is that given alone, to the last bit, whatever else the batch does: on small models of
//! every family.
#![allow(clippy::disallowed_methods)]

#[path = "../models/mod.rs"]
mod models;
mod requests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use models::{Linears, cases, model};
use uc_infer::{
    Batch, BatchSettings, Chunk, Finish, InferError, Model, Precision, Progress, Request,
    RequestId, Sampling, Sequence, Token, Usage, Wanted,
};
use uc_model::Tokenizer;
use uc_model::spec::Mixer;
use uc_model::text::splitmix64;

/// Tokens of the small models.
const VOCAB: u32 = 40;

/// A tokenizer whose token `i` is the word `wi`.
fn tokenizer() -> Arc<Tokenizer> {
    tokenizer_with(serde_json::json!([]))
}

fn tokenizer_with(added_tokens: serde_json::Value) -> Arc<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let vocab = (0..VOCAB).map(|id| (format!("w{id}"), id.into()));
    let description = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {
            "type": "WordLevel", "unk_token": "w0",
            "vocab": vocab.collect::<serde_json::Map<_, _>>(),
        },
    });
    let path = folder.path().join("tokenizer.json");
    std::fs::write(path, description.to_string()).unwrap();
    Arc::new(Tokenizer::load(folder.path()).unwrap())
}

/// Numbers that look random, by a seed.
struct Random {
    seed: u64,
    count: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Random { seed, count: 0 }
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.count += 1;
        (splitmix64(self.seed, self.count) % end as u64) as usize
    }

    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count)
            .map(|_| self.below(VOCAB as usize) as u32)
            .collect()
    }
}

fn settings(model: &Model) -> BatchSettings {
    BatchSettings {
        slots: 1,
        step_tokens: 1000,
        context: model.config().context.min(200),
        precision: Precision::F32,
        prefix_bytes: 0,
    }
}

/// An answer as far as it goes.
#[derive(Debug, Default)]
struct Answer {
    started: Option<usize>,
    prompt: Vec<uc_infer::sampler::Chosen>,
    text: String,
    tokens: Vec<Token>,
    end: Option<(Finish, Usage)>,
    error: Option<InferError>,
}

impl Answer {
    fn finish(&self) -> Finish {
        self.end.expect("an end").0
    }

    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.token.id).collect()
    }
}

/// The answers of a batch by request.
#[derive(Default)]
struct Answers(BTreeMap<RequestId, Answer>);

impl Answers {
    fn step(&mut self, batch: &mut Batch) {
        for event in batch.step() {
            let answer = self.0.entry(event.request).or_default();
            assert!(
                answer.end.is_none() && answer.error.is_none(),
                "the end is last"
            );
            match event.progress {
                Progress::Started { reused } => assert!(answer.started.replace(reused).is_none()),
                Progress::Prompt { tokens } => answer.prompt = tokens,
                Progress::Text { text, tokens } => {
                    assert!(!text.is_empty() || !tokens.is_empty());
                    answer.text.push_str(&text);
                    answer.tokens.extend(tokens);
                }
                Progress::Finished { finish, usage } => answer.end = Some((finish, usage)),
                Progress::Failed { error } => answer.error = Some(error),
            }
        }
    }

    fn all(batch: &mut Batch) -> Self {
        let mut answers = Answers::default();
        while !batch.is_idle() {
            answers.step(batch);
        }
        answers
    }
}

/// The answer of a batch that has nothing else to do.
fn answer(batch: &mut Batch, request: &Request) -> Answer {
    let id = batch.add(request.clone(), None).unwrap();
    Answers::all(batch).0.remove(&id).unwrap()
}

fn same(what: &str, found: &Answer, expected: &Answer) {
    assert_eq!(found.tokens, expected.tokens, "{what}");
    assert_eq!(found.text, expected.text, "{what}");
    assert_eq!(found.prompt, expected.prompt, "{what}");
    assert_eq!(found.finish(), expected.finish(), "{what}");
}

/// Requests of all kinds, of which some begin alike.
fn requests(random: &mut Random, context: usize, count: usize) -> Vec<Request> {
    let shared = random.tokens(context / 2);
    let request = |_| {
        let from = [0, 7, 30, context / 3, context / 2][random.below(5)];
        let own = [1, 2, 9, context / 3][random.below(4)];
        let mut prompt = shared[..from].to_vec();
        prompt.extend(random.tokens(own));
        Request {
            prompt,
            tokens: random.below(12),
            sampling: Sampling {
                temperature: [0.0, 0.7, 1.5][random.below(3)],
                seed: random.below(1000) as u64,
                presence_penalty: [0.0, 0.5][random.below(2)],
                ..Sampling::default()
            },
            stop: match random.below(3) {
                0 => vec![format!("w{} w", random.below(40))],
                _ => Vec::new(),
            },
            stop_tokens: random.tokens(1),
            top: random.below(3),
            prompt_top: [None, None, None, Some(1)][random.below(4)],
            ..Request::default()
        }
    };
    (0..count).map(request).collect()
}

fn threads(count: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
    pool.unwrap()
}

#[test]
fn answers_are_those_given_alone_whoever_joins_leaves_and_shares_prefixes() {
    let tokenizer = tokenizer();
    let (one, three) = (threads(1), threads(3));
    let mut reused = 0;
    for (index, folder) in cases().into_iter().enumerate() {
        let linears = [
            Linears::Exact,
            Linears::Coded,
            Linears::Reconstructed,
            Linears::Fast,
        ][index % 4];
        let model = Arc::new(model(&folder, linears));
        let alone = BatchSettings {
            precision: [Precision::F32, Precision::F16, Precision::Bf16][index / 3 % 3],
            ..settings(&model)
        };
        let new = |settings| Batch::new(model.clone(), tokenizer.clone(), settings).unwrap();
        let mut random = Random::new(index as u64);
        let requests = requests(&mut random, alone.context, 10);
        let expected: Vec<Answer> = requests
            .iter()
            .map(|request| one.install(|| answer(&mut new(alone), request)))
            .collect();
        let mut batch = new(BatchSettings {
            slots: 1 + random.below(5),
            step_tokens: [3, 20, 70][random.below(3)],
            prefix_bytes: [20_000, 1 << 30][random.below(2)],
            ..alone
        });
        let mut answers = Answers::default();
        let mut ids = Vec::new();
        let mut cancelled = Vec::new();
        for request in requests.iter().cycle().take(15) {
            ids.push(batch.add(request.clone(), None).unwrap());
            for _ in 0..random.below(4) {
                three.install(|| answers.step(&mut batch));
            }
            if random.below(5) == 0 {
                let id = ids[random.below(ids.len())];
                if batch.cancel(id) {
                    cancelled.push(id);
                }
                assert!(!batch.cancel(id), "it is gone");
            }
        }
        while !batch.is_idle() {
            three.install(|| answers.step(&mut batch));
        }
        for (id, expected) in ids.iter().zip(expected.iter().cycle()) {
            let what = format!("{} {id:?}", folder.display());
            let found = &answers.0[id];
            if !cancelled.contains(id) {
                same(&what, found, expected);
                continue;
            }
            assert_eq!(found.finish(), Finish::Cancelled, "{what}");
            assert!(expected.ids().starts_with(&found.ids()), "{what}");
        }
        let counters = batch.counters();
        assert_eq!(
            (counters.running, counters.waiting, counters.state_bytes),
            (0, 0, 0)
        );
        reused += counters.reused_tokens;
    }
    assert!(reused > 5000, "{reused} tokens were shared");
}

/// A prompt of the model of a folder, and one that goes on after its text.
fn conversation(folder: &Path) -> (Arc<Model>, Request, Request) {
    let model = Arc::new(model(folder, Linears::Coded));
    let mut random = Random::new(1);
    let context = settings(&model).context;
    let first = Request {
        prompt: random.tokens(context / 2),
        tokens: 6,
        ..Request::default()
    };
    let mut second = first.clone();
    second.prompt.extend(random.tokens(9));
    (model, first, second)
}

#[test]
fn every_family_takes_over_what_is_computed_of_a_prompt() {
    let tokenizer = tokenizer();
    for folder in cases() {
        let (model, first, mut second) = conversation(&folder);
        let new = |prefix_bytes| {
            let settings = BatchSettings {
                slots: 4,
                prefix_bytes,
                ..settings(&model)
            };
            Batch::new(model.clone(), tokenizer.clone(), settings).unwrap()
        };
        let mut batch = new(1 << 30);
        let found = answer(&mut batch, &first);
        assert_eq!(found.started, Some(0), "{}", folder.display());
        // The same again: all but its last token.
        let again = answer(&mut batch, &first);
        same("again", &again, &found);
        let computed = first.prompt.len() - 1;
        assert_eq!(again.started, Some(computed), "{}", folder.display());
        // After the text: all of it but the last token, which no step has computed.
        let text = found.ids();
        second.prompt.truncate(first.prompt.len());
        second.prompt.extend(&text);
        second.prompt.extend([3, 4, 5]);
        let next = answer(&mut batch, &second);
        same("next", &next, &answer(&mut new(0), &second));
        let computed = first.prompt.len() + text.len() - 1;
        assert_eq!(next.started, Some(computed), "{}", folder.display());
        // Several at the same time: they wait for the first of them.
        let mut batch = new(1 << 30);
        let ids = [0; 3].map(|_| batch.add(first.clone(), None).unwrap());
        let answers = Answers::all(&mut batch);
        for id in ids {
            same("together", &answers.0[&id], &found);
        }
        let taken = ids.map(|id| answers.0[&id].started.unwrap());
        let all = first.prompt.len() - 1;
        assert_eq!(taken, [0, all, all], "{}", folder.display());
    }
}

#[test]
fn prompts_that_part_somewhere_share_what_comes_before_it() {
    let tokenizer = tokenizer();
    for folder in cases() {
        let (model, first, _) = conversation(&folder);
        let settings = BatchSettings {
            prefix_bytes: 1 << 30,
            ..settings(&model)
        };
        let mut batch = Batch::new(model.clone(), tokenizer.clone(), settings).unwrap();
        let parting = first.prompt.len() - 20;
        let taken = [1, 2, 3].map(|own| {
            let mut request = first.clone();
            request.prompt.truncate(parting);
            request.prompt.extend([own; 11]);
            answer(&mut batch, &request).started.unwrap()
        });
        // States that cannot be cut are kept where the second prompt parts from the first.
        assert_eq!((taken[0], taken[2]), (0, parting), "{}", folder.display());
        assert!(taken[1] == 0 || taken[1] == parting, "{}", folder.display());
    }
}

fn named(name: &str) -> PathBuf {
    let mut cases = cases().into_iter();
    cases.find(|case| case.ends_with(name)).unwrap()
}

fn llama() -> (Arc<Model>, Arc<Tokenizer>) {
    let model = model(&named("llama-plain"), Linears::Exact);
    (Arc::new(model), tokenizer())
}

#[test]
fn a_token_of_latent_attention_takes_its_latent_vector_and_its_rotary_key_alone() {
    let model = model(&named("deepseek_v3-plain"), Linears::Exact);
    let blocks = model.config().layers.iter().flat_map(|layer| &layer.blocks);
    let elements = blocks.map(|block| match &block.mixer {
        Mixer::LatentAttention(spec) => spec.kv_a.norm.width + spec.rope.width,
        _ => 0,
    });
    let elements: usize = elements.sum();
    for (precision, bytes) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
        let mut sequence = Sequence::new(&model, 200, precision).unwrap();
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens: &[1; 128],
            wanted: Wanted::None,
        };
        model.forward(&mut [chunk]).unwrap();
        assert_eq!(sequence.bytes(), 128 * (elements * bytes) as u64);
    }
}

#[test]
fn sequences_that_begin_alike_hold_their_common_tokens_once() {
    let (model, tokenizer) = llama();
    let settings = BatchSettings {
        slots: 8,
        prefix_bytes: 1 << 30,
        ..settings(&model)
    };
    let mut batch = Batch::new(model.clone(), tokenizer, settings).unwrap();
    let request = Request {
        prompt: Random::new(5).tokens(128),
        tokens: 20,
        ..Request::default()
    };
    let mut one = Sequence::new(&model, 200, Precision::F32).unwrap();
    let chunk = Chunk {
        sequence: &mut one,
        tokens: &request.prompt,
        wanted: Wanted::None,
    };
    model.forward(&mut [chunk]).unwrap();
    for _ in 0..8 {
        batch.add(request.clone(), None).unwrap();
    }
    for _ in 0..4 {
        batch.step();
    }
    let counters = batch.counters();
    assert_eq!((counters.running, counters.reused_tokens), (8, 7 * 127));
    // Two blocks of the prompt; of each request a copy of the second and a third for its text.
    let blocks = counters.state_bytes / (one.bytes() / 2);
    assert!((9..=1 + 8 * 2).contains(&blocks), "{blocks}");

    // The kept sequences stay within the limit, the least recently used ones go.
    let limit = 2 * one.bytes();
    let settings = BatchSettings {
        prefix_bytes: limit,
        ..settings
    };
    let mut batch = Batch::new(model, batch.tokenizer().clone(), settings).unwrap();
    let requests: Vec<Request> = (0..3)
        .map(|seed| Request {
            prompt: Random::new(seed).tokens(120),
            tokens: 1,
            ..Request::default()
        })
        .collect();
    let taken = [0, 1, 0, 2, 0, 1].map(|index| {
        let taken = answer(&mut batch, &requests[index]).started.unwrap();
        assert!(batch.counters().prefix_bytes <= limit);
        taken
    });
    assert_eq!(taken, [0, 0, 119, 0, 119, 0]);
}

#[test]
fn a_batch_can_be_given_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Batch>();
}
