"""Checks that the fake Hub implements the Hub's API: the official client works with it unchanged.

Usage: python with_huggingface_hub.py target/release/fake-hub     (needs `pip install huggingface_hub`)

upload_folder uploads a folder with small text files, files in sub-folders, an empty file and a file over 10 MB (large file
storage, in parts). snapshot_download downloads it into a cache and into a folder, and both are compared with the original
by digest. A second upload of the same folder makes no commit. A commit on an outdated parent is refused. Missing
repositories, revisions and files raise the client's own error classes.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != ".gitattributes"
    }


def write_files(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "test"}\n')
    (folder / "README.md").write_text("---\ntags:\n- test\n---\n# A test\n")
    (folder / "deep" / "er" / "note with ü.txt").write_text("note\n")
    (folder / "deep" / "empty.txt").write_bytes(b"")
    noise = random.Random(1)
    (folder / "large.bin").write_bytes(noise.randbytes(12_345_678))
    (folder / "deep" / "small.safetensors").write_bytes(noise.randbytes(70_000))


def main() -> None:
    command = [sys.argv[1], "--page-size", "3"]
    fake_hub = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        started = json.loads(fake_hub.stdout.readline())
        with tempfile.TemporaryDirectory() as scratch:
            os.environ |= {
                "HF_ENDPOINT": started["endpoint"],
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HOME": f"{scratch}/home",
            }
            check(started["token"], Path(scratch))
    finally:
        _, request_log = fake_hub.communicate()
    lines = request_log.splitlines()
    parts = sum(line.startswith("storage PUT /part/") for line in lines)
    whole = sum(line.startswith("storage PUT /upload/") for line in lines)
    pages = sum("/tree/" in line for line in lines)
    assert parts == 3 and whole == 1, (parts, whole)
    print(f"{len(lines)} requests, {parts} parts, {whole} upload in one piece, {pages} listing pages")


def check(token: str, scratch: Path) -> None:
    # Imported here, because the client reads the environment when it is imported.
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    print("huggingface_hub", huggingface_hub.__version__)
    source = scratch / "source"
    write_files(source)
    api = huggingface_hub.HfApi(token=token)
    api.create_repo("tester/model")
    api.create_repo("tester/model", exist_ok=True)
    parent = api.repo_info("tester/model").sha
    first = api.upload_folder(repo_id="tester/model", folder_path=source, commit_message="all")
    again = api.upload_folder(repo_id="tester/model", folder_path=source, commit_message="again")
    assert first.oid == again.oid, "an unchanged folder must make no commit"

    cached = Path(huggingface_hub.snapshot_download("tester/model"))
    assert digests(cached) == digests(source)
    local = scratch / "local"
    huggingface_hub.snapshot_download("tester/model", revision=first.oid, local_dir=local)
    assert digests(local) == digests(source)

    info = api.repo_info("tester/model", files_metadata=True)
    lfs = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
    assert lfs == {
        name: digests(source)[name] for name in ("large.bin", "deep/small.safetensors")
    }
    try:
        api.upload_file(
            path_or_fileobj=b"late",
            path_in_repo="late.txt",
            repo_id="tester/model",
            parent_commit=parent,
        )
        raise AssertionError("an outdated parent must be refused")
    except HfHubHTTPError as error:
        assert error.response.status_code == 412, error
    for expected, call in [
        (RepositoryNotFoundError, lambda: api.repo_info("tester/absent")),
        (RevisionNotFoundError, lambda: api.repo_info("tester/model", revision="absent")),
        (EntryNotFoundError, lambda: api.hf_hub_download("tester/model", "absent.txt")),
        (HfHubHTTPError, lambda: huggingface_hub.HfApi(token="hf_wrong").create_repo("tester/x")),
    ]:
        try:
            call()
            raise AssertionError(f"{expected.__name__} was expected")
        except expected:
            pass
    print(f"round trip of {len(digests(source))} files: equal")


if __name__ == "__main__":
    main()
