//! Single requests: constraints, log-probabilities of prompts, ends, failures.

use std::ops::ControlFlow;
use std::sync::Arc;

use uc_infer::detokenizer::Detokenizer;
use uc_infer::{
    Arithmetic, Batch, BatchSettings, Chunk, Constraint, Dense, Finish, InferError, Matrix,
    MemoryForm, Model, Precision, Progress, Request, Sequence, Source, Wanted,
};
use uc_model::{LayerPlan, ModelConfig, SourceFolder};

use crate::models::{Golden, Linears};
use crate::{
    Answers, Random, VOCAB, answer, llama, named, same, settings, tokenizer, tokenizer_with,
};

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
    type Change = fn(&mut Request);
    let changes: [(&str, Change); 7] = [
        ("no tokens", |request| request.prompt.clear()),
        ("at most 200", |request| request.prompt = vec![1; 201]),
        ("id below 40", |request| request.prompt = vec![40]),
        ("stop", |request| request.stop = vec![String::new()]),
        ("top-logprobs", |request| request.top = 101),
        ("top-logprobs", |request| request.prompt_top = Some(101)),
        ("temperature", |request| request.sampling.temperature = -1.0),
    ];
    for (expected, change) in changes {
        let mut request = base.clone();
        change(&mut request);
        let error = batch.add(request, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(batch.is_idle() && batch.step().is_empty());
    type SettingsChange = fn(&mut BatchSettings);
    let changes: [(&str, SettingsChange); 3] = [
        ("slots", |settings| settings.slots = 0),
        ("step-tokens", |settings| settings.step_tokens = 0),
        ("context", |settings| settings.context = 257),
    ];
    for (expected, change) in changes {
        let mut settings = settings;
        change(&mut settings);
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
    let source = |plan| Golden::new(&files, plan, Linears::Exact);
    let damaged = Model::new(
        config,
        Arithmetic::Exact,
        MemoryForm::Resident,
        &Damaged(source(None)),
        |index| Ok(source(Some(plans[index].clone()))),
    );
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
fn tokens_without_text_do_not_disturb_the_text_after_them_however_many_they_are() {
    let special = serde_json::json!([{
        "id": 0, "content": "w0", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false,
    }]);
    for count in [1, 16, 17, 18, 300] {
        let mut detokenizer = Detokenizer::new(tokenizer_with(special.clone()), &[3]);
        for _ in 0..count {
            assert_eq!(detokenizer.push(0).unwrap(), "");
        }
        assert_eq!(detokenizer.push(5).unwrap(), " w5", "{count}");
        assert_eq!(detokenizer.finish().unwrap(), "", "{count}");
    }
}

/// In which step each request has its first text, if so many of them are added before the first step and the others one in each step.
fn first_steps(step_tokens: usize, together: usize, prompts: &[usize]) -> Vec<usize> {
    let (model, tokenizer) = llama();
    let settings = BatchSettings {
        slots: prompts.len(),
        step_tokens,
        ..settings(&model)
    };
    let mut batch = Batch::new(model, tokenizer, settings).unwrap();
    let mut random = Random::new(11);
    let requests = prompts.iter().map(|&count| Request {
        prompt: random.tokens(count),
        tokens: 60,
        ..Request::default()
    });
    let mut waiting: Vec<Request> = requests.collect();
    let (mut ids, mut steps) = (Vec::new(), vec![0; prompts.len()]);
    for step in 1..=100 {
        let count = if step == 1 { together } else { 1 };
        for request in waiting.drain(..count.min(waiting.len())) {
            ids.push(batch.add(request, None).unwrap());
        }
        for event in batch.step() {
            let index = ids.iter().position(|&id| id == event.request).unwrap();
            if matches!(event.progress, Progress::Text { .. }) && steps[index] == 0 {
                steps[index] = step;
            }
        }
    }
    steps
}

#[test]
fn a_short_prompt_hardly_waits_for_long_ones_and_none_waits_forever() {
    // Together they would all be ready after the fourth step if each had a fourth of every step.
    assert_eq!(first_steps(40, 4, &[40; 4]), [1, 2, 3, 4]);
    // A short prompt behind three long ones: 4 of 8 tokens of a step are its own.
    assert_eq!(first_steps(8, 4, &[80, 80, 80, 8])[3], 2);
    // A long prompt has half of every step, however many short ones come.
    let mut prompts = vec![80];
    prompts.extend([4; 30]);
    let steps = first_steps(8, 2, &prompts);
    assert!(steps[0] <= 20, "{steps:?}");
    assert!(steps.iter().all(|&step| step > 0), "{steps:?}");
    // The smallest step is the oldest prompt's.
    assert_eq!(first_steps(1, 2, &[5, 3]), [5, 8]);
}
