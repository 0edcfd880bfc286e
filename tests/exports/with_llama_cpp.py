"""Compares a GGUF export with the safetensors export of the same pack: llama.cpp against transformers.

Needs: pip install torch transformers tokenizers safetensors numpy; llama-cpp-python, built from its source distribution:
CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --no-binary llama-cpp-python llama-cpp-python
Usage: python3 tests/exports/with_llama_cpp.py SAFETENSORS GGUF TYPE [--tokenizer-only]
SAFETENSORS and GGUF are folders of exports, TYPE is the type of GGUF. llama.cpp loads the file; it must give the same tokens as
the tokenizers library for the texts below, and, for the first tokens of a text, the same logits within the rounding of the type
and the same greedy continuation as transformers in float32. A token on which transformers itself is undecided within that
rounding ends the comparison of the continuation. Exits with 1 if they disagree.
"""
import ctypes
import json
import pathlib
import sys

import llama_cpp
import numpy as np

# Largest difference of logits relative to their standard deviation. llama.cpp rounds activations to the type of the matrix.
TOLERANCE = {"f32": 2e-3, "f16": 2e-2, "bf16": 1e-1, "q8_0": 2e-1}
CONTINUATION = 24
TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "Hello world! I'm sure you'll like it; they've said so.",
    " leading space, trailing space ",
    "line one\nline two\n\n  indented\ttab",
    "Numbers: 3.14159, 1234567890, 2026-11-29.",
    "Mixed: café, naïve, Größe, 東京, привет, 🙂 emoji.",
    "def f(x):\n    return x ** 2  # square\n",
    "",
    "a",
    "    ",
    "runs" + " " * 5 + "of" + " " * 17 + "spaces" + " " * 40 + "and ------------------------ signs ====",
]


def load(path, only_vocabulary=False):
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = only_vocabulary
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    return model


def tokens(model, text, special):
    data = text.encode()
    vocab = llama_cpp.llama_model_get_vocab(model)
    room = len(data) + 16
    buffer = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, room, special, True)
    return list(buffer[:count])


def check_tokens(model, folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    failed = False
    texts = list(TEXTS)
    added = tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    if special:
        texts.append(f"before{special[0]}after {special[-1]} end")
    for text in texts:
        for with_special in [True, False]:
            expected = tokenizer.encode(text, add_special_tokens=with_special).ids
            found = tokens(model, text, with_special)
            if found != expected:
                failed = True
                print(f"tokens of {text!r}: llama.cpp {found}, tokenizers {expected}")
    if not failed:
        print(f"tokens: equal for {len(texts)} texts")
    return failed


def llama_logits(model, ids, vocab_size):
    """Logits after each of the ids, [tokens, vocabulary]."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, at, 1
        batch.seq_id[at][0], batch.logits[at] = 0, True
    if llama_cpp.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp does not decode")
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, at), (vocab_size,)).copy() for at in range(len(ids))]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return np.stack(rows)


def check_logits(model, folder, kind):
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager").eval()

    def expected(ids):
        with torch.no_grad():
            return reference(torch.tensor([ids]), use_cache=False).logits[0].numpy()

    ids = [token for token in tokens(model, TEXTS[0], True) if token >= 0][:16]
    theirs = expected(ids)
    ours = llama_logits(model, ids, theirs.shape[1])
    scale = theirs.std()
    worst = np.abs(ours - theirs).max() / scale
    print(f"logits: largest difference {worst:.2e} of their standard deviation")
    failed = not worst <= TOLERANCE[kind]
    for step in range(CONTINUATION):
        theirs, ours = expected(ids)[-1], llama_logits(model, ids, theirs.shape[-1])[-1]
        first, second = np.sort(theirs)[::-1][:2]
        if ours.argmax() != theirs.argmax():
            if first - second > 2 * TOLERANCE[kind] * scale:
                print(f"greedy: token {step} is {ours.argmax()}, expected {theirs.argmax()}")
                return True
            print(f"greedy: transformers is undecided at token {step}")
            return failed
        ids.append(int(theirs.argmax()))
    print(f"greedy: {CONTINUATION} equal tokens")
    return failed


def main():
    safetensors, gguf, kind = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    silent = llama_cpp.llama_log_callback(lambda level, text, data: sys.stderr.write(text.decode(errors="replace")) if level >= 4 else None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    [path] = gguf.glob("*.gguf")
    only_tokenizer = "--tokenizer-only" in sys.argv
    model = load(path, only_tokenizer)
    failed = check_tokens(model, safetensors)
    if not only_tokenizer:
        failed |= check_logits(model, safetensors, kind)
    return 1 if failed else 0


sys.exit(main())
