"""Check the functions that you have written in a copy of mine.py.

    python lesson/check.py my_gpt2.py

Each function is checked by itself. It gets the arguments that it has in models/shakespeare, and the
functions that it calls are those of gpt2_pico.py. A wrong result is compared with the results of
the usual mistakes, which are in mistakes.txt. Gradients are compared with measured ones (cases.py).
If the whole model is right, it continues a text.
"""

import inspect
import itertools
import math
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for so small a model, threads only wait

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cases import all_arguments, make_read_only, measured_gradients  # noqa: E402

import cli  # noqa: E402
import gpt2_pico  # noqa: E402
from model_files.files import printable, read_bytes  # noqa: E402
from training.backward import linear_backward  # noqa: E402
from utils import load_encoder_hparams_and_params  # noqa: E402

PROMPT, SPEECH, N_TOKENS = "To be, or not to", "ROMEO:", 40
FLOAT64 = "right, but float64, as np.sqrt(2) and np.ones(2) are: float32 is faster"
TOLERANCE = 2e-5  # This part of the largest number may differ, since float32 rounds.
MODEL = ["layer_norm", "linear", "softmax", "head", "mha", "gelu", "ffn", "gpt2", "generate"]


class Advice(Exception):
    """What to do about a result that cannot be compared."""


def not_written(*args, **keywords):
    raise NotImplementedError


def softmax_backward(dy, y):
    return y * (dy - (dy * y).sum(-1, keepdims=True))


TRUE = {name: getattr(gpt2_pico, name) for name in MODEL}
GRADIENTS = {"linear_backward": linear_backward, "softmax_backward": softmax_backward}


# ==== What they return ==========================================================================


def outcome(name, function, arguments):
    """Return [(label, array), ...], all that the function returns, or the error that it raises."""
    try:
        results = [labelled(name, function, **keywords) for keywords in arguments]
        return [(label, np.array(x)) for result in results for label, x in result.items()]
    except (Exception, SystemExit) as error:
        return error


def labelled(name, function, **keywords):
    """Call a function. Return a dict of what it returns: the label of each part and the part."""
    if name == "generate":
        return {"": first_ids(function, **keywords)}
    result = function(**keywords)
    if result is None:
        raise Advice("it returns nothing: is `return` missing?")
    if name != "linear_backward":
        return {"": result}
    try:
        dx, parameters = result
        return {"dx: ": dx, "dw: ": parameters["w"], "db: ": parameters["b"]}
    except (TypeError, ValueError, LookupError):
        raise Advice('return dx, {"w": dw, "b": db}') from None


def first_ids(generate, inputs, params, hparams, n_tokens):
    """Return the ids that generate yields, at most n_tokens + 1 of them: it may never end."""
    ids = list(inputs)
    result = generate(ids, params, hparams, n_tokens)
    if not inspect.isgenerator(result):
        raise Advice(f"a {type(result).__name__} instead of a generator: use `yield`")
    new = list(itertools.islice(result, n_tokens + 1))
    if ids != inputs:
        raise Advice("it changes the list of its caller: begin with ids = list(inputs)")
    return new


def truth_of(name, arguments):
    """Return the right outcome."""
    if name in GRADIENTS:
        return measured_gradients(name, **arguments[0])
    return outcome(name, TRUE[name], arguments)


def is_same(a, b):
    """Return whether two outcomes are the same."""
    if isinstance(a, BaseException) or isinstance(b, BaseException):
        return repr(a) == repr(b)
    return all(is_near(x, y) for (_, x), (_, y) in zip(a, b))


def is_near(a, b):
    """Return whether two arrays are equal, except for rounding."""
    if a.shape != b.shape or a.dtype.kind not in "iuf":
        return False
    largest = abs(b[np.isfinite(b)]).max(initial=0)
    return np.allclose(a, b, rtol=0, atol=TOLERANCE * largest, equal_nan=True)


# ==== What is wrong with it =====================================================================


def read_mistakes():
    """Return {function: [(advice, [[before, after], ...]), ...]}."""
    mistakes, edits = {}, []
    for line in (ROOT / "lesson" / "mistakes.txt").read_text(encoding="utf-8").splitlines():
        sign, rest = line[:1], line[2:]
        if sign == "@":
            name = rest
            mistakes[name] = []
        elif sign == "-":
            edits.append([rest])
        elif sign == "+":
            edits[-1].append(rest)
        elif sign == "=":
            mistakes[name].append((rest, edits))
            edits = []
    return mistakes


