"""Speed and memory of this project beside transformers, CTranslate2 and llama.cpp.

    pip install torch transformers ctranslate2 llama-cpp-python gguf matplotlib
    python benchmarks/peers.py ../shared/gpt2-vocab

What is installed takes part. The directory holds GPT-2's vocab.json and merges.txt; the weights are
random, in two variants: "repeats" as the paper initialises them, whose greedy text soon repeats
itself as GPT-2's does, and "wanders" with larger embeddings of the position, whose text never does.

Method. Every method runs in a process of its own with the same number of threads, one at a time;
in each round all methods take their turn, and what is reported is the median over the rounds.
Weights lie in the file cache. Not counted in speeds: starting, loading, and a warm-up of one
prompt and five tokens. Decoding counts from the call to the last token, the prompt's 10 tokens
included. Prefill is the prompt up to the logits of its last position. Whole process is wall time
and peak resident memory (mapped weights included) of a fresh interpreter that completes a text by
40 tokens. Tokens are compared with plain NumPy's. The floor is the time of the products of one
row with every matrix of the model alone, by NumPy.
Writes results/NAME.md and results/NAME.png.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from common import (
    RESULTS,
    ROOT,
    SIZES,
    VOCABULARY,
    blas_threads,
    hparams_of,
    one_row,
    report,
    run_worker,
    table,
    timed,
    work,
)
from goals import of_peers

VARIANTS = {"repeats": {"wte": 0.02, "wpe": 0.01}, "wanders": {"wte": 0.08, "wpe": 1.0}}
PROMPT = "Alan Turing theorized that computers would one day become"
PROMPT_IDS = [36235, 39141, 18765, 1143, 326, 9061, 561, 530, 1110, 1716]
DECODE, PREFILL = (40, 200), (128, 512, 1000)
CT2, LLAMA = ("ctranslate2", "transformers", "tokenizers"), ("llama_cpp", "gguf")
PEERS = {
    "transformers": ("torch", "transformers"),
    "CTranslate2 float32": CT2,
    "CTranslate2 int8": CT2,
    "llama.cpp F32": LLAMA,
    "llama.cpp F16": LLAMA,
    "llama.cpp Q8_0": LLAMA,
}  # name -> the modules it needs
OURS = {"NumPy plain": {"longest": 0}, "NumPy": {}}  # name -> options of Drafts


# Models


def make_model(directory, size, variant, vocabulary, kinds):
    """Write a model of random weights as a Hugging Face directory, and as these kinds of GGUF."""
    import numpy as np

    from model_files.directory import save_model
    from model_files.vocabulary import read_vocabulary
    from training_run import init_params

    directory, hparams = Path(directory), hparams_of(size)
    params = init_params(hparams, np.random.default_rng(0))
    for name, std in VARIANTS[variant].items():
        params[name] *= std / params[name].std()
    vocabulary = read_vocabulary(vocabulary)
    save_model(directory, hparams, params, vocabulary)
    for kind in kinds:
        write_gguf(directory / f"{kind}.gguf", hparams, params, vocabulary, kind)


def convert(directory, kinds):
    """Write the model once more, for CTranslate2."""
    from ctranslate2.converters import TransformersConverter

    for kind in kinds:
        TransformersConverter(directory).convert(f"{directory}/{kind}", quantization=kind)


def write_gguf(path, hparams, params, vocabulary, kind):
    """llama.cpp's file of the same weights; its matrices are [out, in], and its vectors float32."""
    import gguf
    import numpy as np

    from model_files.added_tokens import END_OF_TEXT
    from model_files.parameters import flatten

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
    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "gpt2", use_temp_file=True)
    writer.add_context_length(hparams["n_ctx"])
    writer.add_embedding_length(hparams["n_embd"])
    writer.add_feed_forward_length(4 * hparams["n_embd"])
    writer.add_block_count(hparams["n_layer"])
    writer.add_head_count(hparams["n_head"])
    writer.add_layer_norm_eps(hparams["layer_norm_epsilon"])
    file_types = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[kind.name]])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(vocabulary.ids, key=vocabulary.ids.get)
    plain, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_list(tokens)
    writer.add_token_types([control if token == END_OF_TEXT else plain for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(hparams["eos_token_ids"][0])
    writer.add_eos_token_id(hparams["eos_token_ids"][0])
    for name, x in flatten(params).items():  # h.0.attn.c_attn.weight -> blk.0.attn_qkv.weight
        block, module, leaf = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(\w+)", name).groups()
        name = (f"blk.{block}." if block else "") + f"{names[module]}.{leaf}"
        if x.ndim == 1 or module == "wpe":
            writer.add_tensor(name, x)
        else:
            x = np.ascontiguousarray(x if module == "wte" else x.T)
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Methods: each returns generate(ids, n) -> list of n ids and prefill(ids), and whatever else


def numpy_method(directory, options):
    import gpt2
    from utils import load_encoder_hparams_and_params

    _, hparams, params = load_encoder_hparams_and_params(directory, "")
    hparams["eos_token_ids"] = []  # the text goes on
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}

    def generate(ids, n):
        return list(gpt2.generate(ids, params, hparams, n, drafts=gpt2.Drafts(**options)))

    def prefill(ids):
        cache = gpt2.new_cache(len(ids), **hparams)
        gpt2.gpt2(ids, **model, cache=cache, n_logits=1)

    return generate, prefill


def transformers_method(directory, threads):
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()

    def generate(ids, n):
        ids = torch.tensor([ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[0, ids.shape[1] :].tolist()

    def prefill(ids):
        model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    return generate, prefill


def ctranslate2_method(directory, kind, threads):
    import ctranslate2

    model = ctranslate2.Generator(
        f"{directory}/{kind}", compute_type=kind, inter_threads=1, intra_threads=threads
    )
    tokens = json.loads(Path(directory, "vocab.json").read_text("utf-8"))
    tokens = sorted(tokens, key=tokens.get)

    def generate(ids, n):
        out = model.generate_batch(
            [[tokens[i] for i in ids]],
            max_length=n,
            min_length=n,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return out[0].sequences_ids[0]

    def prefill(ids):
        generate(ids, 1)

    return generate, prefill


def llama_method(directory, kind, threads):
    import llama_cpp

    if kind == "Q8_0":  # its AMX kernels crash on some processors: llama.cpp's issue 20824
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = False
        llama_cpp.llama_cpp.llama_model_default_params = lambda: params
    model = llama_cpp.Llama(
        f"{directory}/{kind}.gguf",
        n_ctx=1024,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def generate(ids, n):
        model.reset()
        return list(itertools.islice(model.generate(ids, temp=0, repeat_penalty=1), n))

    def prefill(ids):
        model.reset()
        model.eval(ids)

    return generate, prefill


def build(method, directory, threads):
    if method in OURS:
        return numpy_method(directory, OURS[method])
    name, _, kind = method.partition(" ")
    if name == "transformers":
        return transformers_method(directory, threads)
    return {"CTranslate2": ctranslate2_method, "llama.cpp": llama_method}[name](
        directory, kind, threads
    )


def floor(directory):
    """Seconds that the products of one row with every matrix of the model take."""
    from utils import load_encoder_hparams_and_params

    once = one_row(load_encoder_hparams_and_params(directory, "")[2])
    once()
    return median(timed(once)[0] for _ in range(20))


def speeds(directory, method, threads, decode, prefill_lengths):
    """-> seconds for each number of tokens generated and read, and the last tokens generated."""
    generate, prefill = build(method, directory, threads)
    generate(PROMPT_IDS, 5)
    result = {"decode": {}, "prefill": {}}
    for n in decode:
        result["decode"][n], result["tokens"] = timed(generate, PROMPT_IDS, n)
    long = [i * 7919 % 50000 for i in range(max(prefill_lengths, default=0))]
    for n in prefill_lengths:
        prefill(long[:n])  # the first time, memory is given out
        result["prefill"][n], _ = timed(prefill, long[:n])
    return result


WHOLE = {  # programs as their users would write them: directory, prompt, threads -> text
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


def whole_process(method, directory, threads, env):
    """-> seconds and peak MiB of a fresh interpreter that completes the prompt by 40 tokens."""
    if method in OURS:
        command = [sys.executable, str(ROOT / "gpt2.py"), PROMPT, "--model_size", str(directory)]
    else:
        name, _, kind = method.partition(" ")
        code = WHOLE[name].replace("KIND", kind)
        command = [sys.executable, "-c", code, str(directory), PROMPT, str(threads)]

    def complete():
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, env=env, stdout=null, stderr=null)
        return process, *os.wait4(process.pid, 0)[1:]

    seconds, (process, status, usage) = timed(complete)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{method}: the whole process failed: {command[:2]}")
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# Measurement


def methods(chosen):
    """-> names of what is chosen and installed; always the first, which all are compared with."""
    names = list(OURS)
    names += [name for name, modules in PEERS.items() if all(map(find_spec, modules))]
    return [name for name in names if name == names[0] or name in chosen or not chosen]


def measure(directory, args, with_prefill):
    """All methods in turn, in rounds -> {method: {"decode": {n: [...]}, ...}}, seconds of floor."""
    env, prefill = blas_threads(args.threads), args.prefill if with_prefill else []
    results = {name: {"decode": {}, "prefill": {}, "whole": []} for name in methods(args.methods)}
    floors = []
    for _ in range(args.rounds):
        floors.append(run_worker(__file__, "floor", directory, env=env))
        for method in results:
            job = "speeds", directory, method, args.threads, args.decode, prefill
            new = run_worker(__file__, *job, env=env)
            for kind in ("decode", "prefill"):
                for n, seconds in new[kind].items():
                    results[method][kind].setdefault(int(n), []).append(seconds)
            results[method]["tokens"] = new["tokens"]
            if with_prefill:
                results[method]["whole"].append(whole_process(method, directory, args.threads, env))
            print(
                f"  {method}: {json.dumps({k: new[k] for k in ('decode', 'prefill')})}",
                file=sys.stderr,
                flush=True,
            )
    return results, median(floors)


# Report


def agreement(tokens, expected):
    """How far two lists agree: "same 200", or "differ at 17"."""
    for i, (a, b) in enumerate(zip(tokens, expected)):
        if a != b:
            return f"differ at {i + 1}"
    return f"same {len(tokens)}"


def speed_table(results, floor_seconds, args):
    """Markdown: medians, and in brackets the speed as a multiple of plain NumPy's."""
    plain = results["NumPy plain"]
    head = [*(f"tok/s, {n}" for n in args.decode), f"tokens of {args.decode[-1]}"]
    if plain["prefill"]:
        head += [*(f"prefill ms, {n}" for n in args.prefill), "whole s", "peak MiB"]
    rows = []
    for method, r in results.items():
        row = [method]
        for n in args.decode:
            speed = n / median(r["decode"][n])
            row.append(f"{speed:.1f} ({speed * median(plain['decode'][n]) / n:.2f})")
        row.append(agreement(r["tokens"], plain["tokens"]))
        for n in args.prefill if plain["prefill"] else []:
            ms = median(r["prefill"][n]) * 1e3
            row.append(f"{ms:.0f} ({median(plain['prefill'][n]) * 1e3 / ms:.2f})")
        if r["whole"]:
            seconds, peak = (median(column) for column in zip(*r["whole"]))
            base = median(seconds for seconds, _ in plain["whole"])
            row += [f"{seconds:.2f} ({base / seconds:.2f})", f"{peak:.0f}"]
        rows.append(row)
    speed = f"{1 / floor_seconds:.1f}"
    rows.append(["floor", *(speed if name.startswith("tok/s") else "" for name in head)])
    return table(["", *head], rows)


def picture(path, measured, n):
    """Bars of decoding speed for each method, a panel for each model; the floor is a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(
        len(measured), figsize=(8, 0.7 + 3 * len(measured)), squeeze=False, sharex=True
    )
    for ax, (title, (results, floor_seconds)) in zip(axes[:, 0], measured.items()):
        names = list(results)[::-1]
        speeds = [n / median(results[name]["decode"][n]) for name in names]
        bars = ax.barh(
            names, speeds, color=["tab:blue" if name in OURS else "tab:gray" for name in names]
        )
        ax.axvline(1 / floor_seconds, color="tab:red", linestyle="--")
        for label in ax.bar_label(bars, fmt="%.3g", padding=3):
            label.set_bbox({"color": "white", "pad": 1})
        ax.set_title(f"{title}: {n} greedy tokens")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("tokens a second; dashed: float32 weights read once a token")
    fig.tight_layout()
    fig.savefig(path, dpi=120)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return work(make_model, convert, floor, speeds)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "vocabulary",
        nargs="?",
        default=VOCABULARY,
        type=Path,
        help="directory of GPT-2's vocab.json and merges.txt",
    )
    parser.add_argument("--sizes", default="124M", help=f"of {', '.join(SIZES)} (124M)")
    parser.add_argument("--variants", default="repeats,wanders", help="of the weights")
    parser.add_argument(
        "--methods",
        default=[],
        type=lambda text: text.split(","),
        help=f"of {', '.join([*OURS, *PEERS])} (all)",
    )
    parser.add_argument("--models", type=Path, help="keep the models here (a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="peers", help="of the results' files (peers)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="one round, less of each; prints and writes no file"
    )
    args = parser.parse_args()
    args.decode, args.prefill = ((40,), (128,)) if args.quick else (DECODE, PREFILL)
    args.rounds = 1 if args.quick else args.rounds
    measured, verdicts = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        for size in args.sizes.split(","):
            for variant in args.variants.split(","):
                directory = (args.models or Path(temporary)) / f"{size}-{variant}"
                if not (directory / "model.safetensors").is_file():
                    kinds = {"llama.cpp": [], "CTranslate2": []}
                    for method in methods(args.methods):
                        name, _, kind = method.partition(" ")
                        kinds.get(name, []).append(kind)
                    job = "make_model", directory, size, variant, args.vocabulary
                    run_worker(__file__, *job, kinds["llama.cpp"])
                    if kinds["CTranslate2"]:
                        run_worker(__file__, "convert", directory, kinds["CTranslate2"])
                print(f"{size}, {variant}", file=sys.stderr, flush=True)
                title, first = f"{size}, {variant}", variant == args.variants.split(",")[0]
                measured[title] = measure(directory, args, with_prefill=first)
                weights = (directory / "model.safetensors").stat().st_size / 2**20
                verdicts += [*of_peers(title, measured[title][0], weights), ""]
    lines = [
        "Medians; in brackets the speed relative to plain NumPy. benchmarks/peers.py gives "
        "the method.",
        "",
    ]
    for title, result in measured.items():
        lines += [f"### {title}", "", *speed_table(*result, args), ""]
    lines += verdicts
    packages = ("numpy", "torch", "transformers", "ctranslate2", "llama-cpp-python")
    report(args.name, lines[:-1], packages, args.threads, write=not args.quick)
    if not args.quick and find_spec("matplotlib"):
        picture(RESULTS / f"{args.name}.png", measured, args.decode[-1])


if __name__ == "__main__":
    main()
