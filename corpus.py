"""Texts to ids on disk: what train.py trains on and evaluate.py measures.

A text may be larger than memory: it is read a megabyte at a time, and its ids go to a file, which
is then mapped. Its last part is held out, to see how well the model predicts what it has not seen.

Where one text ends and the next begins, the ids have an <|endoftext|>: between two files, between
two lines of a .jsonl file, and where a file spells it out; the line break right after it belongs to
it. So no text has a say in what is learned about another, and a model learns where one ends.
"""

import json
import os
import re
from itertools import compress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from encoder import Encoder
from model_files.added_tokens import END_OF_TEXT

BLOCK = 2**20  # bytes of a text that are read at a time
COPIES = 16  # of the text, each cut into other tokens, with merge dropout
BOUNDARY = re.compile(re.escape(END_OF_TEXT) + "(?:\r?\n)?")
BOUNDARY_BYTES = re.compile(BOUNDARY.pattern.encode())
MAX_BOUNDARY = len(END_OF_TEXT) + 2
# Where a word ends, so that pieces have the whole's tokens; not inside a boundary.
CUT = re.compile(rb"\S(?<!%b)[ \n]" % re.escape(END_OF_TEXT).encode())

# ================================================================================================
# Reading
# ================================================================================================


def split_files(paths, val_fraction):
    """-> two lists of (path, start, stop) in bytes: the files, and their held-out tail.

    The tail is a share of all bytes. Of a .jsonl file it begins with the next whole line, of any
    other inside a text, at a whole character.
    """
    sizes = [os.path.getsize(path) for path in paths]
    for path, size in zip(paths, sizes):
        if size == 0:
            raise ValueError(f"{path}: the file is empty")
    cut, start, parts = int(sum(sizes) * (1 - val_fraction)), 0, ([], [])
    for path, size in zip(paths, sizes):
        with open(path, "rb") as file:
            first = 3 * (file.read(3) == b"\xef\xbb\xbf")  # a byte order mark is no text
            middle = max(place_to_cut(file, path, min(max(cut - start, 0), size)), first)
        parts[0].extend([(path, first, middle)] * (middle > first))
        parts[1].extend([(path, middle, size)] * (middle < size))
        start += size
    return parts


def place_to_cut(file, path, place):
    """-> the place, or one near to it: no line of a .jsonl file, no character and no
    <|endoftext|> is cut."""
    if is_jsonl(path):
        file.seek(max(place - 1, 0))
        return place and place - 1 + len(file.readline())
    start = max(place - MAX_BOUNDARY, 0)
    file.seek(start)
    for found in BOUNDARY_BYTES.finditer(file.read(2 * MAX_BOUNDARY)):
        if found.start() < place - start < found.end():
            return start + found.start()
    file.seek(place)
    while (byte := file.read(1)) and byte[0] >> 6 == 2:  # 10xxxxxx continues a character
        place += 1
    return place


def is_jsonl(path):
    return str(path).lower().endswith(".jsonl")


def read_texts(parts, **text_options):
    """Yield the texts in parts of files, piece by piece, and None where one ends and the next
    begins; with a bar. text_options: those of split_texts."""
    size, is_open = sum(stop - start for _, start, stop in parts), False
    bar = tqdm(desc="reading", total=size, unit="B", unit_scale=True, leave=False, disable=None)
    with bar:
        for path, start, stop in parts:
            for is_new, piece in read_pieces(path, start, stop, count=bar.update):
                if is_new and is_open:
                    yield None
                    is_open = False
                for text in split_texts(piece, **text_options):
                    yield text
                    is_open = text is not None


def split_texts(piece, lowercase=False, stopwords=(), literal_endoftext=False):
    """Yield the texts in a piece of text, in lower case and without the stop words if asked for,
    and None for each <|endoftext|>; literal_endoftext: that is a text like any other."""
    drop = stopwords and re.compile(rf"\b(?:{'|'.join(map(re.escape, stopwords))})\b ?", re.I)
    for i, text in enumerate([piece] if literal_endoftext else BOUNDARY.split(piece)):
        if i:
            yield None
        if text:
            text = text.lower() if lowercase else text
            yield drop.sub("", text) if drop else text


def read_pieces(path, start, stop, cut=None, count=lambda n_bytes: None):
    """Yield (does it begin a text?, piece) of bytes start to stop of a file: the "text" of each
    line of a .jsonl file, else what cut makes of it, by itself about a megabyte."""
    with open(path, "rb") as file:
        file.seek(start)
        place, cut = start, cut or (read_lines if is_jsonl(path) else read_blocks)
        for data in cut(file, stop):
            try:
                piece = data.decode("utf-8")
            except UnicodeDecodeError as error:
                at = place + error.start
                raise ValueError(f"{path}: byte {at} is not UTF-8: convert the file") from None
            if is_jsonl(path):
                yield True, text_of_line(piece, f"{path}: the line at byte {place}")
            else:
                yield place == start, piece
            place += len(data)
            count(len(data))


def read_lines(file, stop):
    """Yield the lines of a binary file up to a place."""
    while file.tell() < stop and (line := file.readline()):
        yield line


def read_blocks(file, stop):
    """Yield the bytes of a file up to a place, about a megabyte at a time, cut where words end."""
    rest = b""
    while block := file.read(min(BLOCK, stop - file.tell())):
        rest += block
        end = last_cut(rest) if file.tell() < stop else len(rest)
        yield rest[:end]
        rest = rest[end:]


def last_cut(data):
    """The last place where a word ends and data may be cut, or 0. It is near the end nearly always:
    to look there first takes a thousandth of the time."""
    for start in max(0, len(data) - 1000), 0:
        if cuts := list(CUT.finditer(data, start)):
            return cuts[-1].end() - 1
    return 0


def text_of_line(line, where):
    """The text of a line of a .jsonl file: {"text": "Once upon a time"} -> "Once upon a time" """
    if not line.strip():
        return ""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise ValueError(f'{where} is no object with a string "text"')
    return found["text"]


def read_stopwords(path):
    """The words of a file, which split_texts leaves out."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None


# ================================================================================================
# To ids
# ================================================================================================


def encode_parts(parts, encoder, **text_options):
    """Yield the ids of parts of files as arrays."""
    for text in read_texts(parts, **text_options):
        yield np.array(encode_text(text, encoder), id_type(encoder))


def encode_text(text, encoder):
    """The ids of a text; of None, where one ends, that of <|endoftext|>, if there is one."""
    if text is None:
        return [] if encoder.eot is None else [encoder.eot]
    return encoder.encode(text)


def id_type(encoder):
    return np.uint16 if encoder.n_vocab <= 2**16 else np.uint32


def segmentations(encoder, share, rng):
    """Yield encoders of one vocabulary: with share > 0, COPIES - 1 that lack fewer and fewer of
    the merges, at first this share; last the encoder itself.

    A text in several spellings is harder to learn by heart.
    Source: Provilkov et al. 2020, "BPE-Dropout", where each word is dealt with by itself.
    """
    merges = encoder.vocabulary.merges
    for i in range(COPIES - 1 if share else 0):
        kept = rng.random(len(merges)) >= share * (1 - i / (COPIES - 1))
        fewer = encoder.vocabulary._replace(merges=list(compress(merges, kept)))
        yield Encoder(fewer, encoder.n_vocab)
    yield encoder


def write_ids(file, parts, encoder, **text_options):
    """Append the ids of parts of files to a binary file; -> how many."""
    n_ids = 0
    for ids in encode_parts(parts, encoder, **text_options):
        file.write(ids.tobytes())
        n_ids += len(ids)
    return n_ids
