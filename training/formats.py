"""Texts in other formats: CSV, JSON lines with another key, UTF-16. Each is copied once, a row or a
megabyte at a time, into a file that corpus.py reads: lines of {"text": ...}, or UTF-8."""

import codecs
import csv
import itertools
import json
import shutil
from pathlib import Path

from model_files.files import open_regular

MAX_FIELD = 2**24  # characters; the longest text of a row
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
KINDS = {  # {the first bytes of a file that is not text: what it is}
    b"PK\3\4": "a zip archive (such as .docx or .epub)",
    b"PAR1": "a parquet file",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed with gzip",
    codecs.BOM_UTF32_LE: "text in UTF-32",
}


def plain_text(path, copy, column=None, key="text", name=None):
    """Return the path of a file that corpus.py can read: this one, or a copy, which is written.

    copy: the path of the copy, without a suffix. column: the column of a CSV file that has the
    texts; by default its only one. key: of the texts in a .jsonl file. name: what an error calls
    the file. ValueError if the file is not a text.
    """
    name = name or path
    is_utf16 = has_utf16(path, name)
    suffix = Path(path).suffix.lower()
    is_table = suffix in (".csv", ".tsv")
    has_rows = is_table or (suffix == ".jsonl" and (is_utf16 or key != "text"))
    if not has_rows and not is_utf16:
        return path
    copy = copy.with_name(f"{copy.name}-utf8{'.jsonl' if has_rows else suffix}")
    copy.parent.mkdir(parents=True, exist_ok=True)
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    try:
        with (
            open(path, encoding=encoding, newline="") as source,
            open(copy, "w", encoding="utf-8", newline="") as target,
        ):
            if not has_rows:
                shutil.copyfileobj(source, target)
            elif is_table:
                delimiter = "\t" if suffix == ".tsv" else ","
                write_texts(target, texts_of_rows(source, column, delimiter))
            else:
                lines = enumerate(bounded_lines(source), 1)
                write_texts(target, (text_of_line(line, f"line {i}", key) for i, line in lines))
            if target.tell() == 0:
                raise ValueError("it holds no text")
    except UnicodeError as error:
        raise ValueError(f"{name} is not text in {encoding}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return copy


def has_utf16(path, name):
    """Return whether a text file is in UTF-16. ValueError if the file is not a text."""
    with open_regular(path) as file:
        start = file.read(1024)
    for signature, kind in KINDS.items():
        if start.startswith(signature):
            raise ValueError(f"{name} is {kind}, not a text: save the text in it as UTF-8")
    if start.startswith(UTF_16):
        return True
    if b"\0" in start:
        raise ValueError(f"{name} has zero bytes, so it is not a text in UTF-8: convert it")
    return False


def write_texts(target, texts):
    for text in texts:
        target.write(json.dumps({"text": text}) + "\n")


def texts_of_rows(source, column, delimiter):
    """Yield the texts in a column of a CSV file, whose first row names the columns."""
    csv.field_size_limit(MAX_FIELD)
    rows = csv.reader(bounded_lines(source), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        shown = f"{', '.join(names):.200}"
        if column and column not in names:
            raise ValueError(f"it has no column {column!r}; its columns are {shown}")
        if not column and len(names) > 1:
            raise ValueError(f"its columns are {shown}: choose one with --text_column")
        if not column and ";" in shown:
            raise ValueError(f"its only column is {shown!r}: separate columns with {delimiter!r}")
        i = names.index(column) if column else 0
        for row in filter(None, rows):  # without empty lines
            if len(row) <= i:
                raise ValueError(f"line {rows.line_num} has only {len(row)} columns")
            yield row[i]
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


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
