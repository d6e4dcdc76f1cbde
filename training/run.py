"""Keep the files of a run of train.py, and resume the run after a kill.

    OUT/                            the best model so far, a model directory
    OUT/log.csv, OUT/training.json  the losses of the run; its options
    OUT/training/tokens.bin         the text as ids
    OUT/training/vocab.json ...     the vocabulary, unless it comes from --init_from
    OUT/training/checkpoint...      the optimizer's w, m and v, and the Record, at each evaluation
    OUT/training/lock               locked while a process trains

OUT/training is removed when the run ends, and if it cannot begin. A run does not begin if the user
has a file with a name that the run needs. With --overwrite, it replaces such a file in OUT, and
removes the files that train.py has made there before, which training.json lists.
"""

import contextlib
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from encoder import get_encoder, learn_bpe
from model_files import files
from model_files.directory import GENERATION, nest, parameter_shapes, save_model
from model_files.safetensors import read_safetensors, write_safetensors
from model_files.vocabulary import FILES, save_vocabulary, vocabulary_files
from training import corpus
from training.optimizer import Optimizer
from utils import load_encoder

RUN_FILES = ("tokens.bin", "checkpoint.safetensors", *FILES)  # A run keeps these in OUT/training.
MARK = b"train.py has made the files here\n"  # A run writes this into the lock.
OUT_FILES = {"config.json", "model.safetensors", "training.json", "log.csv"}  # OUT gets these.
VOCABULARY = {GENERATION, *FILES}  # In OUT, such a file changes the meaning of the model.
LEARNED = {"vocab.json", "merges.txt"}  # These are the files of a vocabulary learned by train.py.
OTHER_MODEL = re.compile(
    r"(pytorch_model|model)[\w.-]*\.(bin|safetensors)(\.index\.json)?"  # Hugging Face
    r"|hparams\.json|encoder\.json|vocab\.bpe|checkpoint|model\.ckpt.*"  # OpenAI
)


@dataclass
class Record:
    """Everything in a checkpoint except the optimizer's w, m and v."""

    settings: dict  # the options of the run
    step: int = 0
    seconds: float = 0.0
    best: float = math.inf  # the lowest validation loss so far
    log: list = field(default_factory=list)  # rows [step, seconds, loss, validation loss or None]
    n_noisy: int = 0  # how many ids the copies with merge dropout have, which come first
    n_train: int = 0  # how many ids the text itself has, which come next
    n_val: int = 0  # how many ids the held-out text has, which come last


class Run:
    """A model that is being trained, and its directory out."""

    def __init__(self, out, encoder, hparams, optimizer, record):
        self.out, self.encoder, self.hparams = str(out), encoder, hparams
        self.optimizer, self.record = optimizer, record

    def read_ids(self):
        """Return the ids to train on and those held out. Both are mapped, not read into memory."""
        path, record = ids_path(self.out), self.record
        dtype, n_ids = corpus.id_type(self.encoder), record.n_noisy + record.n_train + record.n_val
        if not path.is_file() or path.stat().st_size != n_ids * np.dtype(dtype).itemsize:
            raise ValueError(f"{path} is not the text of this run; use --overwrite to start over")
        ids = np.memmap(path, dtype, "r")
        if ids.max() >= self.encoder.n_vocab:
            raise ValueError(f"{path} has ids of another vocabulary; use --overwrite to start over")
        n = n_ids - record.n_val
        return ids[:n], ids[n:]

    def log(self, loss, val_loss=None):
        """Add a row to the log. loss: the mean since the last row, in nats per token."""
        self.record.log.append([self.record.step, self.record.seconds, loss, val_loss])

    def save(self, dtype):
        """Save the model unless an earlier one was better, then the log, then the checkpoint.

        A run that is killed in between repeats the steps since the previous checkpoint.
        """
        out = Path(self.out)
        val_loss = self.record.log[-1][-1]
        best = self.record.best
        if val_loss is None or best is None or val_loss < best:
            self.record.best = val_loss
            params, vocabulary = self.optimizer.params, self.encoder.vocabulary
            names = OUT_FILES | vocabulary_files(vocabulary).keys()
            for name in made_before(out) - names:
                (out / name).unlink(missing_ok=True)
            with files.write_atomic(out / "training.json") as file:
                content = {**self.record.settings, "files": sorted(names)}
                file.write(json.dumps(content, indent=2).encode() + b"\n")
            save_model(out, self.hparams, params, vocabulary, dtype)
        with files.write_atomic(out / "log.csv") as file:
            file.write(b"step,seconds,loss,validation_loss\n")
            for step, seconds, loss, validation in self.record.log:
                validation = "" if validation is None else f"{validation:.6f}"
                file.write(f"{step},{seconds:.1f},{loss:.6f},{validation}\n".encode())
        self.save_checkpoint()

    def save_checkpoint(self):
        # A safetensors file holds arrays only, so the record becomes an array of bytes.
        record = np.frombuffer(json.dumps(vars(self.record)).encode(), np.uint8)
        vectors = {"w": self.optimizer.w, "m": self.optimizer.m, "v": self.optimizer.v}
        write_safetensors(checkpoint_path(self.out), {**vectors, "run": record})


