"""The lesson as a Jupyter notebook: prose and quotes are Markdown cells, the rest is to be run.

Pictures are drawn anew in it, from the variables as they then are. Answers are folded cells.
"""

import json
import os
import re
import subprocess

FIRST_CELL = """\
# Find the project around this notebook, or clone it.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

address = {address!r}
places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "gpt2"]
root = next((path for path in places if (path / "gpt2_pico.py").is_file()), None)
if root is None:
    if not address:
        raise FileNotFoundError("put this notebook into the project's folder, or fill in address")
    root = places[-1]
    subprocess.run(["git", "clone", "--depth", "1", address, str(root)], check=True)
os.chdir(root)
needed = "numpy", "regex", "requests", "tqdm", "matplotlib"
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)
sys.path[:0] = [str(root), str(root / "lesson")]

from IPython.display import SVG

import pictures
"""
OPEN, CLOSE = "<details><summary>Answer</summary>", "</details>"
EMPTY = re.compile(f"{re.escape(OPEN)}\\s*{CLOSE}")
FOLDED = {"jupyter": {"source_hidden": True, "outputs_hidden": True}}


def notebook_of(text, results, pictures, source, target):
    """Return the JSON of a notebook.

    pictures: {name: SVG}; source, target: the directories of the text and of the notebook.
    """

    def folded(place):
        return text.count(OPEN, 0, place) > text.count(CLOSE, 0, place)

    cells, prose, place = [code_cell(FIRST_CELL.format(address=origin()))], "", 0
    for part, result in results:
        prose += text[place : part.start()]
        if part["quote"]:
            prose += f"```python\n{result}```\n"
        else:
            cells += prose_cells(prose, folded(part.start()), source, target)
            prose = f"{OPEN}\n" * folded(part.end())  # what is said behind it is folded again
            if part["picture"]:
                call = f"SVG(pictures.{part['picture']}({part['values']}))"
                svg = {"image/svg+xml": pictures[part["picture"]], "text/plain": "a picture"}
                output = {"output_type": "display_data", "data": svg, "metadata": {}}
                cells.append(code_cell(call, output))
            else:
                output = {"output_type": "stream", "name": "stdout", "text": result}
                cells.append(code_cell(part["code"], output if result else None))
                cells[-1]["metadata"] = FOLDED if folded(part.start()) else {}
        place = part.end()
    cells += prose_cells(prose + text[place:], False, source, target)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    book = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, ensure_ascii=False, indent=1) + "\n"


def code_cell(code, output=None):
    outputs = [output] if output else []
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}}
    return {**cell, "outputs": outputs, "source": code.strip()}


def prose_cells(prose, folded, source, target):
    """The cell of some Markdown, if there is any. folded: the code behind it is an answer."""
    prose += f"\n\n{CLOSE}" * folded
    if EMPTY.search(prose.rstrip(), prose.rindex(OPEN) if folded else 0) and folded:
        prose = prose[: prose.rindex(OPEN)] + "*Answer: unfold the next cell.*"
    prose = EMPTY.sub("", prose)

    def moved(link):
        return f"]({os.path.relpath(source / link[1], target)}".replace(os.sep, "/")

    prose = re.sub(r"\]\((?!https?:|#)([^)#]+)", moved, prose)
    prose = re.sub(r"\[([^\]]+)\]\(#[^)]+\)", anchor, prose).strip()
    return [{"cell_type": "markdown", "metadata": {}, "source": prose}] if prose else []


def anchor(link):
    """Jupyter's address of a heading is its text."""
    return f"[{link[1]}](#{link[1].replace(' ', '-')})"


def origin():
    """Where this checkout was cloned from, "" if that is not known."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""
