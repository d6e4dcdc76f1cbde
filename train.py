"""Train a GPT from a text file: data, model, optimiser, checkpoint, evaluation.

    python train.py shakespeare.txt --out models/mine
    python gpt2.py "ROMEO:" --model_size mine

A step's batch is cut into pieces, and each core works through its share of them on a thread with
a single-threaded BLAS: so NumPy's elementwise passes use all cores, as the products do.
"""

import os

for _library in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "VECLIB_MAXIMUM"):
    os.environ.setdefault(f"{_library}_THREADS", "1")  # has to stand before NumPy is imported

import argparse
import contextlib
import csv
import json
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import gpt2
from backward import cross_entropy, gpt2_backward, gpt2_forward
from encoder import Encoder, get_encoder, learn_bpe, save_encoder
from tensor_file import read_safetensors, write_atomic, write_safetensors
from utils import flatten, load_encoder_hparams_and_params, nest, save_model

SHAPE = {"vocab_size": 2048, "n_layer": 6, "n_head": 4, "n_embd": 256, "n_ctx": 256}
FIXED = (
    "text",
    "val_fraction",
    "lowercase",
    "stopwords",
    "merge_dropout",
    "init_from",
    "dtype",
    "seed",
    "optimizer",
    *SHAPE,
)  # what --resume may not change
PIECE = 2**16  # numbers of a flat vector that the optimiser takes at a time: they stay in cache
MAX_TOKENS = 2048  # of a piece of the batch: its activations are what memory has to hold
COPIES = 16  # of the text, each cut into other tokens, with --merge_dropout
EVAL_TOKENS = 2**17  # of the validation text, evaluated on the way; the last evaluation takes all

sys.setswitchinterval(5e-4)  # s; a thread's short calls hold up the others for the usual 5 ms


# Data


def read_text(path, start, stop, lowercase=False, stopwords=()):
    """Bytes start to stop of a UTF-8 file as texts of about a megabyte, cut where words end."""
    drop = stopwords and re.compile(rf"\b(?:{'|'.join(map(re.escape, stopwords))})\b ?", re.I)
    with open(path, "rb") as file:
        file.seek(start)
        rest = b""
        while block := file.read(min(2**20, stop - file.tell())):
            rest += block
            cuts = list(re.finditer(rb"\S[ \n]", rest)) if file.tell() < stop else []
            end = cuts[-1].end() - 1 if cuts else len(rest) * (file.tell() == stop)
            try:
                text = rest[:end].decode("utf-8")
            except UnicodeDecodeError as error:
                at = file.tell() - len(rest) + error.start
                raise ValueError(f"{path}: byte {at} is not UTF-8: convert the file") from None
            text = text.lower() if lowercase else text
            yield drop.sub("", text) if drop else text
            rest = rest[end:]


def split_files(paths, val_fraction):
    """-> two lists of (path, start, stop) in bytes: the files, and their held-out tail."""
    sizes = [os.path.getsize(path) for path in paths]
    for path, size in zip(paths, sizes):
        if size == 0:
            raise ValueError(f"{path}: the file is empty")
    cut, start, parts = int(sum(sizes) * (1 - val_fraction)), 0, ([], [])
    for path, size in zip(paths, sizes):
        middle = min(max(cut - start, 0), size)
        with open(path, "rb") as file:  # not inside a character: 10xxxxxx continues one
            file.seek(middle)
            while (byte := file.read(1)) and byte[0] >> 6 == 2:
                middle += 1
        parts[0].extend([(path, 0, middle)] * (middle > 0))
        parts[1].extend([(path, middle, size)] * (middle < size))
        start += size
    return parts


def encode_files(parts, encoder, file, **options):
    """Append the ids of parts of files to a binary file; -> number of ids, of characters."""
    dtype, n_ids, n_chars = id_type(encoder), 0, 0
    for i, part in enumerate(parts):
        if i and encoder.eot is not None:
            n_ids += 1
            file.write(dtype(encoder.eot).tobytes())
        for text in read_text(*part, **options):
            ids = np.array(encoder.encode(text), dtype)
            file.write(ids.tobytes())
            n_ids, n_chars = n_ids + len(ids), n_chars + len(text)
    return n_ids, n_chars


