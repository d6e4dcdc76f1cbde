"""Run the Python code in a Markdown file, and compare its output with the output in the file.

    python lesson/run.py                              compare the lesson
    python lesson/run.py docs/gradients.md            compare another file
    python lesson/run.py --write                      put the new outputs, quotes and pictures in
    python lesson/run.py --notebook lesson.ipynb      write a notebook with the outputs
    GPT2_MODEL=124M python lesson/run.py              print the text with another model's outputs
    GPT2_PROMPT="ROMEO:" python lesson/run.py         print the text with another prompt's outputs

Three kinds of parts are checked:

    ```python                                    This code is run. If a fence without a language
                                                 follows it, that fence shows the output.
    <!-- quote gpt2_pico.mha: n, e ... d = -->   The fence below quotes this function, here from
                                                 the line with "n, e" to the next one with "d =".
    <!-- picture heads: weights, tokens -->      The picture below is drawn from these variables,
                                                 by the function heads in pictures.py. model_1
                                                 and model_2 are both drawn by model.

All code of a file shares its variables. Numbers with a decimal point may differ by one unit of
their last digit, since processors round differently. Everything else has to be equal. What the
pictures show is kept in pictures/plotted.json, so matplotlib is only needed to draw them.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import textwrap
import traceback
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from notebook import CHOICE, notebook_of  # noqa: E402

import cli  # noqa: E402
from model_files.files import read_bytes, read_json, write_atomic  # noqa: E402

LESSON = ROOT / "lesson" / "README.md"
PART = re.compile(
    r"^<!-- quote (?P<quote>[^\n]+) -->\n```python\n(?P<source>.*?)^```\n"
    r"|^```python\n(?P<code>.*?)^```\n(?:\n```\n(?P<output>.*?)^```\n)?"
    r"|^<!-- picture (?P<picture>\w+): (?P<values>[^\n]+) -->\n(?P<image>!\[[^\n]+)\n",
    re.DOTALL | re.MULTILINE,
)
BAR = {"unit": " parts", "leave": False, "disable": None}  # shown only in a terminal
DECIMAL = re.compile(r" *-?\d+\.\d+")  # with its padding, which depends on the sign


def run(text, name, variables):
    """Yield (match of PART, result) for all parts of a text. variables: a dict, which is filled.

    A result is the source of a quote, the output of code, or the values of a picture. If code
    fails, a ValueError names its line in the file.
    """
    variables["__name__"] = name
    for part in PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        try:
            result = result_of(part, line, name, variables)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = [line, *(frame.lineno for frame in frames if frame.filename == name)][-1]
            raise ValueError(f"{name}:{line}: {type(error).__name__}: {error}") from error
        yield part, result


def result_of(part, line, name, variables):
    """Return the result of a part, which begins in this line of the file."""
    if part["quote"]:
        try:
            return quote(part["quote"])
        except (IndexError, StopIteration):
            raise ValueError(f"{part['quote']} is not in the project") from None
    if part["picture"]:
        return [plain(eval(value, variables)) for value in part["values"].split(", ")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # The line breaks make errors name the file's lines.
        exec(compile("\n" * line + part["code"], name, "exec"), variables)
    return printed.getvalue()


def quote(what):
    """Return the source of a name such as encoder.Encoder.encode, or some of its lines."""
    name, _, lines = what.partition(": ")
    path, *names = name.split(".")
    while not ROOT.joinpath(f"{path}.py").is_file():
        path = f"{path}/{names.pop(0)}"
    source = ROOT.joinpath(f"{path}.py").read_text(encoding="utf-8")
    node, source = ast.parse(source), source.split("\n")
    for name in names:
        node = next(child for child in node.body if name in names_of(child))
    if names:
        first = node.lineno - 1
        while source[first - 1].lstrip().startswith("#"):  # with the comment above it
            first -= 1
        source = source[first : node.end_lineno]
    if lines:
        start, _, stop = lines.partition(" ... ")
        first = next(i for i, line in enumerate(source) if start in line)
        last = next(i for i, line in enumerate(source) if i >= first and (stop or start) in line)
        source = source[first : last + 1]
    return textwrap.dedent("\n".join(source)) + "\n"


def names_of(node):
    targets = getattr(node, "targets", [])
    return [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]


def plain(value):
    """Return a value as JSON can hold it, with its numbers rounded to three decimals."""
    if hasattr(value, "tolist"):  # an array or a NumPy number
        value = value.tolist()
    if isinstance(value, (list, tuple, range)):
        return [plain(x) for x in value]
    return round(value, 3) if isinstance(value, float) else value


# ==== Comparing =================================================================================


def faults(path, results):
    """Yield a message, of one or more lines, for each part of the file that is out of date."""
    for part, result in results:
        fault, written = "", part["output"] or ""
        if part["picture"]:
            fault = picture_fault(path.parent / "pictures", part["picture"], result)
        elif part["quote"] and part["source"] != result:
            fault = f"quoted:\n{part['source']}in the source:\n{result}"
        elif not part["quote"] and differ(written, result):
            fault = f"in the file:\n{written}printed:\n{result}"
        if fault:
            yield f"{path}:{part.string.count(chr(10), 0, part.start()) + 1}: {fault}"


def differ(written, printed):
    """Return whether two texts differ in more than the last digits of numbers."""
    if DECIMAL.sub("#", written) != DECIMAL.sub("#", printed):
        return True
    pairs = zip(DECIMAL.findall(written), DECIMAL.findall(printed))
    return any(
        len(a.partition(".")[2]) != len(b.partition(".")[2])
        or abs(float(a) - float(b)) > 1.01 * 10.0 ** -len(a.partition(".")[2])
        for a, b in pairs
    )


def picture_fault(directory, name, values):
    """Return what is wrong with a picture of these values, or "" if nothing is."""
    picture = read_plotted(directory).get(name)
    if not picture or not (directory / f"{name}.svg").is_file():
        return f"the picture {name} is missing: --write draws it"
    if digest((directory / f"{name}.svg").read_text(encoding="utf-8")) != picture["sha256"]:
        return f"{name}.svg was changed after it was drawn: --write draws it again"
    same = near(picture["values"], values)
    return "" if same else f"drawn in {name}.svg:\n{picture['values']}\ncomputed:\n{values}\n"


def near(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 2.01e-3
    return a == b


def read_plotted(directory):
    path = directory / "plotted.json"
    return read_json(path) if path.is_file() else {}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


# ==== Writing ===================================================================================


def write(path, text, results):
    """Put the results into the file, and draw the pictures whose values have changed."""
    directory, plotted = path.parent / "pictures", {}
    for name, svg, values in drawn(directory, results):
        directory.mkdir(exist_ok=True)
        write_text(directory / f"{name}.svg", svg)
        plotted[name] = json.dumps({"sha256": digest(svg), "values": values})
    if plotted:
        lines = (f"{json.dumps(name)}: {entry}" for name, entry in plotted.items())
        write_text(directory / "plotted.json", "{\n" + ",\n".join(lines) + "\n}\n")
    write_text(path, "".join(rewritten(text, results)))


def drawn(directory, results):
    """Yield (name, SVG, values) of each picture. One that is up to date is not drawn again."""
    shown = [(part["picture"], values) for part, values in results if part["picture"]]
    for name, values in tqdm(shown, "pictures", **BAR):
        if picture_fault(directory, name, values):
            yield name, draw(name, values), values
        else:
            svg = (directory / f"{name}.svg").read_text(encoding="utf-8")
            yield name, svg, read_plotted(directory)[name]["values"]


def draw(name, values):
    """Return the SVG of a picture."""
    try:
        import pictures

        return getattr(pictures, name.partition("_")[0])(*values)
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install -r requirements-dev.txt") from None
    except Exception as error:
        raise ValueError(f"the picture {name} cannot be drawn: {error!r}") from error


def read_text(path):
    try:
        return read_bytes(path).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None


def write_text(path, text):
    with write_atomic(path) as file:
        file.write(text.encode())


def rewritten(text, results):
    """Yield the text in pieces, with the results in their places."""
    end = 0
    for part, result in results:
        if part["quote"]:
            start, stop, new = *part.span("source"), result
        elif part["code"] and differ(part["output"] or "", result):
            start, stop = part.end("code"), part.end()
            new = f"```\n\n```\n{result}```\n" if result else "```\n"
        else:
            start, stop, new = part.end(), part.end(), ""
        yield text[end:start] + new
        end = stop
    yield text[end:]


def work(args):
    """Compare the files, write or print them with new outputs, or write a notebook."""
    files = [path.absolute() for path in args.files]
    notebook = args.notebook.absolute() if args.notebook else None
    if notebook and (notebook.is_dir() or not notebook.parent.is_dir()):
        raise cli.UsageError(f"{notebook} is not a file in a directory that exists")
    if notebook and (args.write or len(files) > 1 or notebook.resolve() == files[0].resolve()):
        raise cli.UsageError("--notebook takes one file and writes another: leave out --write")
    texts = [read_text(path) for path in files]
    choices = CHOICE.findall("".join(texts))
    changed = [name for name, usual in choices if os.environ.get(name, usual) != usual]
    if changed and args.write:
        names = " and ".join(changed)
        raise cli.UsageError(f"--write needs the usual prompt and model: unset {names}")
    if "GPT2_MODEL" not in changed:  # On a small model, threads would only wait for each other.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    is_good = True
    for path, text in zip(files, texts):
        results = run(text, str(path), {})
        if changed and not notebook:
            for piece in rewritten(text, results):
                print(piece, end="", flush=True)
            continue
        results = list(tqdm(results, path.name, len(PART.findall(text)), **BAR))
        if notebook:
            pictures = {name: svg for name, svg, _ in drawn(path.parent / "pictures", results)}
            directories = path.parent.resolve(), notebook.parent.resolve()
            write_text(notebook, notebook_of(text, results, pictures, *directories))
        elif args.write:
            write(path, text, results)
        else:
            messages = list(faults(path, results))
            print("\n".join(messages) or f"{path}: everything matches", file=sys.stderr)
            is_good = is_good and not messages
    if not is_good:
        raise SystemExit(1)


def main():
    parser = cli.new_parser("lesson/run.py", __doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, default=[LESSON], help="(lesson/README.md)")
    parser.add_argument("--write", action="store_true", help="update what the files show")
    parser.add_argument("--notebook", type=Path, metavar="FILE", help="write a notebook instead")
    return cli.run(parser, work)


if __name__ == "__main__":
    sys.exit(main())