def mistaken(name, edits):
    """Return the true function after the edits to its source, [[before, after], ...]."""
    source = inspect.getsource({**TRUE, **GRADIENTS}[name])
    for before, after in edits:
        source = source.replace(before, after)
    space = {**vars(gpt2_pico), "math": math}
    exec(source, space)
    return space[name]


def verdict(name, found, truth, arguments, path):
    """Return a line: what is wrong with an outcome, or that it is right."""
    if isinstance(found, NotImplementedError):
        return "not written yet"
    if is_same(found, truth):
        return FLOAT64 if is_float64(found, truth) else "right"
    fault = difference(found, truth, path)
    for advice, edits in read_mistakes()[name]:
        if is_same(found, outcome(name, mistaken(name, edits), arguments)):
            return f"{fault}: {advice}"
    return fault


def difference(found, truth, path):
    """Return the error, or how an outcome differs from the truth in the first wrong array."""
    if isinstance(found, BaseException):
        return at_line(found, path)
    pairs = ((label, a, b) for (label, a), (_, b) in zip(found, truth) if not is_near(a, b))
    label, array, right = next(pairs)
    if right.dtype.kind == "i":
        return f"{array.tolist()} instead of {right.tolist()}"
    if array.shape != right.shape:
        return f"{label}shape {list(array.shape)} instead of {list(right.shape)}"
    if array.dtype.kind not in "iuf":
        return f"{label}not an array of numbers"
    if np.isnan(array).any():
        return f"{label}some numbers are NaN (not a number)"
    return f"{label}off by up to {abs(array - right).max():.2g}"


def at_line(error, path):
    """Return an error as one line, with the line of the reader's file in which it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    message = str(error) if isinstance(error, Advice) else f"{type(error).__name__}: {error}"
    if "read-only" in message:
        message = "it changes its argument: write x = x - y instead of x -= y"
    message = printable(" ".join(message.split()))
    if not lines:
        return message
    called = [f", in {frame.name}" for frame in frames if frame.filename == gpt2_pico.__file__]
    return f"line {lines[-1]}{''.join(called[-1:])}: {message}"


def is_float64(found, truth):
    """Return whether a result is float64 instead of float32, which takes twice the memory."""
    return any(
        a.dtype == "float64" and b.dtype == "float32" for (_, a), (_, b) in zip(found, truth)
    )


# ==== The command ===============================================================================


def run_file(path):
    """Run the reader's file. Return a dict of its names."""
    source, names = read_bytes(path), {"__name__": path.stem}
    try:
        exec(compile(source, str(path), "exec"), names)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""  # a binary file has no lines
        raise ValueError(f"{path}: {where}{error.msg}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: {at_line(error, path)}") from None
    return names


def work(args):
    """Check each function of a file. If the model is complete, let it continue a text."""
    names = run_file(args.file)
    mine = {name: names.get(name, not_written) for name in [*TRUE, *GRADIENTS]}
    encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    arguments = all_arguments(encoder.encode(PROMPT), params, hparams)
    make_read_only(arguments)
    right = set()
    for name, function in mine.items():
        names.update({**TRUE, name: function})  # What it calls is right.
        truth = truth_of(name, arguments[name])
        found = outcome(name, function, arguments[name])
        line = verdict(name, found, truth, arguments[name], args.file)
        if line.startswith("right"):
            right.add(name)
        print(f"{name:17} {line}")
    if right >= set(MODEL):
        names.update(mine)
        print_speech(mine["generate"], encoder, hparams, params, args.file)
    if len(right) < len(mine):
        raise SystemExit(1)


def print_speech(generate, encoder, hparams, params, path):
    """Print what the reader's functions write together."""
    ids = encoder.encode(SPEECH)
    arguments = {"inputs": ids, "params": params, "hparams": hparams, "n_tokens": N_TOKENS}
    found = outcome("generate", generate, [arguments])
    truth = outcome("generate", gpt2_pico.generate, [arguments])
    if not is_same(found, truth):
        raise ValueError(f"{path}: all functions together: {difference(found, truth, path)}")
    print(f"\nTogether they write the same {N_TOKENS} tokens as gpt2_pico.py:\n")
    print(cli.visible(SPEECH + encoder.decode(found[0][1])))


def main(argv=None):
    parser = cli.new_parser("lesson/check.py", __doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="your copy of lesson/mine.py")
    return cli.run(parser, work, argv)


if __name__ == "__main__":
    sys.exit(main())
