"""Speed of many texts at once, by how many: this project, transformers, llama.cpp.

    pip install torch transformers llama-cpp-python gguf matplotlib
    python benchmarks/many_texts.py ../shared/gpt2-vocab

What is installed takes part. 64 prompts of 5 to 30 tokens, 40 tokens each, greedy, prompts
included, with 124M's shape and random weights whose text never repeats itself (--long: prompts of
10 to 200). "one by one" is gpt2.py's generate, a prompt after another; its tokens are what the
others' are compared with. transformers pads the prompts on the left; llama.cpp has all of a
batch's sequences in one cache. Both take the prompts in batches, and start the next one when the
last text of the batch has ended. Methods as in peers.py: a process each, the same number of
threads, rounds in which all take their turn, medians.
Writes results/many_texts.md (many_texts_long.md) and, with matplotlib, a picture of it.
"""

import argparse
import sys
import tempfile
from importlib.util import find_spec
from statistics import median

from common import RESULTS, VOCABULARY, blas_threads, report, run_worker, table, timed, work
from peers import make_model

SIZES = 1, 2, 3, 4, 8, 16, 32, 64
N_PROMPTS, N_TOKENS = 64, 40
METHODS = {"ours": [], "transformers": ["torch", "transformers"], "llama.cpp F32": ["llama_cpp"]}


def prompts(long):
    import numpy as np

    rng = np.random.default_rng(0)
    lengths = rng.integers(*((10, 201) if long else (5, 31)), size=N_PROMPTS)
    return [rng.integers(50_000, size=n).tolist() for n in lengths]


def batches(texts, size):
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def ours(directory, threads):
    import batch
    import gpt2
    from utils import load_encoder_hparams_and_params

    _, hparams, params = load_encoder_hparams_and_params(directory, "")
    hparams["eos_token_ids"] = []

    def generate(texts, size):
        found = [[] for _ in texts]
        if size == 0:
            return [list(gpt2.generate(ids, params, hparams, N_TOKENS)) for ids in texts]
        for i, id_ in batch.generate_many(texts, params, hparams, N_TOKENS, batch_size=size):
            found[i].append(id_)
        return found

    return generate


def transformers(directory, threads):
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()

    def generate(texts, size):
        found = []
        for some in batches(texts, size):
            longest = max(map(len, some))
            ids = torch.tensor([[0] * (longest - len(text)) + text for text in some])
            mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in some])
            options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            out = model.generate(ids, attention_mask=mask, max_new_tokens=N_TOKENS, **options)
            found += out[:, longest:].tolist()
        return found

    return generate


