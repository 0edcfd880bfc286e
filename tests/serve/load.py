"""`uc serve` beside llama-server under load: tokens per second and time to the first token, at several numbers of clients.

    python load.py --uc UC --pack PACK --llama-server LLAMA_SERVER --gguf Q5_K_M.gguf --text TEXT

Both servers have the same number of slots, context of a slot, threads, and number format of keys and values. They run all the
time; only one of them is asked, and each round asks both of them, so that what else the machine does hits both alike. Everything is
measured without and with reuse of prefixes, with the same requests.

In a round, each client asks some times, one after the other (PLAN). Half of the prompts begin with one of four texts
of 150 words, as those of programs do; then come 8 to 160 words of their own. Answers have 8 to 96 tokens, greedy. No two rounds have
the same requests. Only Python's own library is needed.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# By number of clients: how often each of them asks in a round, and rounds. All of it takes about five minutes with a model of 135 M
# parameters on two cores.
PLAN = {1: (5, 2), 4: (2, 2), 16: (1, 2), 64: (1, 1)}
PREFIXES = 4
PREFIX_WORDS = 150
OWN_WORDS = (8, 160)
ANSWER_TOKENS = (8, 96)
# Mebibytes for what is kept of prompts, where it is kept.
CACHE = 512
PATIENCE = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def uc_command(args, port, reuse):
    return [
        args.uc, "-q", "serve", args.pack, "--port", port, "--parallel", args.slots, "--context", args.context, "--queue", 1024,
        "--threads", args.threads, "--cache", "f16", "--prefix-cache", CACHE if reuse else 0, *args.uc_option,
    ]


def llama_command(args, port, reuse):
    kept = ["--cache-ram", CACHE] if reuse else ["--no-cache-prompt", "--cache-ram", 0]
    return [
        args.llama_server, "-m", args.gguf, "--host", "127.0.0.1", "--port", port, "-np", args.slots, "-c", args.slots * args.context,
        "-t", args.threads, "-tb", args.threads, "-ctk", "f16", "-ctv", "f16", *kept, *args.llama_option,
    ]


class Running:
    """A server that runs."""

    def __init__(self, command, port):
        self.port, self.command = port, [str(word) for word in command]
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                sys.exit(f"found the exit status {self.process.returncode}, expected a server: {' '.join(self.command)}")
            with contextlib.suppress(OSError):
                if self.get("/health")[0] == 200:
                    return
            time.sleep(0.1)
        sys.exit(f"found no answer within {PATIENCE} s, expected a server: {' '.join(self.command)}")

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path)
        reply = connection.getresponse()
        status, body = reply.status, reply.read()
        connection.close()
        return status, body

    def peak_bytes(self):
        lines = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def end(self):
        self.process.terminate()
        self.process.wait()


def ask(port, prompt, tokens):
    """Seconds to the first text and to the end, and the number of generated tokens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = {
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    start = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.status == 200, reply.read()
    first, usage = None, None
    for line in reply:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        assert "error" not in event, event
        usage = event.get("usage") or usage
        if first is None and event["choices"] and event["choices"][0]["text"]:
            first = time.monotonic() - start
    seconds = time.monotonic() - start
    connection.close()
    assert usage["completion_tokens"] == tokens, (usage, tokens)
    return first, seconds, usage


def measure(port, clients, requests):
    """One round on one server."""
    results, lock = [], threading.Lock()

    def run(own):
        for prompt, tokens in own:
            result = ask(port, prompt, tokens)
            with lock:
                results.append(result)

    threads = [threading.Thread(target=run, args=(requests[client::clients],)) for client in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    assert len(results) == len(requests), "a client has failed"
    return {
        "seconds": seconds,
        "firsts": [first for first, _, _ in results],
        "prompt_tokens": sum(usage["prompt_tokens"] for _, _, usage in results),
        "tokens": sum(usage["completion_tokens"] for _, _, usage in results),
    }


def summary(rounds):
    firsts = sorted(first for own in rounds for first in own["firsts"])
    rates = [own["tokens"] / own["seconds"] for own in rounds]
    return {
        "tokens_per_second": round(statistics.median(rates), 2),
        "tokens_per_second_of_each_round": [round(rate, 2) for rate in rates],
        "first_token_seconds_median": round(statistics.median(firsts), 4),
        "first_token_seconds_p95": round(firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))], 4),
        "answers": len(firsts),
        "prompt_tokens": sum(own["prompt_tokens"] for own in rounds),
        "answer_tokens": sum(own["tokens"] for own in rounds),
    }


