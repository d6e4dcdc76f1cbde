"""A run of training as it lies on the disk: how it begins, and how it goes on after a kill.

    OUT/                            the best model so far, a model directory; log.csv, its curve
    OUT/training/tokens.bin         the text as ids
    OUT/training/vocab.json ...     the vocabulary, where it was learned from the text
    OUT/training/checkpoint...      weights and moments of the last evaluation, and the record

The folder training/ goes when the run has ended.
"""

import contextlib
import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

import corpus
from encoder import get_encoder, learn_bpe
from model_files.checkpoint import checkpoint_path, read_checkpoint, write_checkpoint
from model_files.directory import save_model
from model_files.files import write_atomic
from model_files.parameters import nest, parameter_shapes
from model_files.vocabulary import save_vocabulary
from optimizer import Optimizer
from utils import load_encoder_hparams_and_params

SHAPE = {"vocab_size": 2048, "n_layer": 6, "n_head": 4, "n_embd": 256, "n_ctx": 256}
TEXT = ("text", "val_fraction", "lowercase", "stopwords", "merge_dropout")
FIXED = (*TEXT, "init_from", "dtype", "seed", "optimizer", *SHAPE)  # --resume may not change them


class Run:
    """A model in the making.

    out: its directory. record: what its checkpoint keeps beside the optimizer's vectors: settings
    (the options), step, seconds, best (the lowest validation loss), log (rows of log.csv), and how
    many ids there are: n_noisy (the text's copies with merge dropout), n_train, n_val.
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
        return ids[:-n_val], ids[-n_val:]

    def describe(self):
        n_train, n_val = self.record["n_train"], self.record["n_val"]
        size = len(self.optimizer.w)
        return f"{size:,} parameters; {n_train:,} tokens to train on, {n_val:,} to validate"

    def log(self, loss, val_loss):
        row = [self.record["step"], self.record["seconds"], loss, val_loss]
        self.record["log"].append(row)
        tqdm.write("step {:.0f}, {:.0f} s: loss {:.4f}, validation {:.4f}".format(*row))

    def save(self, val_loss, dtype):
        """The model if it is the best so far, the log, and last the checkpoint: each file whole."""
        if val_loss < self.record["best"]:
            self.record["best"] = val_loss
            params, vocabulary = self.optimizer.params, self.encoder.vocabulary
            save_model(self.out, self.hparams, params, vocabulary, dtype)
        with write_atomic(self.out / "log.csv") as file:
            file.write(b"step,seconds,loss,validation_loss\n")
            for row in self.record["log"]:
                file.write("{:.0f},{:.1f},{:.6f},{:.6f}\n".format(*row).encode())
        self.save_checkpoint()

    def save_checkpoint(self):
        vectors = {name: getattr(self.optimizer, name) for name in "wmv"}
        write_checkpoint(self.out, vectors, self.record)


def ids_path(out):
    return checkpoint_path(out).parent / "tokens.bin"


def open_run(args):
    """-> the Run: as the last checkpoint has it, or at its start."""
    saved, record = read_checkpoint(args.out) if args.resume else ({}, {})
    if saved:
        must_be_the_same(record["settings"], args)
    elif not args.overwrite:
        must_be_free(Path(args.out))
    encoder, hparams, params = start_model(args) if args.init_from else (None, {}, None)
    if not saved:
        record, encoder = prepare(args, encoder, args.n_ctx or hparams["n_ctx"])
    if not args.init_from:
        encoder = encoder or get_encoder(ids_path(args.out).parent)
        hparams = {name: getattr(args, name) for name in ("n_ctx", "n_embd", "n_head", "n_layer")}
        hparams |= {"n_vocab": encoder.n_vocab, "eos_token_ids": [encoder.eot]}
        hparams["layer_norm_epsilon"] = 1e-5
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
    text = {"lowercase": args.lowercase, "stopwords": corpus.read_stopwords(args.stopwords)}
    train_parts, val_parts = corpus.split_files(args.text, args.val_fraction)
    if learned := encoder is None:
        texts = (piece for part in train_parts for piece in corpus.read_text(*part, **text))
        encoder = learn_bpe(texts, args.vocab_size)
    record = {"step": 0, "seconds": 0.0, "best": math.inf, "log": [], "n_noisy": 0, "n_train": 0}
    path, rng = ids_path(args.out), np.random.default_rng(args.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as file:
        for part in corpus.segmentations(encoder, args.merge_dropout, rng):
            record["n_noisy"] += record["n_train"]
            record["n_train"] = corpus.write_ids(file, train_parts, part, **text)
        record["n_val"] = corpus.write_ids(file, val_parts, encoder, **text)
        if record["n_train"] <= n_ctx or record["n_val"] < 2:
            raise ValueError(
                f"{args.text[0]}: too short: {record['n_train']} tokens to train on, "
                f"{record['n_val']} to validate, and a sequence takes {n_ctx + 1}: more text, "
                "a smaller --n_ctx or another --val_fraction"
            )
        checkpoint_path(args.out).unlink(missing_ok=True)  # of a run that --overwrite ends here
    if learned:
        save_vocabulary(encoder.vocabulary, path.parent)
    return record, encoder


def end_run(out, encoder):
    """Drop what only --resume needs; -> the ids of the held-out text."""
    path, id_type = ids_path(out), corpus.id_type(encoder)
    n_val = read_checkpoint(out)[1]["n_val"]
    start = path.stat().st_size - n_val * np.dtype(id_type).itemsize
    ids = np.fromfile(path, id_type, offset=start)
    checkpoint_path(out).unlink()  # first: it is what --resume looks for
    for name in path.name, "vocab.json", "merges.txt":
        path.with_name(name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where it holds anything of somebody else's
        path.parent.rmdir()
    return ids


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