def segmentations(encoder, share, rng):
    """Yield encoders of one vocabulary: with share > 0, COPIES - 1 that lack fewer and fewer of
    the merges, at first this share; last the encoder itself.

    A text in several spellings is harder to learn by heart.
    Source: Provilkov et al. 2020, "BPE-Dropout", where each word is dealt with by itself.
    """
    for i in range(COPIES - 1 if share else 0):
        kept = rng.random(len(encoder.merges)) >= share * (1 - i / (COPIES - 1))
        yield Encoder(encoder.encoder, list(compress(encoder.merges, kept)), encoder.added)
    yield encoder


def read_stopwords(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig").split() if path else ()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None


def id_type(encoder):
    return np.uint16 if encoder.n_vocab <= 2**16 else np.uint32


# Model


def init_params(n_vocab, n_ctx, n_embd, n_layer, rng):
    """Random parameters: Radford et al. 2019, section 2.3. What a layer adds to the residual
    stream is scaled by 1 / sqrt(number of such layers), so that the sum keeps its size."""

    def normal(*shape, std=0.02):
        return rng.standard_normal(shape, np.float32) * np.float32(std)

    def linear(n_in, n_out, std=0.02):
        return {"w": normal(n_in, n_out, std=std), "b": np.zeros(n_out, np.float32)}

    def layer_norm():
        return {"g": np.ones(n_embd, np.float32), "b": np.zeros(n_embd, np.float32)}

    def block():
        std = 0.02 / math.sqrt(2 * n_layer)
        return {
            "ln_1": layer_norm(),
            "attn": {"c_attn": linear(n_embd, 3 * n_embd), "c_proj": linear(n_embd, n_embd, std)},
            "ln_2": layer_norm(),
            "mlp": {"c_fc": linear(n_embd, 4 * n_embd), "c_proj": linear(4 * n_embd, n_embd, std)},
        }

    return {
        "wte": normal(n_vocab, n_embd),
        "wpe": normal(n_ctx, n_embd),
        "blocks": [block() for _ in range(n_layer)],
        "ln_f": layer_norm(),
    }


def kind(name, array):
    """0: a matrix inside a block, 1: an embedding, 2: a gain or a bias."""
    return 2 if array.ndim == 1 else 0 if name.startswith("h.") else 1


def like(params, flat):
    """The parameters' tree over one flat vector, its arrays views, sorted by kind."""
    views, start = {}, 0
    for name, array in sorted(flatten(params).items(), key=lambda item: kind(*item)):
        views[name] = flat[start : start + array.size].reshape(array.shape)
        start += array.size
    (n_vocab, n_embd), (n_ctx, _) = params["wte"].shape, params["wpe"].shape
    n_inner, n_layer = params["blocks"][0]["mlp"]["c_fc"]["b"].size, len(params["blocks"])
    config = {"n_embd": n_embd, "n_inner": n_inner, "vocab_size": n_vocab, "n_positions": n_ctx}
    return nest("", config | {"n_layer": n_layer}, views)


# Optimiser


def adamw(w, g, m, v, scale, lr, decay, step, beta1=0.9, beta2=0.99, eps=1e-8):
    """One update, in place, of any vector: Loshchilov and Hutter 2019, algorithm 2."""
    g = g * scale
    m += (g - m) * (1 - beta1)
    v += (g * g - v) * (1 - beta2)
    update = np.sqrt(v / (1 - beta2**step))
    update += eps
    np.divide(m, update, out=update)
    update *= lr / (1 - beta1**step)
    w *= 1 - lr * decay
    w -= update


def muon(w, g, m, scale, lr, decay, beta=0.95):
    """One update, in place, of a matrix [in, out]: its momentum with all singular values near 1.

    Source: Jordan et al. 2024, "Muon"; scaled to the size of an AdamW update: Liu et al. 2025.
    The three matrices of c_attn, [e, 3e], are orthogonalized one by one.
    """
    g = g * scale
    m *= beta
    m += g
    g += beta * m
    parts = np.split(g, 3, axis=1) if g.shape[1] == 3 * len(g) else [g]
    size = 0.2 * math.sqrt(max(parts[0].shape))
    w *= 1 - lr * decay
    w -= np.concatenate([orthogonalize(part) for part in parts], axis=1) * (lr * size)


def orthogonalize(x):  # [m, n] -> [m, n]
    """u v^T of x = u s v^T, roughly, by products alone: five steps of a Newton-Schulz iteration."""
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T).T
    x = x * (1 / (float(np.linalg.norm(x)) + 1e-7))
    for _ in range(5):  # takes each s to 3.4445 s - 4.7750 s^3 + 2.0315 s^5
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.7750 * a) @ x
    return x


