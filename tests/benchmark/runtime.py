#!/usr/bin/env python3
"""Measures `uc bench` beside llama.cpp's `llama-bench` on the same model and machine; writes docs/benchmarks/runtime-MODEL.json.

Usage: python3 tests/benchmark/runtime.py --pack PACK [--models NAME …] [--threads 1 2] [--rounds 3] [--setting OPTIONS …]
       [--suffix TEXT] [--scratch DIR] [--llama-bench PROGRAM] [--llama-quantize PROGRAM] [--llama-version TEXT]
The models are that of PACK (`pack`) and, for each configuration of examples/speed-configs, a pack of that shape with the statistics
of PACK; by default all of them. llama.cpp gets the GGUF export of the same pack, made smaller by llama-quantize.
Build first: make setup; cargo build --release -p uc-examples --example synthetic_pack
The programs of llama.cpp are found by the options, the variables LLAMA_BENCH and LLAMA_QUANTIZE, or on PATH.

Everything is interleaved: a round measures every contender once with each number of threads, so that what else happens on the
machine meets all of them. Speeds are medians over the rounds, ratios are medians of the ratios within a round. Both programs do
one uncounted measurement first, keep keys and values in f16 and leave out the choice of tokens.
- Peak resident memory: VmHWM of `uc bench` before it measures the bandwidth, maxrss of llama-bench, which counts mapped files.
- Load time: of uc without and with verification; of llama-bench the wall time of a run of one token less that token.
- Generation: of uc after 16 tokens, of llama-bench from the beginning.
- Bandwidth: the fastest reading of all rounds with that number of threads. Weights read per token: `weights_read` of `uc bench`; of
  a GGUF file all tensors, but of an embedding that is not also the output matrix nothing.
"""
import argparse
import json
import os
import pathlib
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
CONFIGS = ROOT / "examples/speed-configs"
KINDS = ["Q5_K_M", "Q4_K_M", "Q8_0"]


def program(option, variable, name):
    """The path of a program, or an end with what to do."""
    found = shutil.which(option or os.environ.get(variable) or name)
    if not found:
        sys.exit(f"{option or os.environ.get(variable) or name}: found no such program, expected {name} of llama.cpp: "
                 f"build it (cmake -B build -DGGML_NATIVE=ON && cmake --build build --target {name}) and name it with "
                 f"--{name} or the variable {variable}")
    return found


def own(name, build):
    path = PROGRAMS / name
    if not path.exists():
        sys.exit(f"{path}: found no program, expected it to be built: {build}")
    return path


def run(command):
    """Standard output, wall seconds and the most resident bytes of a command."""
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=errors)
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            errors.seek(0)
            sys.exit(f"{shlex.join(map(str, command))}\nended with {child.returncode}:\n{errors.read().decode(errors='replace')[-2000:]}")
        return output.decode(), wall, 1024 * usage.ru_maxrss