def checkpoint_path(out):
    return Path(out) / "training" / "checkpoint.safetensors"


def ids_path(out):
    return Path(out) / "training" / "tokens.bin"


def read_checkpoint(out):
    """Return the vectors {"w": ..., "m": ..., "v": ...} and the Record of the last checkpoint."""
    path = checkpoint_path(out)
    vectors = read_safetensors(path)
    try:
        record = Record(**json.loads(bytes(vectors.pop("run"))))
        is_valid = vectors.keys() == {"w", "m", "v"} and holds_numbers(record)
    except (KeyError, TypeError, ValueError, RecursionError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"{path} is not a checkpoint of train.py: move it away to start over")
    return vectors, record


def holds_numbers(record):
    """Return whether the values of a Record from a file have the right types."""
    if not isinstance(record.settings, dict) or {*map(type, record.log)} - {list}:
        return False
    counts = [record.step, record.n_noisy, record.n_train, record.n_val]
    numbers = [record.seconds, record.best, *(x for row in record.log for x in row)]
    return (
        isinstance(record.log, list)
        and all(type(n) is int and 0 <= n < 1 << 63 for n in counts)
        and all(x is None or type(x) in (int, float) for x in numbers)
        and all(len(row) == 4 and None not in row[:3] for row in record.log)
        and math.isfinite(record.seconds)
    )


def made_before(out):
    """Return the names of the files in OUT that earlier runs have made."""
    with contextlib.suppress(OSError, ValueError):
        names = files.read_json(Path(out) / "training.json").get("files")
        if isinstance(names, list):
            return {name for name in (*OUT_FILES, *FILES) if name in names}
    return set()


@contextlib.contextmanager
def lock_run(out):
    """Lock OUT, so that one process trains there at a time, and clean up afterwards.

    A run that has ended leaves nothing but its model, and one that could not begin leaves nothing.
    """
    work = checkpoint_path(out).parent
    made = files.missing_directories(work)
    lock = files.try_lock(work / "lock")
    if lock is None:
        raise ValueError(f"{out}: another training is writing there; wait, or use another --out")
    try:
        if claim(out, lock):
            made = [work]  # the run that was killed made this directory
        yield
    finally:
        lock.seek(0)
        content = lock.read()
        if content == MARK:
            remove_run_files(out)
        # The file is removed while it is locked, or another process could lock it in between. On
        # Windows that is impossible: an open file cannot be removed.
        if os.name == "nt":
            lock.close()
        if content in (b"", MARK):
            with contextlib.suppress(OSError):
                (work / "lock").unlink()
        lock.close()
        with contextlib.suppress(OSError):  # directories that are not empty stay
            for path in made:  # the innermost first
                path.rmdir()


def claim(out, lock):
    """Mark OUT/training as made by train.py, and return whether an earlier run has left it behind.

    ValueError if it has a file that was not made by train.py, under a name that a run needs.
    """
    work = checkpoint_path(out).parent
    content = lock.read()
    is_left = content == MARK
    if checkpoint_path(out).exists() and not is_left:
        read_checkpoint(out)  # ValueError if train.py has not made it
        is_left = True
    if not is_left:
        others = [path for path in work.iterdir() if is_run_file(path.name)]
        if content:
            others.append(work / "lock")
        if others:
            raise ValueError(
                f"{others[0]} was not made by train.py: move it, or give another --out"
            )
    if content != MARK:
        lock.write(MARK)
        lock.flush()
    return is_left


def is_run_file(name):
    return name in RUN_FILES or re.fullmatch(r"piped-text-\d+(-utf8(\.\w+)?)?", name)


def remove_run_files(out):
    """Remove the files of a run. If there is a checkpoint, keep those that --resume needs."""
    work = checkpoint_path(out).parent
    kept = RUN_FILES if checkpoint_path(out).exists() else ()
    for path in work.iterdir():
        if is_run_file(path.name) and path.name not in kept:
            with contextlib.suppress(OSError):
                path.unlink()
    files.remove_temporary(work)
    files.remove_temporary(Path(out))


def open_run(out, options, model, resume=False, overwrite=False):
    """Begin a run, or resume it at its last checkpoint, and return the Run.

    options, model: from resolve_options. model has encoder, hparams and params, or is None.
    """
    if checkpoint_path(out).exists():
        if resume:
            return resume_run(out, options, model)
        if not overwrite:
            raise ValueError(f"{out} holds an unfinished run: --resume it or --overwrite it")
    encoder = model[0] if model else None
    if options.tokenizer:
        encoder = load_encoder(options.tokenizer, options.models_dir)
    check_out(out, encoder, overwrite)
    return begin_run(out, options, model, encoder)