def schedule(progress, warmup):
    """Share of the top rate: rising for the warm-up's share of the run, then a cosine to zero."""
    return min(progress / warmup, 1) * (0.5 + 0.5 * math.cos(math.pi * progress))


# Steps


def batch(tokens, step, n, args):
    """[batch_size, n + 1] ids from random places: the same for the same seed and step."""
    rng = np.random.default_rng([args.seed, step])
    starts = rng.integers(len(tokens) - n, size=args.batch_size)
    return tokens[starts[:, None] + np.arange(n + 1)].astype(np.int64)


def evaluate(pool, params, ids, hparams, length, stride, roughly=False):
    """-> nats, number of targets, over windows of the ids; roughly: EVAL_TOKENS of them do."""
    every = max(1, len(ids) // EVAL_TOKENS) if roughly else 1
    todo = islice(gpt2.windows(len(ids), length, stride), 0, None, every)
    n_head, eps, nats, n = hparams["n_head"], hparams["layer_norm_epsilon"], 0.0, 0
    while some := list(islice(todo, 1024)):  # not all at once: a text may have millions
        nats += sum(pool.map(lambda w: gpt2.window_nats(ids, w, params, n_head, eps), some))
        n += sum(stop - first for _, first, stop in some)
    return nats, n


def new_state(params, n_threads):
    """All that training changes, in flat vectors and in trees of views: weights w, moments m and v,
    a gradient g for each thread."""
    size = sum(array.size for array in flatten(params).values())
    state = {name: np.zeros(size, np.float32) for name in "wmv"}
    state["g"] = np.zeros((n_threads, size), np.float32)
    state["params"], state["momenta"] = like(params, state["w"]), like(params, state["m"])
    state["gradients"] = [like(params, g) for g in state["g"]]
    initial = flatten(params)
    for name, view in flatten(state["params"]).items():
        view[...] = initial[name]
    return state


def loss_and_gradient(params, gradient, ids, n_head, eps, dropout, rng, n_targets):
    """Add some sequences' share of the mean loss's gradient; -> their share of the loss."""
    logits, kept = gpt2_forward(ids[:, :-1], **params, n_head=n_head, eps=eps, p=dropout, rng=rng)
    loss, dlogits = cross_entropy(logits, ids[:, 1:].ravel())
    dlogits *= 1 / n_targets
    added = flatten(gpt2_backward(dlogits, kept, **params, eps=eps))
    for name, total in flatten(gradient).items():
        total += added[name]
    return loss / n_targets


def train_step(pool, state, ids, step, lr, hparams, args):
    """One step on ids [batch, n + 1]; -> the mean loss before it, in nats per token.

    The gradient of a batch of any size accumulates over pieces of at most MAX_TOKENS, so that
    memory depends on the piece alone.
    """
    n_threads, n_targets = len(state["g"]), ids[:, 1:].size
    rounds = math.ceil(n_targets / n_threads / MAX_TOKENS)
    pieces = [piece for piece in np.array_split(ids, n_threads * rounds) if len(piece)]

    def accumulate(thread):
        state["g"][thread] = 0
        return sum(
            loss_and_gradient(
                state["params"],
                state["gradients"][thread],
                pieces[i],
                hparams["n_head"],
                hparams["layer_norm_epsilon"],
                args.dropout,
                np.random.default_rng([args.seed, step, i]),
                n_targets,
            )
            for i in range(thread, len(pieces), n_threads)
        )

    def add_up(piece):
        g = state["g"][0, piece]
        for other in state["g"][1:, piece]:
            g += other
        return float(g @ g)

    loss = sum(pool.map(accumulate, range(n_threads)))
    norm = math.sqrt(sum(pool.map(add_up, slices(0, len(state["w"])))))
    optimize(pool, state, step, lr, min(1, 1 / (norm + 1e-6)), args)
    return loss


def optimize(pool, state, step, lr, scale, args):
    """Update all weights by the gradient times scale: Muon for the matrices inside blocks, AdamW
    for the rest; weight decay for whatever is a matrix."""
    w, m, v, g = state["w"], state["m"], state["v"], state["g"][0]
    ends, jobs, by_muon = [0, 0, 0], [], args.optimizer == "muon"
    gradients, momenta = flatten(state["gradients"][0]), flatten(state["momenta"])
    for name, x in flatten(state["params"]).items():
        ends = [end + x.size * (kind(name, x) <= k) for k, end in enumerate(ends)]
        if by_muon and kind(name, x) == 0:
            jobs.append((muon, x, gradients[name], momenta[name], scale, lr, args.weight_decay))
    parts = (ends[0] if by_muon else 0, ends[1], args.weight_decay), (ends[1], ends[2], 0)
    for start, end, decay in parts:
        for s in slices(start, end):
            jobs.append((adamw, w[s], g[s], m[s], v[s], scale, lr, decay, step))
    for job in [pool.submit(*job) for job in jobs]:
        job.result()


def slices(start, stop):
    return [slice(i, min(i + PIECE, stop)) for i in range(start, stop, PIECE)]


# A run


def checkpoint_of(out):
    return Path(out) / "training" / "checkpoint.safetensors"


def read_checkpoint(out):
    """-> {"w": ..., "m": ..., "v": ...} and run, or two empty dicts where there is no checkpoint.

    run, from JSON: settings, step, seconds, the best loss, the log, numbers of tokens.
    """
    path = checkpoint_of(out)
    if not path.exists():
        return {}, {}
    saved = read_safetensors(path)
    if saved.keys() != {"w", "m", "v", "run"}:
        raise ValueError(f"{path}: no checkpoint of train.py: --overwrite starts anew")
    return saved, json.loads(bytes(saved.pop("run")))


def settings(args):
    """The options that make a run what it is: --resume takes them from the checkpoint."""
    others = "out", "resume", "overwrite", "evaluate", "plot", "stride"
    return {name: value for name, value in vars(args).items() if name not in others}


def open_run(args):
    """-> encoder, hparams, state and run: as the last checkpoint has them, or at their start."""
    out, encoder = Path(args.out), None
    saved, run = read_checkpoint(out) if args.resume else ({}, {})
    if not (saved or args.overwrite):
        if checkpoint_of(out).exists():
            raise ValueError(f"{out} holds an unfinished run: --resume it or --overwrite it")
        if (out / "config.json").exists():
            raise ValueError(f"{out} holds a model: give another --out, or --overwrite")
    if changed := [k for k in FIXED if saved and run["settings"].get(k) != getattr(args, k)]:
        raise ValueError(f"{out}: --resume needs the same {', '.join(changed)} as before")
    if args.init_from:
        encoder, hparams, params = load_encoder_hparams_and_params(args.init_from, args.models_dir)
        if (args.n_ctx or 0) > hparams["n_ctx"]:
            raise ValueError(
                f"{args.init_from} has a context of {hparams['n_ctx']} tokens: "
                f"--n_ctx {args.n_ctx} is more"
            )
    if not saved:
        encoder, run = prepare(args, encoder, args.n_ctx or hparams["n_ctx"])
    if not args.init_from:
        encoder = encoder or get_encoder(checkpoint_of(out).parent)
        hparams = {name: getattr(args, name) for name in ("n_ctx", "n_embd", "n_head", "n_layer")}
        hparams |= {"n_vocab": encoder.n_vocab, "eos_token_id": encoder.eot}
        hparams["layer_norm_epsilon"] = 1e-5
        rng = np.random.default_rng(args.seed)
        params = init_params(encoder.n_vocab, args.n_ctx, args.n_embd, args.n_layer, rng)
    run["settings"] = settings(args)
    state = new_state(params, args.threads)
    for name, array in saved.items():
        state[name][...] = array
    if not saved:
        write_checkpoint(args, state, run)
    return encoder, hparams, state, run


def prepare(args, encoder, n_ctx):
    """Turn the text into training/tokens.bin; -> encoder, learned here if it is None, and run."""
    text = {"lowercase": args.lowercase, "stopwords": read_stopwords(args.stopwords)}
    train_parts, val_parts = split_files(args.text, args.val_fraction)
    if learned := encoder is None:
        chunks = (chunk for part in train_parts for chunk in read_text(*part, **text))
        encoder = learn_bpe(chunks, args.vocab_size)
    run = {"step": 0, "seconds": 0.0, "best": math.inf, "log": [], "n_noisy": 0, "n_train": 0}
    work, rng = checkpoint_of(args.out).parent, np.random.default_rng(args.seed)
    work.mkdir(parents=True, exist_ok=True)
    with write_atomic(work / "tokens.bin") as file:
        for part in segmentations(encoder, args.merge_dropout, rng):
            run["n_noisy"] += run["n_train"]
            run["n_train"], _ = encode_files(train_parts, part, file, **text)
        run["n_val"], run["n_chars"] = encode_files(val_parts, encoder, file, **text)
        if run["n_train"] <= n_ctx or run["n_val"] < 2:
            raise ValueError(
                f"{args.text[0]}: too short: {run['n_train']} tokens to train on, {run['n_val']} "
                f"to validate, and a sequence takes {n_ctx + 1}: more text, a smaller --n_ctx or "
                "another --val_fraction"
            )
        checkpoint_of(args.out).unlink(missing_ok=True)  # of a run that --overwrite ends here
    if learned:
        save_encoder(encoder, work)
    return encoder, run


def read_tokens(args, encoder, run):
    """-> ids to train on and to validate by, mapped: they may be more than memory holds."""
    path = checkpoint_of(args.out).parent / "tokens.bin"
    tokens = np.memmap(path, id_type(encoder), "r")
    if len(tokens) != run["n_noisy"] + run["n_train"] + run["n_val"]:
        raise ValueError(f"{path}: damaged: --overwrite starts anew")
    return tokens[: -run["n_val"]], tokens[-run["n_val"] :]


def train(args):
    """A run from the text, or from its last checkpoint, to a model directory."""
    encoder, hparams, state, run = open_run(args)
    train_ids, val_ids = read_tokens(args, encoder, run)
    n_ctx = args.n_ctx or hparams["n_ctx"]
    print(
        f"{len(state['w']):,} parameters; {run['n_train']:,} tokens to train on, {len(val_ids):,} "
        f"to validate, {run['n_chars'] / len(val_ids):.2f} characters each"
    )
    before, start, first, losses = run["seconds"], time.perf_counter(), run["step"], []
    # A loss that is no number ends the run with one line of ours, so NumPy need not warn.
    quiet = {"initializer": np.seterr, "initargs": ("ignore",)}
    with (
        ThreadPoolExecutor(args.threads, **quiet) as pool,
        tqdm(
            total=None if args.minutes else args.iterations,
            initial=first,
            unit="step",
            disable=None,
        ) as bar,
    ):
        while (progress := how_far(run, args)) < 1:
            left = train_ids[int(progress * run["n_noisy"]) :]  # in the end the text as it is
            ids = batch(left, run["step"], n_ctx, args)
            lr = args.learning_rate * schedule(progress, args.warmup)
            loss = train_step(pool, state, ids, run["step"] + 1, lr, hparams, args)
            must_be_finite(loss, run)
            losses.append(loss)
            run["step"] += 1
            seconds = time.perf_counter() - start
            run["seconds"] = before + seconds
            speed = ids[:, 1:].size * (run["step"] - first) / seconds
            last = f", validation {run['log'][-1][-1]:.3f}" if run["log"] else ""
            bar.set_postfix_str(f"loss {loss:.3f}{last}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
            if run["step"] % args.eval_interval and how_far(run, args) < 1:
                continue
            nats, n = evaluate(pool, state["params"], val_ids, hparams, n_ctx + 1, n_ctx, True)
            must_be_finite(nats, run)
            row = [run["step"], run["seconds"], np.mean(losses), nats / n]
            losses = []
            run["log"].append([float(number) for number in row])
            tqdm.write("step {:.0f}, {:.0f} s: loss {:.4f}, validation {:.4f}".format(*row))
            show_sample(encoder, hparams, state["params"], val_ids)
            save(args, encoder, hparams, state, run, nats / n)


def must_be_finite(loss, run):
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} after {run['step']} steps; the last good checkpoint is kept: "
            "--resume with a smaller --learning_rate goes on from it"
        )