def gguf_tensors(path):
    """Bytes of every tensor of a GGUF file, padding included, by name."""
    with open(path, "rb") as file:
        def number(kind):
            return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]

        def text():
            return file.read(number("Q")).decode()

        def skip(kind):
            if kind == 8:
                text()
            elif kind == 9:
                element, count = number("I"), number("Q")
                for _ in range(count):
                    skip(element)
            else:
                file.read({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind])

        assert file.read(4) == b"GGUF", path
        number("I")
        tensors, pairs = number("Q"), number("Q")
        for _ in range(pairs):
            text()
            skip(number("I"))
        offsets = {}
        for _ in range(tensors):
            name = text()
            for _ in range(number("I")):
                number("Q")
            number("I")
            offsets[name] = number("Q")
        start = -(-file.tell() // 32) * 32
    end = pathlib.Path(path).stat().st_size - start
    order = sorted(offsets, key=offsets.get)
    ends = [offsets[name] for name in order[1:]] + [end]
    return {name: after - offsets[name] for name, after in zip(order, ends)}


class Ours:
    """`uc bench` with some settings."""

    def __init__(self, pack, setting, options):
        self.pack, self.setting, self.options = pack, shlex.split(setting), options
        self.name = " ".join(["uc", *self.setting])
        self.reports = []

    def command(self, threads, first):
        verify = [] if first else ["--no-verify"]
        return [PROGRAMS / "uc", "-q", "bench", self.pack, "--json", "--threads", threads, "--prompts", self.options.prompt,
                "--batches", self.options.batches, "-n", self.options.tokens, "--runs", 1, "--cache", "f16", *verify, *self.setting]

    def measure(self, threads, first):
        report = json.loads(run(self.command(threads, first))[0])
        self.reports.append(report)
        batches = {entry["batch"]: entry for entry in report["generation"]}
        return {
            "generation_tokens_per_second": batches[1]["tokens_per_second"]["median"],
            "prompt_tokens_per_second": report["prompts"][0]["tokens_per_second"]["median"],
            **{f"generation_tokens_per_second_batch_{n}": e["tokens_per_second"]["median"] for n, e in batches.items() if n > 1},
            "load_seconds": report["load"]["unverified_seconds"],
            "load_verified_seconds": report["load"]["verified_seconds"],
            "peak_resident_bytes": report["memory"]["peak_resident_bytes"],
            "resident_bytes": report["memory"]["resident_bytes"],
            "bandwidth": report["bandwidth"]["bytes_per_second"],
            "plain_bandwidth": report["plain_bandwidth"]["bytes_per_second"],
        }

    def about(self):
        report = self.reports[0]
        return {"settings": report["settings"], "memory": report["memory"], "weights_read": report["weights_read"],
                "version": report["program"]["version"], "bytes_on_disk": report["pack"]["bytes"]}

    def read_per_token(self):
        return self.reports[0]["weights_read"]["total_bytes"]


class Llama:
    """`llama-bench` on a file."""

    def __init__(self, file, kind, options):
        self.file, self.options = file, options
        self.name = f"llama.cpp {kind}"
        self.build = None

    def command(self, threads, *more):
        return [self.options.llama_bench, "-m", self.file, "-t", threads, "-r", 1, "-o", "json", *more]

    def measure(self, threads, first):
        work = ["-p", self.options.prompt, "-n", self.options.tokens]
        output, _, resident = run(self.command(threads, *work))
        tests = json.loads(output)
        rate = {(test["n_prompt"] > 0): test["avg_ts"] for test in tests}
        self.build = tests[0]
        output, wall, _ = run(self.command(threads, "-p", 0, "-n", 1, "--no-warmup"))
        token = json.loads(output)[0]["avg_ns"] / 1e9
        return {
            "generation_tokens_per_second": rate[False],
            "prompt_tokens_per_second": rate[True],
            "load_seconds": wall - token,
            "peak_resident_bytes": resident,
        }

    def about(self):
        names = ["build_commit", "build_number", "cpu_info", "backends", "type_k", "n_batch", "n_ubatch", "flash_attn", "model_size",
                 "model_n_params", "model_type"]
        return {"version": self.options.llama_version, **{name: self.build[name] for name in names if name in self.build},
                "bytes_on_disk": self.file.stat().st_size, "weights_read": {"total_bytes": self.read_per_token()}}

    def read_per_token(self):
        tensors = gguf_tensors(self.file)
        unread = tensors.get("token_embd.weight", 0) if "output.weight" in tensors else 0
        return sum(tensors.values()) - unread


def files_of(pack, folder, options):
    """The GGUF files of a pack, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{kind}.gguf" for kind in options.kinds}
    if all(file.exists() for file in files.values()):
        return files
    exported = folder / "export"
    run([PROGRAMS / "uc", "-q", "export", pack, "--to", "gguf", "--out", exported, "--force"])
    source = next(exported.glob("*.gguf"))
    for kind, file in files.items():
        partial = file.with_suffix(".partial")
        run([options.llama_quantize, source, partial, kind, os.cpu_count()])
        partial.rename(file)
    shutil.rmtree(exported)
    return files


def measure(name, pack, options):
    """All rounds of a model; its receipt."""
    files = files_of(pack, options.scratch / f"{name}-gguf", options)
    ours = [Ours(pack, setting, options) for setting in options.setting]
    contenders = ours + [Llama(file, kind, options) for kind, file in files.items()]
    rounds = {(c.name, threads): [] for threads in options.threads for c in contenders}
    for index in range(options.rounds):
        for threads in options.threads:
            for contender in contenders:
                found = contender.measure(threads, index == 0)
                rounds[contender.name, threads].append(found)
                print(f"{name}, round {index + 1}, {threads} threads, {contender.name}: "
                      f"{found['generation_tokens_per_second']:.2f} tokens/s, prompt {found['prompt_tokens_per_second']:.1f}", flush=True)
    threads = {count: summary(contenders, ours, rounds, count) for count in options.threads}
    shown = {str(pack): "PACK", **{str(c.file): c.file.name for c in contenders if isinstance(c, Llama)},
             str(PROGRAMS / "uc"): "uc", str(options.llama_bench): "llama-bench"}
    commands = [[shown.get(str(part), str(part)) for part in c.command(options.threads[0], *more)]
                for c, more in [(c, [True]) if c in ours else (c, ["-p", options.prompt, "-n", options.tokens]) for c in contenders]]
    report = ours[0].reports[0]
    return {
        "command": "make bench-runtime",
        "commands": ["uc export PACK --to gguf --out DIR"]
        + [f"llama-quantize DIR/MODEL.gguf {file.name} {kind}" for kind, file in files.items()]
        + [shlex.join(command) for command in commands]
        + ["llama-bench … -p 0 -n 1 --no-warmup (load time)"],
        "model": report["pack"]["model"],
        "fingerprint": report["pack"]["fingerprint"],
        "bits_per_weight_linears": report["pack"]["bits_per_weight_linears"],
        "machine": report["machine"],
        "rounds": options.rounds,
        "prompt_tokens": options.prompt,
        "generated_tokens": options.tokens,
        "contenders": {contender.name: contender.about() for contender in contenders},
        "threads": threads,
    }


def summary(contenders, ours, rounds, threads):
    """Medians and ratios with one number of threads."""
    readings = ["bandwidth", "plain_bandwidth"]
    bandwidths = {reading: max(entry[reading] for contender in ours for entry in rounds[contender.name, threads]) for reading in readings}
    found = {**{f"{reading}_bytes_per_second": most for reading, most in bandwidths.items()}, "contenders": {}, "ratios": {}}
    for contender in contenders:
        entries = rounds[contender.name, threads]
        names = [name for name in entries[0] if name not in readings]
        values = {name: [entry[name] for entry in entries if entry[name] is not None] for name in names}
        entry = {name: {"median": statistics.median(some), "rounds": some} for name, some in values.items() if some}
        rate = entry["generation_tokens_per_second"]["median"]
        for reading, most in bandwidths.items():
            entry[f"share_of_{reading}"] = rate * contender.read_per_token() / most
        for name in names:
            if "_batch_" in name:
                entry[f"{name}_over_batch_1"] = entry[name]["median"] / rate
        found["contenders"][contender.name] = entry
    for own_one in ours:
        ratios = found["ratios"][own_one.name] = {}
        for other in contenders:
            if other in ours:
                continue
            pairs = list(zip(rounds[own_one.name, threads], rounds[other.name, threads]))
            ratios[other.name] = {
                name: statistics.median(ours_[name] / theirs[name] for ours_, theirs in pairs)
                for name in ["generation_tokens_per_second", "prompt_tokens_per_second", "load_seconds", "peak_resident_bytes"]
            }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = sorted(path.stem for path in CONFIGS.glob("*.json"))
    parser.add_argument("--pack", type=pathlib.Path, required=True, help="a real pack of a Llama-shaped model")
    parser.add_argument("--models", nargs="+", choices=["pack", *shapes], default=["pack", *shapes])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--setting", action="append", help="options of `uc bench`; repeatable, one contender each [default: none]")
    parser.add_argument("--suffix", default="", help="end of the receipt's name, for another class of machine [default: none]")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder where packs and files are kept for the next time")
    parser.add_argument("--llama-bench")
    parser.add_argument("--llama-quantize")
    parser.add_argument("--llama-version", default=os.environ.get("LLAMA_VERSION", "unknown"))
    options = parser.parse_args()
    options.setting = options.setting or [""]
    options.llama_bench = program(options.llama_bench, "LLAMA_BENCH", "llama-bench")
    options.llama_quantize = program(options.llama_quantize, "LLAMA_QUANTIZE", "llama-quantize")
    own("uc", "make setup")
    synthetic = None
    if options.models != ["pack"]:
        synthetic = own("examples/synthetic_pack", "cargo build --release -p uc-examples --example synthetic_pack")
    with tempfile.TemporaryDirectory() as temporary:
        options.scratch = options.scratch or pathlib.Path(temporary)
        for name in options.models:
            pack = options.pack.resolve()
            if name != "pack":
                pack = options.scratch / name
                if not (pack / "manifest.sha256").exists():
                    run([synthetic, options.pack, CONFIGS / f"{name}.json", pack])
                run([PROGRAMS / "uc", "-q", "verify", pack])
            receipt = measure(name, pack, options)
            title = json.loads((pack / "manifest.json").read_text())["source"]["name"] if name == "pack" else name
            path = ROOT / f"docs/benchmarks/runtime-{title}{options.suffix}.json"
            path.write_text(json.dumps(receipt, indent=1) + "\n")
            for count, entry in receipt["threads"].items():
                print(f"{title}, {count} threads: {json.dumps(entry['ratios'])}", flush=True)


if __name__ == "__main__":
    main()
