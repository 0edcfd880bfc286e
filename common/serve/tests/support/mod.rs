//! A server with the embedded model on a loopback port.
#![allow(dead_code)]

use std::net::TcpListener;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use uc_infer::{
    Arithmetic, BatchSettings, Dense, InferError, Matrix, MemoryForm, Model, Precision, Source,
    Template,
};
use uc_model::{LayerPlan, ModelConfig, SourceFolder, Tokenizer};
use uc_serve::{Access, Control, Ended, Served, Server, Settings};
use uc_tests::http::Client;

/// The model's name.
pub const NAME: &str = "tiny-stories";
/// The fingerprint that the server is given.
pub const FINGERPRINT: &str = "f00d";

/// A chat template with tools in the style of Hermes.
pub const TAGGED: &str = "{% if tools %}Tools:{% for t in tools %} {{ t.function.name }}{% endfor %}. <tool_call>\n{% endif %}\
                          {% for m in messages %}{% if m.content == 'fail' %}{{ raise_exception('no such talk') }}{% endif %}\
                          {{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{{ '\n' }}\
                          {% endfor %}assistant: {{ mood }}";
/// One in the style of Llama 3.1.
pub const BARE: &str =
    "{% if tools %}<|python_tag|>{% endif %}{% for m in messages %}{{ m.content }}\n{% endfor %}";

/// The folder of the embedded model.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-stories")
}

/// The tensors of the embedded model, uncompressed.
struct Exact<'a> {
    source: &'a SourceFolder,
    plan: Option<LayerPlan>,
}

impl Source for Exact<'_> {
    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix, InferError> {
        let values = self.exact(name, &[rows, cols])?;
        Ok(Matrix::Dense { values, cols })
    }

    fn exact(&self, name: &str, _: &[usize]) -> Result<Dense, InferError> {
        let values = match &self.plan {
            Some(plan) => self.source.read_planned_f32(plan, name),
            None => self.source.read_f32(name),
        };
        Ok(Dense::F32(values.unwrap()))
    }
}

/// The embedded model with this chat template.
pub fn served(template: Option<&str>) -> Served {
    let folder = folder();
    let config = ModelConfig::load(&folder).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let exact = |plan| Exact {
        source: &source,
        plan,
    };
    let model = Model::new(
        config,
        Arithmetic::Exact,
        MemoryForm::Resident,
        &exact(None),
        |index| Ok(exact(Some(plans[index].clone()))),
    );
    let template = template.map(|text| Template::parse(b"{}", Some(text.to_owned())).unwrap());
    Served {
        name: NAME.to_owned(),
        fingerprint: FINGERPRINT.to_owned(),
        model: Arc::new(model.unwrap()),
        arithmetic: Arithmetic::Exact,
        tokenizer: Arc::new(Tokenizer::load(&folder).unwrap()),
        template,
        stop_tokens: Vec::new(),
    }
}

/// Settings for tests.
pub fn settings() -> Settings {
    Settings {
        batch: BatchSettings {
            slots: 4,
            step_tokens: 64,
            context: 256,
            precision: Precision::F32,
            prefix_bytes: 8 << 20,
        },
        queue: 64,
        body_bytes: 1 << 20,
        body_time: Duration::from_secs(5),
        timeout: Duration::from_secs(60),
        write_time: Duration::from_secs(5),
        head_time: Duration::from_secs(5),
        drain: Duration::from_secs(20),
        connections: 256,
        log_prompts: false,
        access: Access::default(),
    }
}

/// A running server; it is ended when this is dropped.
pub struct Running {
    client: Client,
    pub control: Control,
    thread: Option<JoinHandle<Ended>>,
}

impl Running {
    /// Starts a server.
    pub fn start(served: Served, settings: Settings) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        let server = Server::new(served, settings, Arc::new(pool.unwrap())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let control = server.control();
        let thread = std::thread::spawn(move || server.run(listener).unwrap());
        Running {
            client: Client { address },
            control,
            thread: Some(thread),
        }
    }

    /// A server with the usual settings.
    pub fn usual() -> Self {
        Self::start(served(Some(TAGGED)), settings())
    }

    /// Waits for the end.
    pub fn join(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Deref for Running {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.cut();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}
