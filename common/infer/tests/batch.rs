//! Shows that the answer to a request is that given alone, to the last bit, whatever else the batch does: on small models of
//! every family.
#![allow(clippy::disallowed_methods)]

mod models;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use models::{Linears, cases, model};
use uc_infer::{
    Batch, BatchSettings, Chunk, Constraint, Dense, Finish, InferError, Matrix, Model, Precision,
    Progress, Request, RequestId, Sampling, Sequence, Source, Token, Usage, Wanted,
};
use uc_model::text::splitmix64;
use uc_model::{LayerPlan, ModelConfig, SourceFolder, Tokenizer};

/// Tokens of the small models.
const VOCAB: u32 = 40;

/// A tokenizer whose token `i` is the word `wi`.
fn tokenizer() -> Arc<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let vocab = (0..VOCAB).map(|id| (format!("w{id}"), id.into()));
    let description = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
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

#[test]
fn answers_are_those_given_alone_whoever_joins_leaves_and_shares_prefixes() {
    let tokenizer = tokenizer();
    let mut reused = 0;
    for (index, folder) in cases().into_iter().enumerate() {
        let linears = [
            Linears::Exact,
            Linears::Coded,
            Linears::Reconstructed,
            Linears::Fast,
        ][index % 4];
        let model = Arc::new(model(&folder, linears));
        let alone = settings(&model);
        let new = |settings| Batch::new(model.clone(), tokenizer.clone(), settings).unwrap();
        let mut random = Random::new(index as u64);
        let requests = requests(&mut random, alone.context, 10);
        let expected: Vec<Answer> = requests
            .iter()
            .map(|request| answer(&mut new(alone), request))
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
                answers.step(&mut batch);
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
            answers.step(&mut batch);
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

/// Lets tokens follow in a cycle, up to a number of them.
struct Cycle(Vec<u32>, usize);

impl Constraint for Cycle {
    fn allow(&mut self, allowed: &mut [u32]) -> Result<(), String> {
        let next = self.0[self.1 % self.0.len()];
        if let Some(bits) = allowed.get_mut(next as usize / 32) {
            *bits |= 1 << (next % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<ControlFlow<()>, String> {
        if token == 13 {
            return Err("thirteen".to_owned());
        }
        self.1 += 1;
        Ok(match self.1 {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    }
}

#[test]
fn a_constraint_decides_which_tokens_may_follow_and_can_fail_without_harm_to_others() {
    let (model, tokenizer) = llama();
    let settings = BatchSettings {
        slots: 4,
        ..settings(&model)
    };
    let mut batch = Batch::new(model, tokenizer, settings).unwrap();
    let request = Request {
        prompt: vec![1, 2, 3],
        tokens: 8,
        ..Request::default()
    };
    let alone = answer(&mut batch, &request);
    let mut add = |cycle: &[u32]| {
        let constraint = Box::new(Cycle(cycle.to_vec(), 0));
        batch.add(request.clone(), Some(constraint)).unwrap()
    };
    let [right, failing, empty] = [&[8, 9][..], &[8, 13], &[8, 63]].map(&mut add);
    let free = batch.add(request.clone(), None).unwrap();
    let answers = Answers::all(&mut batch).0;
    assert_eq!(answers[&right].ids(), [8, 9, 8, 9, 8]);
    assert_eq!(answers[&right].finish(), Finish::Stop);
    same("beside failures", &answers[&free], &alone);
    for (id, reason) in [(failing, "thirteen"), (empty, "no token may follow")] {
        let error = answers[&id].error.as_ref().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_prompts_own_log_probabilities_are_those_of_the_forward_pass() {
    let (model, tokenizer) = llama();
    let settings = BatchSettings {
        step_tokens: 7,
        prefix_bytes: 1 << 30,
        ..settings(&model)
    };
    let prompt = Random::new(3).tokens(50);
    let mut sequence = Sequence::new(&model, 60, Precision::F32).unwrap();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens: &prompt,
        wanted: Wanted::All,
    };
    let logits = model.forward(&mut [chunk]).unwrap().remove(0);
    let mut batch = Batch::new(model, tokenizer, settings).unwrap();
    let request = Request {
        prompt: prompt.clone(),
        prompt_top: Some(2),
        ..Request::default()
    };
    for _ in 0..2 {
        let found = answer(&mut batch, &request);
        assert_eq!((found.finish(), found.tokens.len()), (Finish::Length, 0));
        assert_eq!(found.started, Some(0), "it is computed again");
        assert_eq!(found.prompt.len(), prompt.len() - 1);
        for (position, scored) in found.prompt.iter().enumerate() {
            assert_eq!(scored.token.id, prompt[position + 1]);
            let row = &logits[position * VOCAB as usize..][..VOCAB as usize];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let expected = f64::from(row[scored.token.id as usize]) - sum.ln();
            assert!((scored.token.logprob - expected).abs() < 1e-6);
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(row[scored.top[0].id as usize], largest);
            assert_eq!(scored.top.len(), 2);
        }
    }
}

#[test]
fn a_text_ends_where_it_should() {
    let (model, tokenizer) = llama();
    let settings = settings(&model);
    let mut batch = Batch::new(model, tokenizer, settings).unwrap();
    let request = Request {
        prompt: Random::new(9).tokens(190),
        tokens: 8,
        ..Request::default()
    };
    let whole = answer(&mut batch, &request);
    assert_eq!((whole.finish(), whole.tokens.len()), (Finish::Length, 8));
    let texts: String = whole
        .tokens
        .iter()
        .map(|token| token.text.as_str())
        .collect();
    assert_eq!(texts, whole.text, "the tokens' texts are the text");
    let usage = whole.end.unwrap().1;
    assert_eq!((usage.prompt, usage.generated, usage.reused), (190, 8, 0));

    let ids = whole.ids();
    let full = Request {
        tokens: 100,
        ..request.clone()
    };
    let full = answer(&mut batch, &full);
    // The context holds 10 tokens more, and the last one is chosen without being computed.
    assert_eq!((full.finish(), full.tokens.len()), (Finish::Context, 11));

    let third = ids[2];
    let stopped = Request {
        stop_tokens: vec![third],
        ..request.clone()
    };
    let stopped_at = answer(&mut batch, &stopped);
    let end = ids.iter().position(|&id| id == third).unwrap();
    assert_eq!(stopped_at.ids(), ids[..=end]);
    assert_eq!(stopped_at.finish(), Finish::Stop);
    assert!(whole.text.starts_with(&stopped_at.text));
    let later = Request {
        min_tokens: 5,
        ..stopped
    };
    let later = answer(&mut batch, &later);
    assert!(later.tokens.len() >= 5 && !later.ids()[..4].contains(&third));

    let words: Vec<&str> = whole.text.trim().split(' ').collect();
    let stop = format!("{} {}", words[3], words[4]);
    let cut = Request {
        stop: vec![stop.clone(), "never".to_owned()],
        ..request.clone()
    };
    let cut = answer(&mut batch, &cut);
    assert_eq!(cut.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(cut.finish(), Finish::Stop);
    assert_eq!(cut.ids(), ids[..cut.tokens.len()]);
}

#[test]
fn requests_that_cannot_be_answered_are_refused_at_once() {
    let (model, tokenizer) = llama();
    let settings = settings(&model);
    let mut batch = Batch::new(model.clone(), tokenizer.clone(), settings).unwrap();
    let base = Request {
        prompt: vec![1],
        tokens: 1,
        ..Request::default()
    };
    let refused = [
        (
            "no tokens",
            Request {
                prompt: vec![],
                ..base.clone()
            },
        ),
        (
            "at most 200",
            Request {
                prompt: vec![1; 201],
                ..base.clone()
            },
        ),
        (
            "id below 40",
            Request {
                prompt: vec![40],
                ..base.clone()
            },
        ),
        (
            "stop",
            Request {
                stop: vec![String::new()],
                ..base.clone()
            },
        ),
        (
            "top-logprobs",
            Request {
                top: 101,
                ..base.clone()
            },
        ),
        (
            "top-logprobs",
            Request {
                prompt_top: Some(101),
                ..base.clone()
            },
        ),
        (
            "temperature",
            Request {
                sampling: Sampling {
                    temperature: -1.0,
                    ..Sampling::default()
                },
                ..base
            },
        ),
    ];
    for (expected, request) in refused {
        let error = batch.add(request, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(batch.is_idle() && batch.step().is_empty());
    for (expected, settings) in [
        (
            "slots",
            BatchSettings {
                slots: 0,
                ..settings
            },
        ),
        (
            "step-tokens",
            BatchSettings {
                step_tokens: 0,
                ..settings
            },
        ),
        (
            "context",
            BatchSettings {
                context: 257,
                ..settings
            },
        ),
    ] {
        let error = Batch::new(model.clone(), tokenizer.clone(), settings);
        let error = error.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A model in which the token 7 has an embedding that is no number.
struct Damaged<S>(S);

impl<S: Source> Source for Damaged<S> {
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix, InferError> {
        let matrix = self.0.matrix(name, shape)?;
        Ok(match matrix {
            Matrix::Dense { values, cols } if name.contains("embed") => {
                let mut values = values.to_f32();
                values[7 * cols] = f32::NAN;
                let values = Dense::F32(values);
                Matrix::Dense { values, cols }
            }
            other => other,
        })
    }

    fn exact(&self, name: &str, shape: &[usize]) -> Result<Dense, InferError> {
        self.0.exact(name, shape)
    }
}

#[test]
fn logits_that_are_no_numbers_end_one_request_alone() {
    let folder = named("llama-plain");
    let config = ModelConfig::load(&folder).unwrap();
    let files = SourceFolder::open(&folder).unwrap();
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let source = |plan| models::Golden::new(&files, plan, Linears::Exact);
    let damaged = Model::new(config, &Damaged(source(None)), |index| {
        Ok(source(Some(plans[index].clone())))
    });
    let damaged = Arc::new(damaged.unwrap());
    let settings = BatchSettings {
        slots: 3,
        prefix_bytes: 1 << 30,
        ..settings(&damaged)
    };
    let mut batch = Batch::new(damaged, tokenizer(), settings).unwrap();
    let request = |prompt: &[u32]| Request {
        prompt: prompt.to_vec(),
        tokens: 5,
        stop_tokens: vec![7],
        ..Request::default()
    };
    let alone = answer(&mut batch, &request(&[1, 2, 3]));
    let prompts: [&[u32]; 3] = [&[1, 2, 3], &[1, 7, 3], &[4, 7]];
    let ids = prompts.map(|prompt| batch.add(request(prompt), None).unwrap());
    let answers = Answers::all(&mut batch).0;
    same("beside failures", &answers[&ids[0]], &alone);
    for id in &ids[1..] {
        let error = answers[id].error.as_ref().unwrap();
        assert!(matches!(error, InferError::Overflow { .. }), "{error}");
    }
    let again = answer(&mut batch, &request(&[1, 7, 3]));
    assert!(
        again.error.is_some() && again.started == Some(1),
        "nothing of it is kept"
    );
}

#[test]
fn a_batch_can_be_given_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Batch>();
}
