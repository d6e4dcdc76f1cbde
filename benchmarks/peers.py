"""Compare speed and memory of this project with transformers, CTranslate2 and llama.cpp.

    pip install torch transformers ctranslate2 llama-cpp-python gguf matplotlib
    python benchmarks/peers.py

Programs that are not installed are left out. The weights are random, in two variants: "repeats" is
initialised as in the GPT-2 paper, and its greedy text soon repeats itself; "varies" has larger
position embeddings, and its greedy text does not. They are kept in benchmarks/weights, in the
formats of the programs that were installed when they were made. $GPT2_SHARED has the vocabulary.

Method: each program runs in its own process, one at a time, and all use the same number of threads.
In each round, every program takes its turn. The tables show medians over the rounds. Speeds do not
include starting, loading, and a warm-up of five tokens. The time for generating includes reading
the prompt of 10 tokens. The time for a prompt ends with the logits after its last token. "Whole
process" is a new Python process that generates 40 tokens: its time from start to end, and its peak
resident memory, including mapped weights. Tokens are compared with those of this project without
drafts. For "reading all weights once", NumPy multiplies one row with every matrix of the model.

Larger sizes are only measured on text that repeats itself. Writes results/peers.md and peers.png,
or results/sizes.md if other sizes are given, and the tables in README.md and docs/speed.md.
"""

import argparse
import itertools
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import common
import numpy as np
from common import N_THREADS, WEIGHTS, blas_threads, run_worker, timed

VARIANTS = {  # {name: (title, standard deviations of the two embeddings)}
    "repeats": ("text that repeats itself", {"wte": 0.02, "wpe": 0.01}),
    "varies": ("text that does not repeat itself", {"wte": 0.08, "wpe": 1.0}),
}
PROMPT = "Alan Turing theorized that computers would one day become"
PROMPT_IDS = [36235, 39141, 18765, 1143, 326, 9061, 561, 530, 1110, 1716]
OURS, PLAIN = "this project", "this project, without drafts"
CT2, LLAMA = ("ctranslate2", "transformers", "tokenizers"), ("llama_cpp", "gguf")
PEERS = {  # {name: the modules that it needs}
    "transformers": ("torch", "transformers"),
    "CTranslate2 float32": CT2,
    "CTranslate2 int8": CT2,
    "llama.cpp F32": LLAMA,
    "llama.cpp F16": LLAMA,
    "llama.cpp Q8_0": LLAMA,
}
PACKAGES = "numpy", "torch", "transformers", "ctranslate2", "llama-cpp-python"
DECODE, PREFILL = (40, 200), (128, 512, 1000)  # numbers of tokens
FORMATS = {  # {column: the format of its figures}
    **{f"tokens/s ({n} tokens)": ".1f" for n in DECODE},
    "same tokens": "",
    **{f"prompt of {n} tokens, ms": ".0f" for n in PREFILL},
    "whole process, s": ".2f",
    "peak memory, MiB": ".0f",
}
SPEED = "tokens/s (200 tokens)"  # the column in the README and in the picture

# Models


def random_model(size, variant, programs):
    """Return the directory of a random model. The first call makes it."""
    directory = common.ROOT / "benchmarks" / "weights" / f"{size}-{variant}"
    if not (directory / "done").exists():
        run_worker(__file__, "make_model", directory, size, variant, programs)
        (directory / "done").touch()
    return directory


def make_model(directory, size, variant, programs):
    """Write random weights as a Hugging Face directory, and in the formats of the programs."""
    from model_files.directory import save_model
    from model_files.vocabulary import read_vocabulary
    from training.run import init_params

    directory, hparams = Path(directory), common.hparams_of(size)
    params = init_params(hparams, np.random.default_rng(0))
    for name, std in VARIANTS[variant][1].items():
        params[name] *= std / params[name].std()
    vocabulary = read_vocabulary(common.VOCABULARY)
    save_model(directory, hparams, params, vocabulary)
    for name in programs:
        program, _, kind = name.partition(" ")
        if program == "llama.cpp":
            write_gguf(directory / f"{kind}.gguf", hparams, params, vocabulary, kind)
        elif program == "CTranslate2":
            from ctranslate2.converters import TransformersConverter

            converter = TransformersConverter(str(directory))
            converter.convert(f"{directory}/{kind}", quantization=kind, force=True)


