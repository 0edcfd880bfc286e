"""Load on servers of the OpenAI API: tokens per second and time to the first token, at several numbers of clients.

    python load.py --text TEXT --out RECEIPT.json NAME=http://127.0.0.1:8080 OTHER=http://127.0.0.1:8081

Every point is measured on one server after the other, and all of it --rounds times, so that what else the machine does hits all
alike. The servers run all the time; only one of them is asked. A point is a number of clients and whether the prompts begin
with the same tokens; each client asks --requests times, one after the other. Prompts have 16 to 256 words of TEXT, drawn from a
seed, and no two rounds use the same ones. Only Python's own library is needed.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse

CLIENTS = (1, 4, 16, 64)
PREFIX_WORDS = 150


def ask(address, prompt, tokens):
    """Seconds to the first text and to the end, and the number of generated tokens."""
    where = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=600)
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
    connection.close()
    return first, time.monotonic() - start, usage["completion_tokens"]


def measure(address, clients, prompts, tokens):
    """One point on one server."""
    results, lock = [], threading.Lock()

    def run(own):
        for prompt in own:
            result = ask(address, prompt, tokens)
            with lock:
                results.append(result)

    threads = [threading.Thread(target=run, args=(prompts[client::clients],)) for client in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    assert len(results) == len(prompts), "a client has failed"
    return {"firsts": [first for first, _, _ in results], "tokens": sum(count for _, _, count in results), "seconds": seconds}


def summary(runs):
    firsts = sorted(first for run in runs for first in run["firsts"])
    rates = [run["tokens"] / run["seconds"] for run in runs]
    return {
        "tokens_per_second": round(statistics.median(rates), 2),
        "tokens_per_second_of_each_round": [round(rate, 2) for rate in rates],
        "first_token_seconds_median": round(statistics.median(firsts), 4),
        "first_token_seconds_p95": round(firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))], 4),
        "answers": len(firsts),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("servers", nargs="+", metavar="NAME=ADDRESS")
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2, help="requests of each client in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    servers = dict(server.split("=", 1) for server in args.servers)
    with open(args.text, encoding="utf-8") as file:
        words = file.read(4_000_000).split()
    draw = random.Random(42)
    prefix = " ".join(words[:PREFIX_WORDS])

    def prompt(shared):
        length = draw.randint(16, 256)
        start = draw.randrange(PREFIX_WORDS, len(words) - length)
        own = " ".join(words[start : start + length])
        return f"{prefix} {own}" if shared else own

    points = []
    for clients in args.clients:
        for shared in (False, True):
            runs = {name: [] for name in servers}
            for _ in range(args.rounds):
                prompts = [prompt(shared) for _ in range(clients * args.requests)]
                for name, address in servers.items():
                    runs[name].append(measure(address, clients, prompts, args.tokens))
            point = {"clients": clients, "shared_prefix": shared, "servers": {name: summary(own) for name, own in runs.items()}}
            points.append(point)
            print(json.dumps(point), flush=True)
    settings = {"tokens": args.tokens, "requests": args.requests, "rounds": args.rounds, "prefix_words": PREFIX_WORDS}
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump({"note": args.note, "settings": settings, "points": points}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
