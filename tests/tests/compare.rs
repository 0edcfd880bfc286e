//! `uc diff` and `uc inspect --tensor` on packs of real models: the errors are those of the weights as another reader decodes
//! them, sources are found however a model stores them, and the text fits the terminal.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use uc_tests::terminal::{Streams, Terminal};
use uc_tests::{
    compress, copy_model, fail_with, json, program, repository, succeed, tiny_model, uc,
};

const BAD_INPUT: i32 = 4;
const TENSOR: &str = "model.layers.1.mlp.down_proj.weight";

/// Compresses a model to a number of bits per weight, without an evaluation; returns the pack.
fn pack(model: &Path, folder: &Path, bits: &str) -> PathBuf {
    let run = folder.join(format!("run-{bits}"));
    succeed(compress(model, &run).args(["--no-eval", "--bpw", bits]));
    run.join("pack")
}

fn diff(a: &Path, b: &Path) -> Command {
    let mut command = uc();
    command.arg("diff").arg(a).arg(b);
    command
}

fn inspect(pack: &Path, tensor: &str, model: &Path) -> Command {
    let mut command = uc();
    command.arg("inspect").arg(pack).args(["--tensor", tensor]);
    command.arg("--model").arg(model);
    command
}

/// Decodes the tensor in two packs with the reader that was written from the specification alone; prints the relative squared
/// error, the largest error and the number of weights that differ.
const DECODE: &str = "
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import numpy, read_pack
kept = {}
reconstruct = read_pack.Linear.reconstruct
def keep(linear, indices):
    weights = reconstruct(linear, indices)
    kept[linear.name] = (weights.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)
    return weights
read_pack.Linear.reconstruct = keep
def weights(pack):
    read_pack.read_layer((pathlib.Path(pack) / 'layer_001.uc').read_bytes(), 1)
    return kept['mlp.down_proj.weight']
a, b = weights(sys.argv[2]), weights(sys.argv[3])
error = numpy.abs(a - b)
print(json.dumps([(error ** 2).sum() / (a ** 2).sum(), error.max(), int((a != b).sum())]))
";

/// What [`DECODE`] prints; none without python3 and numpy.
fn decoded(a: &Path, b: &Path) -> Option<[f64; 3]> {
    let mut python = Command::new("python3");
    python.args(["-c", DECODE]);
    python
        .arg(repository().join("tests/independent"))
        .arg(a)
        .arg(b);
    let has_numpy = Command::new("python3")
        .args(["-c", "import numpy"])
        .output();
    if !has_numpy.is_ok_and(|output| output.status.success()) {
        eprintln!("not compared: no python3 with numpy");
        return None;
    }
    let values: Vec<f64> = serde_json::from_slice(&succeed(&mut python).stdout).expect("JSON");
    values.try_into().ok()
}

#[test]
fn packs_of_the_embedded_model_are_compared_and_looked_into() {
    let folder = tempfile::tempdir().expect("folder");
    let [a, b] = ["5.0", "4.0"].map(|bits| pack(&tiny_model(), folder.path(), bits));
    two_rates_differ_as_another_reader_finds(&a, &b);
    the_error_is_that_against_the_source(&a);
    another_model_is_refused(&a, folder.path());
    reports_fit_terminals_and_have_no_colour_that_nobody_wants(&a, &b);
}

fn two_rates_differ_as_another_reader_finds(a: &Path, b: &Path) {
    let found = json(&succeed(diff(a, b).arg("--json")));
    let field = |name: &str| {
        let mut fields = found["provenance"].as_array().expect("list").iter();
        let field = fields.find(|field| field["field"] == name).cloned();
        field.map(|field| (field["a"].clone(), field["b"].clone()))
    };
    let rates = field("codec.settings.quantize.bpw").expect("differs");
    assert_eq!(rates, ("5.0".into(), "4.0".into()), "{found}");
    assert_eq!(field("source.name"), None);
    let bits = |side: &str| found[side]["totals"]["bits_per_weight_linears"].clone();
    assert!(bits("a").as_str() > Some("4.9") && bits("b").as_str() <= Some("4.000000"));
    let tensors = found["tensors"].as_array().expect("list");
    for tensor in tensors {
        let is_linear = tensor["a"]["dtype"] == Value::Null;
        let expected = if is_linear { "differs" } else { "identical" };
        assert_eq!(tensor["outcome"], expected, "{tensor}");
        assert_eq!(tensor["error"].is_object(), is_linear, "{tensor}");
        assert_eq!(tensor["a"]["step"].is_number(), is_linear, "{tensor}");
    }
    let of_all = &found["summary"]["linears"]["relative_squared_error"];
    assert!(
        (1e-4..0.1).contains(&of_all.as_f64().expect("number")),
        "{of_all}"
    );

    let tensor = tensors.iter().find(|tensor| tensor["name"] == TENSOR);
    let error = &tensor.expect("listed")["error"];
    if let Some([relative, largest, differing]) = decoded(a, b) {
        let number = |name: &str| error[name].as_f64().expect("number");
        assert!((number("relative_squared_error") / relative - 1.0).abs() < 1e-9);
        assert_eq!(number("max_absolute_error"), largest);
        assert_eq!(number("differing"), differing);
    }
}