def how_far(run, args):
    """Share of the run that is done, by steps or by time."""
    if args.minutes:
        return run["seconds"] / (60 * args.minutes)
    return run["step"] / args.iterations


def show_sample(encoder, hparams, params, ids, n=60):
    """A little of what the model writes by now, after the first token of the validation text."""
    eps, eos = hparams["layer_norm_epsilon"], hparams["eos_token_id"]
    ids = [int(ids[0])]
    more = gpt2.generate(ids, params, hparams["n_head"], n, eps, eos, seed=0, temperature=0.8)
    text = encoder.decode([*ids, *more])
    tqdm.write("    " + text.strip().replace("\n", "\n    "))


def save(args, encoder, hparams, state, run, loss):
    """The model if it is the best so far, the log, and last the checkpoint: each file whole."""
    out = Path(args.out)
    if loss < run["best"]:
        run["best"] = loss
        save_model(out, hparams, state["params"], encoder, args.dtype)
    with write_atomic(out / "log.csv") as file:
        file.write(b"step,seconds,loss,validation_loss\n")
        for row in run["log"]:
            file.write("{:.0f},{:.1f},{:.6f},{:.6f}\n".format(*row).encode())
    write_checkpoint(args, state, run)


def write_checkpoint(args, state, run):
    tensors = {name: state[name] for name in "wmv"}
    tensors["run"] = np.frombuffer(json.dumps(run).encode(), np.uint8)
    write_safetensors(checkpoint_of(args.out), tensors)


