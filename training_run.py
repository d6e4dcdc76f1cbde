"""A run of training as it lies on the disk: how it begins, and how it goes on after a kill.

    OUT/                            the best model so far, a model directory; log.csv, its curve;
                                    training.json, what the run was told
    OUT/training/tokens.bin         the text as ids
    OUT/training/vocab.json ...     the vocabulary, unless it is that of --init_from
    OUT/training/checkpoint...      weights and moments of the last evaluation, and the record
    OUT/training/lock               locked while a process trains

The folder training/ goes when the run has ended, or could not begin.
"""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np

import corpus
from encoder import get_encoder, learn_bpe
from model_files.checkpoint import checkpoint_path, read_checkpoint, write_checkpoint
from model_files.directory import save_model
from model_files.files import try_lock, write_atomic
from model_files.parameters import nest, parameter_shapes
from model_files.vocabulary import save_vocabulary
from optimizer import Optimizer
from texts import find_texts
from utils import load_encoder, load_encoder_hparams_and_params, training_path

SHAPE = {"vocab_size": 2048, "n_layer": 6, "n_head": 4, "n_embd": 256, "n_ctx": 256}
TEXT = ("text", "val_fraction", "lowercase", "stopwords", "literal_endoftext", "merge_dropout")
START = ("init_from", "tokenizer", *SHAPE)
FIXED = (*TEXT, *START, "dtype", "seed", "optimizer")  # --resume may not change them
LEFTOVERS = "tokens.bin", "tokens.bin.tmp", "vocab.json", "merges.txt", "added_tokens.json"


class Run:
    """A model in the making.

    out: its directory. record: what its checkpoint keeps beside the optimizer's vectors: settings
    (the options), step, seconds, best (the lowest validation loss), log (rows of log.csv, None for
    no validation), and how many ids there are: n_noisy (the text's copies with merge dropout),
    n_train, n_val.
    """

    def __init__(self, out, encoder, hparams, optimizer, record):
        self.out, self.encoder, self.hparams = Path(out), encoder, hparams
        self.optimizer, self.record = optimizer, record

    def read_ids(self):
        """-> ids to train on and to validate by, mapped: they may be more than memory holds."""
        path, n_val = ids_path(self.out), self.record["n_val"]
        ids = np.memmap(path, corpus.id_type(self.encoder), "r")
        if len(ids) != self.record["n_noisy"] + self.record["n_train"] + n_val:
            raise ValueError(f"{path}: damaged: --overwrite starts anew")
        return ids[: len(ids) - n_val], ids[len(ids) - n_val :]

    def describe(self):
        n_train, n_val = self.record["n_train"], self.record["n_val"]
        size = len(self.optimizer.w)
        return f"{size:,} parameters; {n_train:,} tokens to train on, {n_val:,} to validate"

    def log(self, loss, val_loss=None):
        """A row of the curve: the mean loss of the steps since the row before, nats a token."""
        row = [self.record["step"], self.record["seconds"], loss, val_loss]
        self.record["log"].append(row)

    def save(self, dtype):
        """The model if it is the best so far, without validation always; the log, and last the
        checkpoint: each file whole."""
        val_loss = self.record["log"][-1][-1]
        if val_loss is None or val_loss < self.record["best"]:
            self.record["best"] = val_loss
            self.out.mkdir(exist_ok=True)
            with write_atomic(training_path(self.out)) as file:
                file.write(json.dumps(self.record["settings"], indent=2).encode() + b"\n")
            params, vocabulary = self.optimizer.params, self.encoder.vocabulary
            save_model(self.out, self.hparams, params, vocabulary, dtype)
        with write_atomic(self.out / "log.csv") as file:
            file.write(b"step,seconds,loss,validation_loss\n")
            for step, seconds, loss, validation in self.record["log"]:
                validation = "" if validation is None else f"{validation:.6f}"
                file.write(f"{step},{seconds:.1f},{loss:.6f},{validation}\n".encode())
        self.save_checkpoint()

    def save_checkpoint(self):
        vectors = {name: getattr(self.optimizer, name) for name in "wmv"}
        write_checkpoint(self.out, vectors, self.record)


def ids_path(out):
    return checkpoint_path(out).parent / "tokens.bin"


@contextlib.contextmanager
def claim(out):
    """One training at a time writes into a directory. What stays of a run that could not begin, or
    has ended, is its model alone: no file and no folder that only a run needs."""
    work = checkpoint_path(out).parent
    made = [path for path in (work, *work.parents) if not path.exists()]
    if not (lock := try_lock(work / "lock")):
        raise ValueError(f"{out}: another training writes there: give another --out, or wait")
    try:
        yield
    finally:
        left = list(work.glob("piped-text-*"))
        if not checkpoint_path(out).exists():
            left += [work / name for name in LEFTOVERS]
        for path in left:
            with contextlib.suppress(OSError):
                path.unlink()
        if os.name == "nt":  # where no open file can be removed
            lock.close()
        with contextlib.suppress(OSError):
            (work / "lock").unlink()
        lock.close()
        with contextlib.suppress(OSError):  # where anything is left, or is somebody else's
            for path in dict.fromkeys((work, *made)):
                path.rmdir()