def llama(directory, threads):
    import llama_cpp as ll
    import numpy as np

    ll.llama_backend_init()
    quiet = ll.llama_log_callback(lambda *_: None)  # has to outlive all calls
    ll.llama_log_set(quiet, None)
    options = ll.llama_model_default_params()
    model = ll.llama_model_load_from_file(f"{directory}/F32.gguf".encode(), options)
    n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))

    def decode(context, rows):
        """rows: (id, position, sequence, whether its logits are wanted) -> the best ids of those"""
        batch = ll.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (id_, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = id_, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if ll.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        ll.llama_batch_free(batch)
        wanted = (i for i, row in enumerate(rows) if row[3])
        logits = (ll.llama_get_logits_ith(context, i) for i in wanted)
        return [int(np.ctypeslib.as_array(row, (n_vocab,)).argmax()) for row in logits]

    def generate(texts, size):
        found = []
        options = ll.llama_context_default_params()
        options.n_ctx = size * (max(map(len, texts)) + N_TOKENS + 1)
        options.n_ctx += -options.n_ctx % (256 * size)
        options.n_batch = options.n_ubatch = max(512, size * max(map(len, texts)))
        options.n_seq_max, options.kv_unified = size, False
        options.n_threads = options.n_threads_batch = threads
        context = ll.llama_init_from_model(model, options)
        for some in batches(texts, size):
            ll.llama_memory_clear(ll.llama_get_memory(context), True)
            rows = [
                (id_, i, sequence, i == len(ids) - 1)
                for sequence, ids in enumerate(some)
                for i, id_ in enumerate(ids)
            ]
            new = [[id_] for id_ in decode(context, rows)]
            for step in range(N_TOKENS - 1):
                places = enumerate(zip(some, new))
                rows = [(out[-1], len(ids) + step, i, True) for i, (ids, out) in places]
                for out, id_ in zip(new, decode(context, rows)):
                    out.append(id_)
            found += new
        ll.llama_free(context)
        return found

    generate.kept = quiet
    return generate


def speed(directory, method, sizes, long, threads):
    """-> {texts at once: [tokens a second, the tokens]}; 0 is one by one."""
    generate = {"ours": ours, "transformers": transformers, "llama.cpp F32": llama}[method](
        directory, threads
    )
    texts, found = prompts(long), {}
    generate(texts[:2], 1)
    for size in sizes:
        n = N_PROMPTS if size > 3 else 16  # slow ones by fewer prompts, of the same lengths
        seconds, tokens = timed(generate, texts[:n], size)
        found[size] = n * N_TOKENS / seconds, tokens
    return found


def show(speeds, same, path):
    """A table, and the same as a picture."""
    head = ["texts at once", *speeds]
    rows = []
    for size in [0, *SIZES]:
        row = [size or "one by one"]
        for name, columns in speeds.items():
            found = columns.get(size)
            equal = f" ({same[name][size]})" if found and size else ""
            row.append(f"{median(found):.1f}{equal}" if found else "")
        rows.append(row)
    if find_spec("matplotlib"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        fig, ax = plt.subplots(figsize=(7, 4))
        for name, columns in speeds.items():
            ax.plot(SIZES, [median(columns[size]) for size in SIZES], marker="o", label=name)
        ax.axhline(median(speeds["ours"][0]), color="gray", linestyle="--", label="one by one")
        ax.set(xscale="log", yscale="log", xlabel="texts at once", ylabel="tokens a second")
        ax.set_xticks(SIZES, map(str, SIZES))
        ax.set_yticks((50, 100, 200, 400), ("50", "100", "200", "400"))
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        fig.tight_layout()
        fig.savefig(path, dpi=110)
    return table(head, rows)


def verdict(speeds):
    """The goals of many texts, each with what was measured."""
    mine = {size: median(found) for size, found in speeds["ours"].items()}
    lines = [f"goal: 5 times one by one: {max(mine.values()) / mine[0]:.2f} times"]
    worst = min((mine[size] / mine[0], size) for size in (2, 3))
    lines.append(f"goal: 2 and 3 texts never slower than one by one: {worst[0]:.2f} times")
    for name, columns in speeds.items():
        if name != "ours":
            ratio, size = min((mine[n] / median(columns[n]), n) for n in SIZES if 1 < n <= 32)
            lines.append(f"goal: ahead of {name}: at worst {ratio:.2f} times, at {size} texts")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("vocabulary", nargs="?", default=VOCABULARY)
    parser.add_argument("--models", help="made before: holds 124M-wanders with F32.gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--long", action="store_true")
    args = parser.parse_args()
    names = [name for name, modules in METHODS.items() if all(map(find_spec, modules))]
    speeds, same = {name: {} for name in names}, {name: {} for name in names}
    with tempfile.TemporaryDirectory() as made:
        directory = f"{args.models or made}/124M-wanders"
        if not args.models:
            make_model(directory, "124M", "wanders", args.vocabulary, ["F32"])
        for _ in range(args.rounds):
            for name in names:
                sizes = [0, *SIZES] if name == "ours" else SIZES
                job = "speed", directory, name, sizes, args.long, args.threads
                found = run_worker(__file__, *job, env=blas_threads(args.threads))
                for size, (rate, tokens) in found.items():
                    speeds[name].setdefault(int(size), []).append(rate)
                    expected = expected if name != "ours" or int(size) else tokens  # noqa: F821
                    pairs = list(zip(tokens, expected))  # of the prompts that both have done
                    n = sum(mine == other for mine, other in pairs)
                    same[name][int(size)] = f"{n} of {len(pairs)} same"
                print(name, {k: round(v[0], 1) for k, v in found.items()}, file=sys.stderr)
    name = "many_texts_long" if args.long else "many_texts"
    lines = show(speeds, same, RESULTS / f"{name}.png")
    packages = "numpy", "torch", "transformers", "llama-cpp-python"
    report(name, [*lines, "", *verdict(speeds)], packages, args.threads)


if __name__ == "__main__":
    work(speed) if "--worker" in sys.argv else main()