def write_gguf(path, hparams, params, vocabulary, kind):
    """Write a file for llama.cpp. There, matrices are [out, in], and vectors always float32."""
    import gguf

    from model_files.directory import flatten

    names = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    file_types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    end_of_text = hparams["eos_token_ids"][0]
    tokens = sorted(vocabulary.ids, key=vocabulary.ids.get)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[end_of_text] = gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, "gpt2", use_temp_file=True)
    writer.add_context_length(hparams["n_ctx"])
    writer.add_embedding_length(hparams["n_embd"])
    writer.add_feed_forward_length(4 * hparams["n_embd"])
    writer.add_block_count(hparams["n_layer"])
    writer.add_head_count(hparams["n_head"])
    writer.add_layer_norm_eps(hparams["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text)
    kind = gguf.GGMLQuantizationType[kind]
    for name, x in flatten(params).items():  # h.0.attn.c_attn.weight -> blk.0.attn_qkv.weight
        block, module, leaf = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(\w+)", name).groups()
        prefix = f"blk.{block}." if block else ""
        name = f"{prefix}{names[module]}.{leaf}"
        if x.ndim == 1 or module == "wpe":
            writer.add_tensor(name, x)
        else:
            x = np.ascontiguousarray(x if module == "wte" else x.T)
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# The programs. Each returns two functions: generate(ids, n), which returns n ids; read_prompt(ids).


def load_ours(directory):
    """Return hparams and params of a model. It has no end of text, so it generates all n ids."""
    from utils import load_encoder_hparams_and_params

    _, hparams, params = load_encoder_hparams_and_params(str(directory), "models")
    return {**hparams, "eos_token_ids": []}, params


def load_transformers(directory):
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(N_THREADS)
    torch.set_grad_enabled(False)
    return GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()


def our_program(directory, with_drafts):
    import gpt2
    from fast import Drafts

    hparams, params = load_ours(directory)

    def generate(ids, n):
        drafts = Drafts() if with_drafts else Drafts(0)
        return list(gpt2.generate(ids, params, hparams, n, drafts=drafts))

    return generate, lambda ids: generate(ids, 1)


def transformers_program(directory):
    import torch

    model = load_transformers(directory)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate(ids, n):
        ids = torch.tensor([ids])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=n, **options)
        return out[0, ids.shape[1] :].tolist()

    def read_prompt(ids):
        model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    return generate, read_prompt


def ctranslate2_program(directory, kind):
    import ctranslate2

    model = ctranslate2.Generator(
        f"{directory}/{kind}", compute_type=kind, inter_threads=1, intra_threads=N_THREADS
    )
    tokens = json.loads(Path(directory, "vocab.json").read_text("utf-8"))
    tokens = sorted(tokens, key=tokens.get)

    def generate(ids, n):
        prompt = [tokens[id_] for id_ in ids]
        options = {"max_length": n, "min_length": n, "include_prompt_in_result": False}
        return model.generate_batch([prompt], **options)[0].sequences_ids[0]

    return generate, lambda ids: generate(ids, 1)


def llama_program(directory, kind):
    import llama_cpp

    if kind == "Q8_0":  # Its AMX kernels crash on some processors: see llama.cpp's issue 20824.
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = False
        llama_cpp.llama_cpp.llama_model_default_params = lambda: params
    threads = {"n_threads": N_THREADS, "n_threads_batch": N_THREADS}
    model = llama_cpp.Llama(f"{directory}/{kind}.gguf", n_ctx=1024, verbose=False, **threads)

    def generate(ids, n):
        model.reset()
        return list(itertools.islice(model.generate(ids, temp=0, repeat_penalty=1), n))

    def read_prompt(ids):
        model.reset()
        model.eval(ids)

    return generate, read_prompt


def load(name, directory):
    if name in (OURS, PLAIN):
        return our_program(directory, with_drafts=name == OURS)
    if name == "transformers":
        return transformers_program(directory)
    name, kind = name.split()
    program = {"CTranslate2": ctranslate2_program, "llama.cpp": llama_program}[name]
    return program(directory, kind)


def weights_per_second(directory):
    """Return how often per second NumPy can multiply one row with all matrices of the model."""
    once = common.read_weights(load_ours(directory)[1])
    once()
    return 1 / median(timed(once)[0] for _ in range(20))


def speeds(directory, name, decode, prefill):
    """Return {column: figure} for these numbers of tokens, and the tokens of the longest text."""
    generate, read_prompt = load(name, directory)
    generate(PROMPT_IDS, 5)
    figures = {}
    for n in decode:
        seconds, tokens = timed(generate, PROMPT_IDS, n)
        figures[f"tokens/s ({n} tokens)"] = n / seconds
    long = [i * 7919 % 50000 for i in range(max(prefill, default=0))]
    for n in prefill:
        read_prompt(long[:n])  # the first call also allocates memory
        figures[f"prompt of {n} tokens, ms"] = timed(read_prompt, long[:n])[0] * 1e3
    return figures, tokens


WHOLE = {  # short programs as users write them; arguments: directory, prompt, number of threads
    "transformers": """
import sys, torch
from transformers import AutoTokenizer, GPT2LMHeadModel
torch.set_num_threads(int(sys.argv[3]))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = GPT2LMHeadModel.from_pretrained(sys.argv[1], dtype=torch.float32)
inputs = tokenizer(sys.argv[2], return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=0)
print(tokenizer.decode(out[0][inputs["input_ids"].shape[1]:]))""",
    "CTranslate2": """
import sys, ctranslate2, tokenizers
path = sys.argv[1] + "/"
tokenizer = tokenizers.ByteLevelBPETokenizer(path + "vocab.json", path + "merges.txt")
model = ctranslate2.Generator(path + "KIND", compute_type="KIND", intra_threads=int(sys.argv[3]))
out = model.generate_batch([tokenizer.encode(sys.argv[2]).tokens], max_length=40, sampling_topk=1,
                           include_prompt_in_result=False)
print(tokenizer.decode(out[0].sequences_ids[0]))""",
    "llama.cpp": """
import sys, llama_cpp
if "KIND" == "Q8_0":
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    llama_cpp.llama_cpp.llama_model_default_params = lambda: params
model = llama_cpp.Llama(sys.argv[1] + "/KIND.gguf", n_ctx=1024, verbose=False,
                        n_threads=int(sys.argv[3]), n_threads_batch=int(sys.argv[3]))
out = model.create_completion(sys.argv[2], max_tokens=40, temperature=0, repeat_penalty=1)
print(out["choices"][0]["text"])""",
}


def whole_process(name, directory):
    """Return {column: figure} for a new process that continues the prompt by 40 tokens."""
    if name == OURS:
        command = [common.ROOT / "gpt2.py", PROMPT, "--model_size", directory]
    else:
        program, _, kind = name.partition(" ")
        code = WHOLE[program].replace("KIND", kind)
        command = ["-c", code, directory, PROMPT, N_THREADS]
    seconds, peak, _ = common.run_program([sys.executable, *map(str, command)], env=blas_threads())
    return {"whole process, s": seconds, "peak memory, MiB": peak}


# Measuring and reporting


def measure(directory, names, args, with_prompts):
    """Let all programs take turns in each round. Return a row {column: cell} for each."""
    decode, prefill = ((40,), (128,)) if args.quick else (DECODE, PREFILL)
    results, tokens, weights = {name: {} for name in names}, {}, []
    for _ in range(args.rounds):
        weights.append(run_worker(__file__, "weights_per_second", directory))
        for name in names:
            job = directory, name, decode, prefill if with_prompts else []
            figures, tokens[name] = run_worker(__file__, "speeds", *job)
            if with_prompts and name != PLAIN:  # The command always uses drafts.
                figures |= whole_process(name, directory)
            for column, figure in figures.items():
                results[name].setdefault(column, []).append(figure)
            print(f"  {name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    rows = []
    for name, columns in results.items():
        row = {"": name, "same tokens": agreement(tokens[name], tokens[PLAIN])}
        for column, figures in columns.items():
            row[column] = f"{median(figures):{FORMATS[column]}}"
        rows.append(row)
    speed = f"{median(weights):.1f}"
    rows.append({"": WEIGHTS, **{f"tokens/s ({n} tokens)": speed for n in decode}})
    return rows


def agreement(tokens, expected):
    """Return how many tokens are equal before the first difference, such as "first 16"."""
    n = 0
    while n < len(expected) and tokens[n] == expected[n]:
        n += 1
    if n == len(expected):
        return f"all {n}"
    return f"first {n}" if n > 0 else "none"


def lines_of(tables):
    """Return {title: rows} as the lines of Markdown tables without empty columns."""
    lines = []
    for title, rows in tables.items():
        columns = [name for name in FORMATS if any(name in row for row in rows)]
        cells = [[row[""], *(row.get(name, "") for name in columns)] for row in rows]
        lines += [*common.table([title, *columns], cells), ""]
    return lines[:-1]


def summary(tables):
    """Return the lines of the README's table: some rows and columns of the tables for 124M."""
    repeats, varies = (tables[f"124M, {title}"] for title, _ in VARIANTS.values())
    shown = OURS, PLAIN, "transformers", "llama.cpp F32", "llama.cpp Q8_0", WEIGHTS
    columns = "prompt of 512 tokens, ms", "whole process, s", "peak memory, MiB"
    rows = []
    for row, other in zip(repeats, varies):
        if row[""] in shown:
            last = [row.get(name, "") for name in columns]
            rows.append([row[""], row[SPEED], other[SPEED], *last])
    head = ["GPT-2 124M", "tokens/s, text that repeats itself", "tokens/s, text that does not"]
    head += ["prompt of 512 tokens, ms", "whole process of 40 tokens, s", "peak memory, MiB"]
    return common.table(head, rows)


def picture(path, tables):
    """Draw a panel for each table, with a bar for each program's speed at 200 tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = 8, 0.7 + 3 * len(tables)
    fig, axes = plt.subplots(len(tables), figsize=size, squeeze=False, sharex=True)
    for ax, (title, rows) in zip(axes[:, 0], tables.items()):
        speeds = {row[""]: float(row[SPEED]) for row in rows[::-1]}
        ax.axvline(speeds.pop(WEIGHTS), color="tab:red", linestyle="--")
        colors = ["tab:blue" if name in (OURS, PLAIN) else "tab:gray" for name in speeds]
        bars = ax.barh(list(speeds), list(speeds.values()), color=colors)
        for label in ax.bar_label(bars, fmt="%.3g", padding=3):
            label.set_bbox({"color": "white", "pad": 1})
        ax.set_title(f"{title}: 200 greedy tokens")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(f"tokens per second; dashed: {WEIGHTS} for each token (float32)")
    fig.tight_layout()
    fig.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sizes", default="124M", help=f"any of {','.join(common.SIZES)} (124M)")
    add("--peers", default=",".join(PEERS), help=f"any of {','.join(PEERS)} (all)")
    add("--rounds", type=int, default=5, help="(5)")
    add("--quick", action="store_true", help="one round, fewer figures, and no file is written")
    args = parser.parse_args()
    chosen = [name for name in args.peers.split(",") if name and all(map(find_spec, PEERS[name]))]
    programs, tables = [OURS, PLAIN, *chosen], {}
    is_small = args.sizes == "124M"
    args.rounds = 1 if args.quick else args.rounds
    for size, variant in itertools.product(args.sizes.split(","), VARIANTS):
        if variant == "repeats" or is_small:
            title = f"{size}, {VARIANTS[variant][0]}"
            print(title, file=sys.stderr, flush=True)
            directory = random_model(size, variant, programs)
            tables[title] = measure(directory, programs, args, variant == "repeats")
    name = "peers" if is_small else "sizes"
    common.report(name, lines_of(tables), PACKAGES, write=not args.quick)
    if is_small and not args.quick:
        common.fill("readme", summary(tables))
        if find_spec("matplotlib"):
            picture(common.RESULTS / "peers.png", tables)


if __name__ == "__main__":
    common.start(main, make_model, weights_per_second, speeds)