def check_out(out, encoder, overwrite):
    """Raise ValueError if a run would replace a file without --overwrite, or if a file that would
    stay in OUT changes the meaning of the new model."""
    here = {path.name for path in Path(out).glob("*")}
    if overwrite:
        names = vocabulary_files(encoder.vocabulary).keys() if encoder else LEARNED
        others = (here & VOCABULARY) - names - made_before(out)
        advice = "would change the meaning of the new model: move it away"
    else:
        used = OUT_FILES | VOCABULARY
        others = {name for name in here if name in used or OTHER_MODEL.fullmatch(name)}
        advice = "is there already: give another --out, or --overwrite"
    if others:
        raise ValueError(f"{Path(out) / min(others)} {advice}")


def resume_run(out, options, model):
    """Return the Run in the state of its last checkpoint."""
    vectors, record = read_checkpoint(out)
    record.settings = vars(options)
    if model is None:
        model = new_model(options, get_encoder(ids_path(out).parent))  # its weights are replaced
    run = new_run(out, options, model, record)
    if any(x.shape != run.optimizer.w.shape or x.dtype != np.float32 for x in vectors.values()):
        raise ValueError(
            f"{checkpoint_path(out)} is from another model; use --overwrite to start over"
        )
    run.optimizer.w[...] = vectors["w"]
    run.optimizer.m[...] = vectors["m"]
    run.optimizer.v[...] = vectors["v"]
    return run


def begin_run(out, options, model, encoder):
    """Turn the text into ids, learn a vocabulary if there is none, and save a first checkpoint."""
    record = Record(vars(options))
    n_ctx = options.n_ctx or model[1]["n_ctx"]
    encoder = prepare_text(out, options, encoder, n_ctx, record)
    if model is None:
        for name in FILES:  # the run that --overwrite replaces may have left some
            (ids_path(out).parent / name).unlink(missing_ok=True)
        save_vocabulary(encoder.vocabulary, ids_path(out).parent)
        model = new_model(options, encoder)
    run = new_run(out, options, model, record)
    run.save_checkpoint()
    return run


def new_run(out, options, model, record):
    encoder, hparams, params = model
    by_muon = options.optimizer == "muon"
    optimizer = Optimizer(params, options.threads, options.weight_decay, by_muon)
    return Run(out, encoder, hparams, optimizer, record)


def prepare_text(out, options, encoder, n_ctx, record):
    """Write the ids of the text to tokens.bin and their counts to the record. Return the encoder.

    If encoder is None, learn a vocabulary from the text to train on.
    """
    changes = {name: getattr(options, name) for name in corpus.CHANGES}
    path = ids_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = corpus.find_texts(
        options.text, options.models_dir, path.parent, options.text_column, options.text_key
    )
    train_parts, val_parts = corpus.split_files(paths, options.val_fraction)
    if encoder is None:
        texts = corpus.read_texts(train_parts, **changes)
        encoder = learn_bpe((text for text in texts if text is not None), options.vocab_size)
    rng = np.random.default_rng(options.seed)
    with files.write_atomic(path) as file:
        for spelling in corpus.segmentations(encoder, options.merge_dropout, rng):
            record.n_noisy += record.n_train  # the copy before this one was not the text itself
            record.n_train = corpus.write_ids(file, train_parts, spelling, **changes)
        record.n_val = corpus.write_ids(file, val_parts, encoder, **changes)
        if record.n_train <= n_ctx or (options.val_fraction > 0 and record.n_val < 2):
            raise ValueError(
                f"{options.text[0]}: too short: {record.n_train} tokens to train on, "
                f"{record.n_val} to validate, and a sequence takes {n_ctx + 1}: use more text, a "
                "smaller --n_ctx or another --val_fraction"
            )
        checkpoint_path(out).unlink(missing_ok=True)  # --overwrite replaces the run that made it
    return encoder


def new_model(options, encoder):
    """Return encoder, hparams and random params of an untrained model."""
    hparams = {
        "n_vocab": encoder.n_vocab,
        **{name: getattr(options, name) for name in ("n_ctx", "n_embd", "n_head", "n_layer")},
        "layer_norm_epsilon": 1e-5,
        "eos_token_ids": [] if encoder.eot is None else [encoder.eot],
    }
    return encoder, hparams, init_params(hparams, np.random.default_rng(options.seed))


def init_params(hparams, rng):
    """Return random parameters, as small as those of GPT-2: Radford et al. 2019, section 2.3.

    A sum of n independent random numbers is about sqrt(n) times as large as one of them. And each
    of n_layer blocks adds twice to the residual stream: attention and MLP. So what they add is
    divided by sqrt(2 n_layer), and the sum is as large in a deep model as in a shallow one.
    """
    tensors = {}
    for name, shape in parameter_shapes(**hparams).items():
        if len(shape) == 2:
            std = 0.02
            if name.endswith("c_proj.weight"):  # the last matrix of attention and of the MLP
                std /= math.sqrt(2 * hparams["n_layer"])
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(std)
        elif name.endswith(".weight"):  # the gain of a layer norm
            tensors[name] = np.ones(shape, np.float32)
        else:
            tensors[name] = np.zeros(shape, np.float32)
    return nest(tensors)
