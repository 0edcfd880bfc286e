//! An installed program: it finds its stage programs and its texts wherever it is, and its completions and manual pages are
//! complete.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use uc_tests::{QUICK, copy_model, files_below, output_text, program, repository, succeed, uc};

/// `make TARGET` with the programs that were built beside this test.
fn make(target: &str, variable: &str, folder: &Path) {
    let uc = program("uc");
    let built = Path::new(uc.get_program())
        .parent()
        .expect("folder")
        .to_owned();
    let mut make = Command::new("make");
    make.current_dir(repository()).arg(target);
    make.arg(format!("{variable}={}", folder.display()));
    succeed(make.arg(format!("BIN={}", built.display())));
}

#[test]
fn an_installed_program_runs_from_any_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let prefix = folder.path().join("prefix");
    make("install-files", "PREFIX", &prefix);
    // The folder can be moved afterwards.
    let moved = folder.path().join("moved");
    std::fs::rename(&prefix, &moved).expect("moved");
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("folder");
    // A model without texts of its own.
    let model = folder.path().join("model");
    copy_model(&model);
    for text in ["calibration.txt", "evaluation.txt"] {
        std::fs::remove_file(model.join(text)).expect("removed");
    }
    let mut command = Command::new(moved.join("bin/uc"));
    command
        .current_dir(&elsewhere)
        .env_remove("UC_SHARE")
        .env_remove("UC_STAGES");
    command
        .arg("compress")
        .arg(&model)
        .args(["--run", "run"])
        .args(QUICK);
    let text = output_text(&succeed(&mut command));
    assert!(text.contains("PASS"), "{text}");
    assert!(
        text.contains("warning: Calibration text: the generated stories"),
        "{text}"
    );
    for name in ["calibration.txt", "evaluation.txt"] {
        let written = std::fs::read(elsewhere.join("run/texts").join(name)).expect("text");
        let original = repository().join("examples/tiny-stories").join(name);
        assert!(written == std::fs::read(original).expect("text"), "{name}");
    }
    // A lost text is written again.
    std::fs::remove_dir_all(elsewhere.join("run/texts")).expect("removed");
    let mut resume = Command::new(moved.join("bin/uc"));
    resume.current_dir(&elsewhere).args(["resume", "run"]);
    let text = output_text(&succeed(&mut resume));
    assert!(text.contains("0 of "), "{text}");

    for file in [
        "share/man/man1/uc.1",
        "share/man/man1/uc-compress.1",
        "share/bash-completion/completions/uc",
        "share/zsh/site-functions/_uc",
        "share/fish/vendor_completions.d/uc.fish",
        "share/ultracompress/read_pack.py",
        "share/doc/ultracompress/LICENSE",
    ] {
        let length = std::fs::metadata(moved.join(file)).map_or(0, |file| file.len());
        assert!(length > 0, "{file}");
    }
}

#[test]
#[ignore = "packs 100 MB; part of `make test-full`"]
fn the_release_archive_is_one_folder_that_runs_anywhere() {
    let folder = tempfile::tempdir().expect("folder");
    make("dist-files", "DIST_ROOT", &folder.path().join("dist"));
    let mut archives = files_below(&folder.path().join("dist"));
    archives.retain(|path| path.extension().is_some_and(|extension| extension == "gz"));
    assert_eq!(archives.len(), 1, "{archives:?}");
    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).expect("folder");
    let mut tar = Command::new("tar");
    succeed(tar.arg("-xzf").arg(&archives[0]).arg("-C").arg(&unpacked));
    let mut entries = std::fs::read_dir(&unpacked).expect("unpacked");
    let root = entries.next().expect("a folder").expect("entry").path();
    assert!(entries.next().is_none(), "one folder");
    for file in ["README.md", "LICENSE", "read_pack.py", "docs/cli.md"] {
        assert!(root.join(file).is_file(), "{file}");
    }
    let mut compress = Command::new(root.join("bin/uc"));
    compress.current_dir(&root).env_remove("UC_STAGES");
    compress.args(["compress", "examples/tiny-stories", "--run", "run"]);
    let text = output_text(&succeed(compress.args(QUICK)));
    assert!(text.contains("PASS"), "{text}");
}

#[test]
fn completions_and_manual_pages_name_every_option() {
    let help = |verb: &str| output_text(&succeed(uc().args([verb, "--help"])));
    let verbs = [
        "compress", "resume", "status", "plan", "stage", "verify", "inspect", "eval", "upload",
    ];
    let folder = tempfile::tempdir().expect("folder");
    succeed(uc().args(["man", "--out"]).arg(folder.path()));
    for shell in ["bash", "zsh", "fish"] {
        let script = output_text(&succeed(uc().args(["completions", shell])));
        for verb in verbs {
            assert!(script.contains(verb), "{shell} {verb}");
        }
        for option in ["dry-run", "with-inputs", "delete-uploaded"] {
            assert!(script.contains(option), "{shell} {option}");
        }
    }
    for verb in verbs {
        let page = std::fs::read_to_string(folder.path().join(format!("uc-{verb}.1")));
        // The pages escape every hyphen.
        let page = page.expect("page").replace("\\-", "-");
        let options = help(verb);
        let options = options.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        for option in options.filter(|word| word.starts_with("--") && word.len() > 2) {
            assert!(page.contains(option), "{verb} {option}");
        }
    }
}

#[test]
fn colour_follows_the_environment() {
    let folder = tempfile::tempdir().expect("folder");
    let run = folder.path().join("run");
    succeed(&mut uc_tests::compress(&uc_tests::tiny_model(), &run));
    let verify = |variables: &[(&str, &str)]| {
        let mut command = uc();
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command
            .arg("verify")
            .arg(run.join("pack"))
            .envs(variables.iter().copied());
        String::from_utf8(succeed(&mut command).stdout).expect("UTF-8")
    };
    assert!(!verify(&[]).contains('\x1b'));
    assert!(verify(&[("CLICOLOR_FORCE", "1")]).contains("\x1b[1m\x1b[32mPASS"));
    assert!(!verify(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\x1b'));
}