def finish(args):
    """Drop what only --resume needs, and evaluate the model that is kept."""
    work = checkpoint_of(args.out).parent
    checkpoint_of(args.out).unlink()  # first: it is what --resume looks for
    for name in "tokens.bin", "vocab.json", "merges.txt":
        (work / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where it holds anything of somebody else's
        work.rmdir()
    print(f"{args.out}: done; python gpt2.py 'a prompt' --model_size {args.out}")
    measure(args.out, args.text, args)


def measure(model, paths, args):
    """Print how well a model predicts texts, or their held-out tail, with all its context."""
    encoder, hparams, params = load_encoder_hparams_and_params(model, args.models_dir)
    _, tail = split_files(paths, args.val_fraction)
    ids, n_chars = [np.empty(0, np.int32)], 0
    for part in tail:
        for text in read_text(*part, args.lowercase, read_stopwords(args.stopwords)):
            ids.append(np.array(encoder.encode(text), np.int32))
            n_chars += len(text)
    ids = np.concatenate(ids)
    if len(ids) < 2:
        raise ValueError(f"{paths[0]}: {len(ids)} tokens; there have to be two to predict one")
    n_ctx = hparams["n_ctx"]
    with ThreadPoolExecutor(args.threads) as pool:
        stride = min(args.stride or max(1, n_ctx // 8), n_ctx)
        nats, n = evaluate(pool, params, ids, hparams, n_ctx + 1, stride)
    print(
        f"{n} tokens, {n_chars} characters: loss {nats / n:.4f} nats per token, perplexity "
        f"{math.exp(min(nats / n, 700)):.2f}, {nats / n_chars:.4f} nats per character"
    )


def plot(model):
    """Draw the curves of a run's log.csv into loss.png."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -r requirements-dev.txt") from None
    path = Path(model) / "log.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        steps, loss, validation_loss = (
            [float(row[name]) for row in rows] for name in ("step", "loss", "validation_loss")
        )
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: no log of train.py ({error!r})") from None
    pyplot.plot(steps, loss, label="training")
    pyplot.plot(steps, validation_loss, label="validation")
    pyplot.xlabel("step")
    pyplot.ylabel("loss, nats per token")
    pyplot.legend()
    pyplot.savefig(Path(model) / "loss.png", dpi=120)
    print(Path(model) / "loss.png")


# The command line


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a GPT from text files, into a Hugging Face model directory that "
        "gpt2.py opens.",
    )
    add, whole = parser.add_argument, gpt2.number(int, 1)
    add("text", nargs="*", help="UTF-8 files; their last part is held out for validation")
    add("--out", metavar="DIR", help="the model directory to write")
    add("--evaluate", metavar="MODEL", help="measure this model on the text instead")
    add("--plot", metavar="DIR", help="draw the loss of a run into DIR/loss.png instead")
    add = parser.add_mutually_exclusive_group().add_argument
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, with its options unless given again",
    )
    add("--overwrite", action="store_true", help="replace what --out holds")
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--n_layer", type=whole, help="layers (6)")
    add("--n_head", type=whole, help="heads, a divisor of n_embd (4)")
    add("--n_embd", type=whole, help="numbers a token (256)")
    add(
        "--n_ctx",
        type=whole,
        help="tokens of context, in training and after (256); with --init_from, in training only "
        "(the model's)",
    )
    add(
        "--vocab_size",
        type=gpt2.number(int, 257),
        help="tokens to learn from the text; 257: its bytes alone, a character model (2048)",
    )
    add(
        "--init_from",
        metavar="MODEL",
        help="take weights, shape and tokenizer of this model: a size, a directory, a hub id",
    )
    add("--models_dir", default="models", metavar="DIR", help="where models are kept (models)")
    add(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of the written weights; float16 halves the file (float32)",
    )
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--batch_size", type=whole, default=12, help="sequences a step, accumulated in pieces (12)")
    add(
        "--iterations",
        type=whole,
        default=600,
        help="steps of the run (600: ten minutes for the default shape on two cores)",
    )
    add("--minutes", type=gpt2.number(float, 0.01), help="length of the run, instead of iterations")
    add(
        "--learning_rate",
        type=gpt2.number(float, 0),
        default=4e-3,
        help="at its highest (4e-3; a tenth of it or less with --init_from)",
    )
    add(
        "--warmup",
        type=gpt2.number(float, 1e-6, 1),
        default=0.05,
        help="share of the run in which the rate rises (0.05)",
    )
    add(
        "--dropout",
        type=gpt2.number(float, 0, 0.99),
        default=0.1,
        help="share of the values that each layer adds, left out at random (0.1)",
    )
    add("--weight_decay", type=gpt2.number(float, 0), default=0.1, help="of matrices (0.1)")
    add(
        "--optimizer",
        choices=["muon", "adamw"],
        default="muon",
        help="for matrices in blocks (muon)",
    )
    add(
        "--eval_interval",
        type=whole,
        default=100,
        help="steps between evaluations and checkpoints (100)",
    )
    add(
        "--seed",
        type=gpt2.number(int, 0),
        default=0,
        help="the same seed and threads, the same run (0)",
    )
    add("--threads", type=whole, default=os.cpu_count() or 1, help="(one a core)")
    group = parser.add_argument_group("text")
    add = group.add_argument
    add(
        "--val_fraction",
        type=gpt2.number(float, 0, 1),
        metavar="SHARE",
        help="held-out tail (0.1); with --evaluate, measure this tail only",
    )
    add("--lowercase", action="store_true", help="train on the text in lower case")
    add("--stopwords", metavar="FILE", help="drop the words in this file from the text")
    add(
        "--merge_dropout",
        type=gpt2.number(float, 0, 1),
        default=0.0,
        metavar="SHARE",
        help=f"train on {COPIES} copies of the text, all but the last without some of the merges, "
        "at first this share: keeps a long run from learning a small text by heart (0)",
    )
    add("--stride", type=whole, help="with --evaluate: step between windows (an eighth of n_ctx)")
    args = parser.parse_args(argv)
    if args.resume and args.out:
        parser.set_defaults(**read_checkpoint(args.out)[1].get("settings", {}))
        args = parser.parse_args(argv)
    if args.out and not os.path.dirname(args.out):
        args.out = os.path.join(os.curdir, args.out)  # a path for gpt2.py, too, and no name
    if not args.plot:
        if not args.text:
            parser.error(
                "which text? give one or more files"
                + f"; {args.out} holds no unfinished run" * args.resume
            )
        if not (args.out or args.evaluate):
            parser.error("where to? give --out DIR")
    if not args.init_from:
        for name, value in SHAPE.items():
            setattr(args, name, getattr(args, name) or value)
        if args.n_embd % args.n_head:
            parser.error(f"--n_embd {args.n_embd} is not divisible by --n_head {args.n_head}")
    elif given := [name for name in SHAPE if name != "n_ctx" and getattr(args, name)]:
        parser.error(f"--{given[0]} comes from the model that --init_from names")
    if args.val_fraction is None:
        args.val_fraction = 1.0 if args.evaluate else 0.1
    return args


def main(argv=None):
    """Run the command; -> exit status: 0, 1 if something is wrong, 2 wrong usage, 130 Ctrl-C."""
    args = None
    try:
        gpt2.open_streams()
        args = parse_arguments(argv)
        if args.plot:
            plot(args.plot)
        elif args.evaluate:
            measure(args.evaluate, args.text, args)
        else:
            train(args)
            finish(args)  # not in train, whose mapped files Windows would not let go
        return 0
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError):
            gpt2.drop_output()
        left = args and args.out and checkpoint_of(args.out).exists()
        gpt2.say("\ntrain.py: stopped" + "; --resume goes on from the last checkpoint" * bool(left))
        return 130
    except MemoryError as error:
        gpt2.say(
            f"train.py: error: not enough memory ({error}): take a smaller model, "
            "--n_ctx or --batch_size"
        )
        return 1
    except (ValueError, OSError) as error:
        gpt2.say(f"train.py: error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