def open_run(args):
    """-> the Run: as the last checkpoint has it, or at its start."""
    saved, record = read_checkpoint(args.out) if args.resume else ({}, {})
    if saved:
        must_be_the_same(record["settings"], args)
    elif not args.overwrite:
        must_be_free(Path(args.out))
    encoder, hparams, params = start_model(args) if args.init_from else (None, {}, None)
    if not saved:
        if args.tokenizer:
            encoder = load_encoder(args.tokenizer, args.models_dir)
        record, encoder = prepare(args, encoder, args.n_ctx or hparams["n_ctx"])
    if not args.init_from:
        encoder = encoder or get_encoder(ids_path(args.out).parent)
        hparams = new_hparams(args, encoder)
        params = init_params(hparams, np.random.default_rng(args.seed))
    others = "out", "resume", "overwrite", "plot"
    record["settings"] = {name: x for name, x in vars(args).items() if name not in others}
    optimizer = Optimizer(params, args.threads, args.weight_decay, args.optimizer == "muon")
    run = Run(args.out, encoder, hparams, optimizer, record)
    for name, vector in saved.items():
        getattr(optimizer, name)[...] = vector
    if not saved:
        run.save_checkpoint()
    return run


def new_hparams(args, encoder):
    """What is no array of a model that begins here."""
    return {
        "n_vocab": encoder.n_vocab,
        **{name: getattr(args, name) for name in ("n_ctx", "n_embd", "n_head", "n_layer")},
        "layer_norm_epsilon": 1e-5,
        "eos_token_ids": [] if encoder.eot is None else [encoder.eot],
    }


def must_be_the_same(settings, args):
    if changed := [name for name in FIXED if settings.get(name) != getattr(args, name)]:
        raise ValueError(f"{args.out}: --resume needs the same {', '.join(changed)} as before")


def must_be_free(out):
    if checkpoint_path(out).exists():
        raise ValueError(f"{out} holds an unfinished run: --resume it or --overwrite it")
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model: give another --out, or --overwrite")


def start_model(args):
    """The model that --init_from names, which has to see as far as the training does."""
    model = load_encoder_hparams_and_params(args.init_from, args.models_dir)
    if (args.n_ctx or 0) > model[1]["n_ctx"]:
        raise ValueError(
            f"{args.init_from} has a context of {model[1]['n_ctx']} tokens: "
            f"--n_ctx {args.n_ctx} is more"
        )
    return model


def prepare(args, encoder, n_ctx):
    """Turn the text into training/tokens.bin; -> record, and encoder, learned here if None."""
    text = {name: getattr(args, name) for name in ("lowercase", "stopwords", "literal_endoftext")}
    path, rng = ids_path(args.out), np.random.default_rng(args.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = find_texts(args.text, args.models_dir, path.parent)
    train_parts, val_parts = corpus.split_files(files, args.val_fraction)
    if encoder is None:
        texts = (piece for piece in corpus.read_texts(train_parts, **text) if piece is not None)
        encoder = learn_bpe(texts, args.vocab_size)
    record = {"step": 0, "seconds": 0.0, "best": math.inf, "log": [], "n_noisy": 0, "n_train": 0}
    with write_atomic(path) as file:
        for part in corpus.segmentations(encoder, args.merge_dropout, rng):
            record["n_noisy"] += record["n_train"]
            record["n_train"] = corpus.write_ids(file, train_parts, part, **text)
        record["n_val"] = corpus.write_ids(file, val_parts, encoder, **text)
        if record["n_train"] <= n_ctx or (args.val_fraction and record["n_val"] < 2):
            raise ValueError(
                f"{args.text[0]}: too short: {record['n_train']} tokens to train on, "
                f"{record['n_val']} to validate, and a sequence takes {n_ctx + 1}: more text, "
                "a smaller --n_ctx or another --val_fraction"
            )
        checkpoint_path(args.out).unlink(missing_ok=True)  # of a run that --overwrite ends here
    if not args.init_from:
        save_vocabulary(encoder.vocabulary, path.parent)
    return record, encoder


def held_out(out, encoder, n_val):
    """-> the ids of the held-out text, mapped."""
    ids = np.memmap(ids_path(out), corpus.id_type(encoder), "r")
    return ids[len(ids) - n_val :]


def init_params(hparams, rng):
    """Random parameters: Radford et al. 2019, section 2.3. What a layer adds to the residual
    stream is scaled by 1 / sqrt(number of such layers), so that the sum keeps its size."""
    tensors = {}
    for name, shape in parameter_shapes(**hparams).items():
        if len(shape) == 2:
            adds = name.endswith("c_proj.weight")
            std = 0.02 / math.sqrt(2 * hparams["n_layer"]) if adds else 0.02
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(std)
        else:
            gain = name.split(".")[-2].startswith("ln_") and name.endswith("weight")
            tensors[name] = (np.ones if gain else np.zeros)(shape, np.float32)
    return nest(tensors)
