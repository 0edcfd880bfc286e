//! The Python package: the wheel is built, installed in a fresh environment, and its own tests run there.
//!
//! Needs python3, PyPI and some minutes. `UC_PYTHON` names an interpreter that has torch, transformers and vllm: the tests that
//! need them run with its packages and are skipped without.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use uc_tests::{compress, output_text, program, repository, succeed};

/// Families whose checkpoints arrange tensors differently than packs do.
const REARRANGED: [&str; 3] = ["gpt2", "granitemoe", "qwen3_moe"];

/// Makes `FAMILY/model`, with random weights, and `FAMILY/pack`.
fn make_pack(family: &str, folder: &Path) {
    let folder = folder.join(family);
    std::fs::create_dir_all(&folder).expect("folder");
    let config = repository().join(format!("examples/small-configs/{family}.json"));
    let (model, run) = (folder.join("model"), folder.join("run"));
    let mut make = program("random-model");
    succeed(make.arg("--config").arg(config).arg("--out").arg(&model));
    succeed(compress(&model, &run).arg("--no-eval"));
    std::fs::rename(run.join("pack"), folder.join("pack")).expect("renamed");
}

/// A virtual environment with nothing in it, or with the packages of the given interpreter in sight; returns its interpreter.
fn make_environment(given: Option<&str>, folder: &Path) -> String {
    let mut venv = Command::new(given.unwrap_or("python3"));
    succeed(venv.args(["-m", "venv"]).arg(folder));
    let python = folder.join("bin/python");
    if let Some(given) = given {
        let packages = |python: &Path| {
            let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
            let output = output_text(&succeed(Command::new(python).args(["-c", code])));
            output.trim().to_owned()
        };
        let (own, shared) = (packages(&python), packages(Path::new(given)));
        std::fs::write(Path::new(&own).join("shared.pth"), shared).expect("written");
    }
    python.display().to_string()
}

#[test]
#[ignore = "builds a wheel and installs packages from PyPI"]
fn the_wheel_installs_in_a_fresh_environment_and_passes_its_tests() {
    let folder = tempfile::tempdir().expect("folder");
    let built = program("uc");
    let built = Path::new(built.get_program())
        .parent()
        .expect("folder")
        .to_owned();
    let wheels = folder.path().join("wheels");
    let mut make = Command::new("make");
    make.current_dir(repository()).arg("wheel-files");
    make.arg(format!("BIN={}", built.display()));
    succeed(make.arg(format!("WHEELS={}", wheels.display())));
    let wheel = std::fs::read_dir(&wheels)
        .expect("folder")
        .next()
        .expect("a wheel")
        .expect("entry")
        .path();
    let name = wheel
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    assert!(name.contains("-cp310-abi3-manylinux_2_"), "{name}");

    let packs = folder.path().join("packs");
    for family in REARRANGED {
        make_pack(family, &packs);
    }
    let given = std::env::var("UC_PYTHON").ok();
    let python = make_environment(given.as_deref(), &folder.path().join("environment"));
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "pytest", "mypy"])
        .arg(&wheel);
    succeed(&mut pip);
    let mut tests = Command::new(&python);
    tests.args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]);
    tests.arg(repository().join("common/python/tests"));
    tests
        .current_dir(folder.path())
        .env("UCPACK_TEST_PACKS", &packs);
    let text = output_text(&succeed(tests.env_remove("UC_STAGES")));
    assert!(text.contains(" passed"), "{text}");
    eprintln!("{text}");
}
