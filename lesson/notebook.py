"""Write the lesson as a Jupyter notebook: prose and quotes are Markdown cells, code is code cells.

Pictures are code cells, too: they are drawn from the notebook's variables. Answers are folded.
"""

import json
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHOICE = re.compile(r'os\.environ\.get\("(\w+)", "(.*?)"\)')  # finds names and usual values
CHOICES = """\
# Choose a prompt and a model here, before you run the other cells. The numbers in the prose are
# those of {usual}.
import os

"""
FIND_PROJECT = """\
# Find the project around this notebook, or clone it and install what it needs.
import subprocess
import sys
from pathlib import Path

address = {address!r}
places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "gpt2"]
root = next((path for path in places if (path / "gpt2_pico.py").is_file()), None)
if root is None:
    if not address:
        raise FileNotFoundError("gpt2_pico.py is not here: move this notebook into the project")
    root = places[-1]
    subprocess.run(["git", "clone", "--depth", "1", address, str(root)], check=True)
    packages = ["-r", str(root / "requirements.txt"), "matplotlib"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
sys.path[:0] = [str(root), str(root / "lesson")]

from IPython.display import SVG

import pictures
"""
OPEN, CLOSE = "<details><summary>Answer</summary>", "</details>"
EMPTY = re.compile(f"{re.escape(OPEN)}\\s*{CLOSE}")
FOLDED = {"jupyter": {"source_hidden": True, "outputs_hidden": True}}


def notebook_of(text, results, pictures, source, target):
    """Return the JSON of a notebook. results: of run.run.

    pictures: {name: SVG}; source, target: the directories of the text and of the notebook.
    """

    def is_folded(i):
        return text.count(OPEN, 0, i) > text.count(CLOSE, 0, i)

    cells, prose = [code_cell(FIND_PROJECT.format(address=origin()))], ""
    if choices := CHOICE.findall(text):
        usual = " and ".join(f'"{value}"' for _, value in choices)
        values = [(name, os.environ.get(name, value)) for name, value in choices]
        lines = [f"os.environ[{name!r}] = {value!r}" for name, value in values]
        cells.insert(0, code_cell(CHOICES.format(usual=usual) + "\n".join(lines)))
    end = 0  # where the part before ends
    for part, result in results:
        prose += text[end : part.start()]
        if part["quote"]:
            prose += f"```python\n{result}```\n"
        else:
            cells += prose_cells(prose, is_folded(part.start()), source, target)
            prose = f"{OPEN}\n" if is_folded(part.end()) else ""  # The answer goes on.
            if part["picture"]:
                function = part["picture"].partition("_")[0]
                call = f"SVG(pictures.{function}({part['values']}))"
                svg = {"image/svg+xml": pictures[part["picture"]], "text/plain": "a picture"}
                output = {"output_type": "display_data", "data": svg, "metadata": {}}
                cells.append(code_cell(call, output))
            else:
                output = {"output_type": "stream", "name": "stdout", "text": result}
                cells.append(code_cell(part["code"], output if result else None))
                cells[-1]["metadata"] = FOLDED if is_folded(part.start()) else {}
        end = part.end()
    cells += prose_cells(prose + text[end:], False, source, target)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    book = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, ensure_ascii=False, indent=1) + "\n"


def code_cell(code, output=None):
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}}
    return {**cell, "outputs": [output] if output else [], "source": code.strip()}


def prose_cells(prose, folded, source, target):
    """Return a Markdown cell in a list, or an empty list. folded: the code of an answer follows."""
    if folded:
        prose += f"\n\n{CLOSE}"
        start = prose.rindex(OPEN)
        if EMPTY.search(prose, start):
            prose = prose[:start] + "*Answer: unfold the next cell.*"
    prose = EMPTY.sub("", prose)

    def moved(link):
        return f"]({os.path.relpath(source / link[1], target)}".replace(os.sep, "/")

    prose = re.sub(r"\]\((?!https?:|#)([^)#]+)", moved, prose)
    prose = re.sub(r"\[([^\]]+)\]\(#[^)]+\)", anchor, prose).strip()
    return [{"cell_type": "markdown", "metadata": {}, "source": prose}] if prose else []


def anchor(link):
    """Return a link to a heading as Jupyter writes it: the address is the heading's text."""
    return f"[{link[1]}](#{link[1].replace(' ', '-')})"


def origin():
    """Return where this checkout was cloned from, or "" if that is unknown."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()
    except OSError:  # no git
        return ""