class Requests:
    """Requests that only depend on their number and a seed."""

    def __init__(self, text, seed):
        self.words, self.draw = text.split(), random.Random(seed)
        self.prefixes = [self.some_words(PREFIX_WORDS) for _ in range(PREFIXES)]

    def some_words(self, count):
        start = self.draw.randrange(len(self.words) - count)
        return " ".join(self.words[start : start + count])

    def next(self):
        own = self.some_words(self.draw.randint(*OWN_WORDS))
        tokens = self.draw.randint(*ANSWER_TOKENS)
        prefix = self.draw.choice(self.prefixes)
        return (f"{prefix} {own}" if self.draw.random() < 0.5 else own), tokens


def points(args, servers, reuse):
    """All numbers of clients, without or with reuse."""
    requests = Requests(pathlib.Path(args.text).read_text(encoding="utf-8")[:4_000_000], 42)
    for server in servers.values():
        # Pages of the weights, first allocations.
        measure(server.port, 1, [("Once upon a time", 8)])
    for clients in args.clients:
        rounds = {name: [] for name in servers}
        each, count = PLAN[clients]
        for number in range(count * args.repeat):
            own = [requests.next() for _ in range(clients * each)]
            # Neither is always the first.
            for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
                rounds[name].append(measure(servers[name].port, clients, own))
        found = {name: summary(own) for name, own in rounds.items()}
        ours, theirs = found["uc"], found["llama-server"]
        point = {
            "clients": clients, "prefix_reuse": reuse, "servers": found,
            "tokens_per_second_ratio": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
            "first_token_median_ratio": round(ours["first_token_seconds_median"] / theirs["first_token_seconds_median"], 3),
            "first_token_p95_ratio": round(ours["first_token_seconds_p95"] / theirs["first_token_seconds_p95"], 3),
        }
        print(json.dumps(point), flush=True)
        yield point


def version(command):
    output = subprocess.run([*command, "--version"], capture_output=True, text=True)
    return (output.stdout + output.stderr).strip().splitlines()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--uc", required=True)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", help="by default docs/benchmarks/serving-MODEL.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024, help="tokens of a slot")
    parser.add_argument("--repeat", type=int, default=1, help="factor of the rounds")
    parser.add_argument("--clients", type=int, nargs="+", default=list(PLAN), choices=list(PLAN))
    parser.add_argument("--reuse", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--uc-option", action="append", default=[])
    parser.add_argument("--llama-option", action="append", default=[])
    args = parser.parse_args()
    # The servers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start, found, commands, peaks = time.monotonic(), [], {}, {}
    for reuse in args.reuse:
        servers = {}
        try:
            for name, command in (("uc", uc_command), ("llama-server", llama_command)):
                port = free_port()
                servers[name] = Running(command(args, port, reuse == "on"), port)
            for server in servers.values():
                server.wait()
            model = json.loads(servers["uc"].get("/v1/models")[1])["data"][0]
            found.extend(points(args, servers, reuse == "on"))
            peaks[reuse] = {name: server.peak_bytes() for name, server in servers.items()}
        finally:
            for server in servers.values():
                server.end()
        shown = {args.uc: "uc", args.pack: "PACK", args.llama_server: "llama-server", args.gguf: pathlib.Path(args.gguf).name}
        commands[reuse] = [
            " ".join("PORT" if word == str(server.port) else shown.get(word, word) for word in server.command)
            for server in servers.values()
        ]
    receipt = {
        "command": "make bench-serving",
        "model": model["id"], "fingerprint": model["fingerprint"],
        "cores": os.cpu_count(),
        "versions": {"uc": version([args.uc]), "llama-server": version([args.llama_server])},
        "commands": commands,
        "requests": {
            "of_each_client_in_a_round": {str(clients): PLAN[clients][0] for clients in args.clients},
            "rounds": {str(clients): PLAN[clients][1] * args.repeat for clients in args.clients},
            "own_words": OWN_WORDS, "answer_tokens": ANSWER_TOKENS, "prefixes": PREFIXES, "prefix_words": PREFIX_WORDS,
            "with_a_prefix": 0.5,
        },
        "points": found, "peak_resident_bytes": peaks, "seconds": round(time.monotonic() - start, 1),
    }
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in model["id"]).lower()
    out = pathlib.Path(args.out or REPOSITORY / f"docs/benchmarks/serving-{name}.json")
    out.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
