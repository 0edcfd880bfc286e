//! Published clients against `uc serve`, unchanged: the `openai` package, and `lm_eval` with its model `local-completions`.
//!
//! `UC_PYTHON` names an interpreter that has the packages; without it, they are installed from PyPI.
#![allow(clippy::disallowed_methods)]

use std::process::Command;

use rustix::process::Signal;
use uc_tests::server::{Packed, Server};
use uc_tests::{output_text, program, repository, succeed};

const KEY: &str = "0123456789abcdef0123";
/// With tools in the style of Hermes.
const TEMPLATE: &str = "{% for t in tools %}{{ t.function.name }} {% endfor %}{# <tool_call> #}\
                        {% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}\
                        {% endfor %}assistant: ";

/// An interpreter with these packages.
fn python(folder: &std::path::Path, packages: &[&str]) -> String {
    if let Ok(python) = std::env::var("UC_PYTHON") {
        return python;
    }
    succeed(Command::new("python3").args(["-m", "venv"]).arg(folder));
    let pip = folder.join("bin/pip");
    succeed(
        Command::new(pip)
            .args(["install", "--quiet"])
            .args(packages),
    );
    folder.join("bin/python").display().to_string()
}

fn script(python: &str, name: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(repository().join("tests/serve").join(name));
    command
}

#[test]
#[ignore = "needs Python and the package openai from PyPI (UC_PYTHON: an interpreter that has it)"]
fn the_openai_package_works_unchanged() {
    let packed = Packed::new(TEMPLATE);
    let pack = packed.pack();
    let key = pack.with_file_name("key");
    std::fs::write(&key, KEY).expect("written");
    let python = python(&pack.with_file_name("venv"), &["openai"]);
    let key = key.to_str().expect("UTF-8");
    let server = Server::start(&pack, &["--api-key-file", key, "--model-name", "tiny"]);
    let (_, props) = server.ask("/props", None, Some(KEY));
    let mut command = script(&python, "with_openai.py");
    command
        .arg(format!("http://{}", server.address))
        .args([KEY, "tiny"]);
    let output = succeed(command.arg(props["fingerprint"].as_str().expect("a fingerprint")));
    let text = output_text(&output);
    for part in [
        "models",
        "completions",
        "chat",
        "formats",
        "tools",
        "errors",
    ] {
        assert!(text.contains(&format!("{part}: passed")), "{text}");
    }
    assert_eq!(server.end(Signal::TERM).0, Some(0));
}

#[test]
#[ignore = "needs Python and the package lm_eval from PyPI (UC_PYTHON: an interpreter that has it)"]
fn lm_eval_finds_the_log_likelihoods_of_the_evaluator() {
    let packed = Packed::new(TEMPLATE);
    let pack = packed.pack();
    let python = python(
        &pack.with_file_name("venv"),
        &["lm_eval[api]", "transformers", "torch"],
    );
    let server = Server::start(&pack, &["--model-name", "tiny"]);
    let mut command = script(&python, "with_lm_eval.py");
    command
        .arg(format!("http://{}", server.address))
        .arg("tiny");
    command
        .arg(program("uc").get_program())
        .arg(&pack)
        .arg(packed.model());
    command.arg(packed.model().join("evaluation.txt"));
    let text = output_text(&succeed(&mut command));
    assert!(text.contains("passed"), "{text}");
    assert_eq!(server.end(Signal::TERM).0, Some(0));
}
