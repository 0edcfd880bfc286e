//! Limits of the system and consent of the user: size of files, a pack outside of the run directory.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files

use std::process::Command;

use uc_tests::{QUICK, fail_with, program, succeed, tiny_model, uc};

/// Exit code of a full disk.
const DISK_FULL: i32 = 7;
/// Exit code of a mistake on the command line.
const USAGE: i32 = 2;

#[test]
fn a_limit_on_the_size_of_files_is_reported_like_a_full_disk() {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -f 64 && exec \"$@\"", "bash"])
        .arg(program("uc").get_program())
        .arg("compress")
        .arg(tiny_model())
        .arg("--run")
        .arg(folder.path().join("run"))
        .args(QUICK);
    let message = fail_with(&mut command, DISK_FULL);
    assert!(message.contains("disk-full"), "{message}");
}

#[test]
fn a_run_whose_pack_is_elsewhere_continues_only_if_the_user_names_the_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let (run, pack) = (folder.path().join("run"), folder.path().join("pack"));
    let compress = || {
        let mut command = uc();
        command
            .arg("compress")
            .arg(tiny_model())
            .arg("--run")
            .arg(&run);
        command.arg("--out").arg(&pack).args(QUICK);
        command
    };
    let message = fail_with(
        compress().args(["--upload", "a/b", "--delete-uploaded"]),
        USAGE,
    );
    assert!(message.contains("--out"), "{message}");
    succeed(&mut compress());
    let message = fail_with(uc().arg("resume").arg(&run), USAGE);
    let option = format!("--out {}", pack.display());
    assert!(message.contains(&option), "{message}");
    succeed(uc().arg("resume").arg(&run).arg("--out").arg(&pack));
    fail_with(uc().arg("resume").arg(&run).args(["--out", "/tmp"]), USAGE);
}