fn the_error_is_that_against_the_source(pack: &Path) {
    let found = json(&succeed(inspect(pack, TENSOR, &tiny_model()).arg("--json")));
    let error = &found["error"];
    assert_eq!(error["is_source"], true, "{error}");
    let relative = error["relative_squared_error"].as_f64().expect("number");
    assert!((1e-5..0.02).contains(&relative), "{error}");
    let code = &found["storage"]["coded"];
    let entropy = |name: &str| code[name].as_f64().expect("number");
    assert!(entropy("index_bits_per_weight") < entropy("bits_per_weight"));
    assert!((2.0..7.0).contains(&entropy("index_entropy")), "{code}");

    let exact = json(&succeed(
        inspect(pack, "model.norm.weight", &tiny_model()).arg("--json"),
    ));
    assert_eq!(exact["error"]["is_source"], true, "{exact}");
}

fn another_model_is_refused(pack: &Path, folder: &Path) {
    let other = folder.join("other");
    copy_model(&other);
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    // The last bits of the values, which stay finite.
    for value in bytes[8 + header..].chunks_exact_mut(4) {
        value[0] ^= 1;
    }
    std::fs::write(&weights, bytes).expect("written");
    let refused = fail_with(&mut inspect(pack, TENSOR, &other), BAD_INPUT);
    for part in [
        "is not the model that the pack was made from",
        TENSOR,
        "--other-model",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let accepted = succeed(inspect(pack, TENSOR, &other).args(["--other-model", "--json"]));
    assert_eq!(json(&accepted)["error"]["is_source"], false);
    let refused = fail_with(&mut inspect(pack, TENSOR, folder), BAD_INPUT);
    assert!(refused.contains("config.json"), "{refused}");
}

#[test]
fn transposed_linears_and_those_of_fused_experts_are_compared_with_their_source() {
    for (family, tensor) in [
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
        (
            "granitemoe",
            "model.layers.1.block_sparse_moe.output_linear.1.weight",
        ),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let model = folder.path().join("model");
        let config = repository().join(format!("examples/small-configs/{family}.json"));
        let mut make = program("random-model");
        succeed(make.arg("--config").arg(config).arg("--out").arg(&model));
        let pack = pack(&model, folder.path(), "5.0");
        let found = json(&succeed(inspect(&pack, tensor, &model).arg("--json")));
        assert_eq!(found["error"]["is_source"], true, "{family}: {found}");
        // Weights that are taken for others have an error above 1.
        let relative = found["error"]["relative_squared_error"].as_f64();
        assert!(
            relative.is_some_and(|error| error < 0.1),
            "{family}: {relative:?}"
        );
    }
}

fn reports_fit_terminals_and_have_no_colour_that_nobody_wants(a: &Path, b: &Path) {
    for columns in [60, 80, 120] {
        for mut command in [diff(a, b), inspect(a, TENSOR, &tiny_model())] {
            let mut terminal = Terminal::new(columns, 100);
            command.stdin(Stdio::null()).stderr(Stdio::null());
            command.env("NO_COLOR", "1");
            let mut child = terminal.start(&mut command, Streams::Output);
            terminal.finish();
            assert!(
                child.wait().expect("ended").success(),
                "{}",
                terminal.screen()
            );
            assert_eq!(terminal.wrapped, Vec::<String>::new(), "{columns} columns");
            assert!(
                terminal.screen().contains("down_proj"),
                "{}",
                terminal.screen()
            );
        }
    }
    let plain = succeed(diff(a, b).env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR"));
    assert!(String::from_utf8_lossy(&plain.stdout).contains("\u{1b}["));
    let plain = succeed(diff(a, b).env("NO_COLOR", "1"));
    assert!(!String::from_utf8_lossy(&plain.stdout).contains('\u{1b}'));
}
