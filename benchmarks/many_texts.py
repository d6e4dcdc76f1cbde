"""Compare this project with transformers and llama.cpp at generating many texts at once.

    pip install torch transformers llama-cpp-python gguf
    python benchmarks/many_texts.py

Programs that are not installed are left out. There are 64 prompts of 5 to 30 tokens, and each is
continued by 40 greedy tokens, with the random 124M weights of peers.py whose text does not repeat
itself. With one or two texts at once, only the first 16 prompts are used. "One by one" is gpt2.py's
generate, for one prompt after the other. The tokens of all other rows are compared with its tokens.
transformers pads prompts on the left; llama.cpp keeps all sequences of a batch in one cache. Both
start a new batch when the last text of the previous batch has ended. peers.py explains the method.

The line below the table says how many sampled texts change if 32 are sampled at once (see
rounding). Writes results/many_texts.md, and the table in docs/speed.md.
"""

import argparse
import random
import sys
from importlib.util import find_spec
from statistics import median

import common
import peers
from common import run_worker, timed

SIZES = 1, 2, 4, 8, 16, 32, 64
N_PROMPTS, N_TOKENS = 64, 40
ONE_BY_ONE = 0  # stands for generate among the numbers of texts at once


def prompts():
    rng = random.Random(0)
    return [rng.choices(range(50_000), k=rng.randrange(5, 31)) for _ in range(N_PROMPTS)]


def batches(texts, size):
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def ours_at_once(texts, params, hparams, size, **sampling):
    from batch import generate_many

    new = [[] for _ in texts]
    options = {"batch_size": size, **sampling}
    for i, id_ in generate_many(texts, params, hparams, N_TOKENS, **options):
        new[i].append(id_)
    return new


def ours_one_by_one(texts, params, hparams, **sampling):
    from gpt2 import generate

    return [list(generate(ids, params, hparams, N_TOKENS, **sampling)) for ids in texts]


# The programs. Each returns a function generate(texts, size), which returns N_TOKENS ids per text.


def our_program(directory):
    hparams, params = peers.load_ours(directory)

    def generate(texts, size):
        if size == ONE_BY_ONE:
            return ours_one_by_one(texts, params, hparams)
        return ours_at_once(texts, params, hparams, size)

    return generate


def transformers_program(directory):
    import torch

    model = peers.load_transformers(directory)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate(texts, size):
        new = []
        for batch in batches(texts, size):
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(text)) + text for text in batch])
            mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in batch])
            out = model.generate(ids, attention_mask=mask, max_new_tokens=N_TOKENS, **options)
            new += out[:, longest:].tolist()
        return new

    return generate


def llama_program(directory):
    import llama_cpp as ll
    import numpy as np

    ll.llama_backend_init()
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, None)
    model_options = ll.llama_model_default_params()
    model = ll.llama_model_load_from_file(f"{directory}/F32.gguf".encode(), model_options)
    n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))

    def decode(context, rows):
        """Run rows of (id, position, sequence, is_last) through the model. Return the likeliest
        next id for each row that is the last of its sequence."""
        batch = ll.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (id_, position, sequence, is_last) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = id_, position, is_last
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if ll.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        ll.llama_batch_free(batch)
        logits = [ll.llama_get_logits_ith(context, i) for i, row in enumerate(rows) if row[3]]
        return [int(np.ctypeslib.as_array(row, (n_vocab,)).argmax()) for row in logits]

    def new_context(size, longest):
        options = ll.llama_context_default_params()
        n_ctx = size * (longest + N_TOKENS + 1)
        options.n_ctx = n_ctx + -n_ctx % (256 * size)
        options.n_batch = options.n_ubatch = max(512, size * longest)
        options.n_seq_max, options.kv_unified = size, False
        options.n_threads = options.n_threads_batch = common.N_THREADS
        return ll.llama_init_from_model(model, options)

    def generate(texts, size):
        context, all_new = new_context(size, max(map(len, texts))), []
        for batch in batches(texts, size):
            ll.llama_memory_clear(ll.llama_get_memory(context), True)
            rows = []
            for sequence, ids in enumerate(batch):
                rows += [(id_, i, sequence, i == len(ids) - 1) for i, id_ in enumerate(ids)]
            new = [[id_] for id_ in decode(context, rows)]
            for step in range(N_TOKENS - 1):
                rows = [
                    (ids[-1], len(prompt) + step, sequence, True)
                    for sequence, (prompt, ids) in enumerate(zip(batch, new))
                ]
                for ids, id_ in zip(new, decode(context, rows)):
                    ids.append(id_)
            all_new += new
        ll.llama_free(context)
        return all_new

    generate.callback = quiet  # llama.cpp may still call it, so it must not be freed
    return generate


PROGRAMS = {
    "this project": (our_program, ()),
    "transformers": (transformers_program, ("torch", "transformers")),
    "llama.cpp F32": (llama_program, ("llama_cpp", "gguf")),
}


def speeds(directory, name, sizes):
    """Return {texts at once: (tokens per second, tokens of each text)}."""
    generate = PROGRAMS[name][0](directory)
    texts, results = prompts(), {}
    generate(texts[:2], 1)
    for size in sizes:
        n = N_PROMPTS if size > 2 else 16
        seconds, tokens = timed(generate, texts[:n], size)
        results[size] = n * N_TOKENS / seconds, tokens
    return results


def rounding(n_rounds=36, size=32):
    """Return a line that says how many sampled texts change when they are sampled together.

    The last digits of a product are rounded differently if it has more rows. This can change the
    choice between two tokens that are almost equally likely.
    """
    hparams, params = peers.load_ours(common.ROOT / "models" / "shakespeare")
    texts, n_different = [[id_] for id_ in range(300, 300 + size)], 0
    for seed in range(n_rounds):
        alone = ours_one_by_one(texts, params, hparams, seed=seed)
        together = ours_at_once(texts, params, hparams, size, seed=seed)
        n_different += sum(a != b for a, b in zip(alone, together))
    return (
        f"With {size} at once, {n_different} of {n_rounds * size:,} sampled texts of {N_TOKENS} "
        "tokens (models/shakespeare) change."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    args = parser.parse_args()
    names = [name for name, (_, modules) in PROGRAMS.items() if all(map(find_spec, modules))]
    speed = {name: {} for name in names}  # {name: {size: [tokens per second in each round]}}
    tokens = {name: {} for name in names}  # {name: {size: tokens of each text}}
    directory = peers.random_model("124M", "varies", names)
    for _ in range(args.rounds):
        for name in names:
            sizes = [ONE_BY_ONE, *SIZES] if name == names[0] else SIZES
            figures = run_worker(__file__, "speeds", directory, name, sizes)
            for size, (per_second, tokens[name][int(size)]) in figures.items():
                speed[name].setdefault(int(size), []).append(per_second)
    expected = tokens[names[0]][ONE_BY_ONE]
    rows = [["one by one", f"{median(speed[names[0]][ONE_BY_ONE]):.1f}", *[""] * len(names[1:])]]
    for size in SIZES:
        row = [size]
        for name in names:
            pairs = list(zip(tokens[name][size], expected))  # as many as both lists have
            n_same = sum(ours == theirs for ours, theirs in pairs)
            row.append(f"{median(speed[name][size]):.1f} ({n_same} of {len(pairs)})")
        rows.append(row)
    lines = [*common.table(["texts at once", *names], rows), "", rounding()]
    common.report("many_texts", lines, peers.PACKAGES)


if __name__ == "__main__":
    common.start(main, speeds)
