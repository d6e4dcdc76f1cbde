"""Texts in other formats: CSV, JSON lines with another key, UTF-16. They are copied once, as the
files that corpus.py reads, a row or a megabyte at a time."""

import codecs
import csv
import itertools
import json
from pathlib import Path

from model_files.files import open_regular

MAX_FIELD = 2**24  # characters; the longest text of a row
BLOCK = 2**20  # characters that are read at a time
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
KINDS = {  # how the files begin that are not text
    b"PK\3\4": "a zip archive (such as .docx or .epub)",
    b"PAR1": "a parquet file",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\xd0\xcf\x11\xe0": "an old Word or Excel file",
}


def plain_text(path, copy, column=None, key="text"):
    """Return the path of a file that corpus.py can read: this one, or a copy, which is written.

    copy: the path for it, without a suffix. column: the column of a CSV file that has the texts; it
    may be left out if there is only one. key: of the objects in a .jsonl file. ValueError naming
    the file if it is not a text.
    """
    with open_regular(path) as file:
        start = file.read(16)
    path = Path(path)
    suffix = path.suffix.lower()
    for signature, kind in KINDS.items():
        if start.startswith(signature):
            raise ValueError(f"{path} is {kind}, not a text: save the text in it as UTF-8")
    encoding = "utf-16" if start.startswith(UTF_16) else "utf-8-sig"
    has_rows = suffix in (".csv", ".tsv") or (suffix == ".jsonl" and key != "text")
    if not has_rows and encoding != "utf-16":
        return path
    copy = copy.with_suffix(".jsonl" if has_rows else suffix)
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            open(path, encoding=encoding, newline="") as source,
            open(copy, "w", encoding="utf-8", newline="") as target,
        ):
            if not has_rows:
                while piece := source.read(BLOCK):
                    target.write(piece)
                return copy
            lines = bounded_lines(source)
            if suffix == ".jsonl":
                texts = (text_of_line(line, f"line {i}", key) for i, line in enumerate(lines, 1))
            else:
                texts = texts_of_rows(lines, column, "\t" if suffix == ".tsv" else ",")
            for text in texts:
                target.write(json.dumps({"text": text}) + "\n")
    except UnicodeError as error:
        raise ValueError(f"{path} is not text in {encoding}: {error}") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return copy


def texts_of_rows(lines, column, delimiter):
    """Yield the texts in a column of a CSV file, whose first row names the columns."""
    csv.field_size_limit(MAX_FIELD)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names = next(rows, [])
    if column is None and len(names) != 1:
        raise ValueError(f"which of the columns {', '.join(names):.200}? say --text_column NAME")
    if column is not None and column not in names:
        raise ValueError(f"it has no column {column!r}, but {', '.join(names):.200}")
    i = 0 if column is None else names.index(column)
    for row in rows:
        if len(row) > i:  # else it is an empty line
            yield row[i]


def bounded_lines(source):
    """Yield the lines of a text file. ValueError if one is too long to be read as a whole."""
    for number in itertools.count(1):
        line = source.readline(MAX_FIELD + 1)
        if len(line) > MAX_FIELD:
            raise ValueError(f"line {number} has more than {MAX_FIELD} characters: break it up")
        if not line:
            return
        yield line


def text_of_line(line, where, key="text"):
    """Return the text of a line of a .jsonl file: {"text": "Once upon a time"}."""
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get(key), str):
        raise ValueError(f'{where} is not an object with a string "{key}"')
    return row[key]
