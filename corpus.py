"""Text files to ids on disk: what train.py trains on and evaluate.py measures.

A text may be larger than memory: it is read a megabyte at a time, and its ids go to a file, which
is then mapped. Its last part is held out, to see how well the model predicts what it has not seen.
"""

import codecs
import os
import re
from itertools import compress
from pathlib import Path

import numpy as np

from encoder import Encoder

BLOCK = 2**20  # bytes of a text that are read at a time
COPIES = 16  # of the text, each cut into other tokens, with merge dropout


def split_files(paths, val_fraction):
    """-> two lists of (path, start, stop) in bytes: the files, and their held-out tail."""
    sizes = [os.path.getsize(path) for path in paths]
    for path, size in zip(paths, sizes):
        if size == 0:
            raise ValueError(f"{path}: the file is empty")
    cut, start, parts = int(sum(sizes) * (1 - val_fraction)), 0, ([], [])
    for path, size in zip(paths, sizes):
        middle = min(max(cut - start, 0), size)
        with open(path, "rb") as file:  # not inside a character: 10xxxxxx continues one
            file.seek(middle)
            while (byte := file.read(1)) and byte[0] >> 6 == 2:
                middle += 1
        parts[0].extend([(path, 0, middle)] * (middle > 0))
        parts[1].extend([(path, middle, size)] * (middle < size))
        start += size
    return parts


def read_text(path, start, stop, lowercase=False, stopwords=()):
    """Bytes start to stop of a UTF-8 file as texts of about a megabyte, cut where words end."""
    drop = stopwords and re.compile(rf"\b(?:{'|'.join(map(re.escape, stopwords))})\b ?", re.I)
    with open(path, "rb") as file:
        if start > 0 or file.read(3) != codecs.BOM_UTF8:  # which is no part of the text
            file.seek(start)
        rest = b""
        while block := file.read(min(BLOCK, stop - file.tell())):
            rest += block
            cuts = list(re.finditer(rb"\S[ \n]", rest)) if file.tell() < stop else []
            end = cuts[-1].end() - 1 if cuts else len(rest) * (file.tell() == stop)
            try:
                text = rest[:end].decode("utf-8")
            except UnicodeDecodeError as error:
                at = file.tell() - len(rest) + error.start
                raise ValueError(f"{path}: byte {at} is not UTF-8: convert the file") from None
            text = text.lower() if lowercase else text
            yield drop.sub("", text) if drop else text
            rest = rest[end:]


def read_stopwords(path):
    """The words of a file, which read_text leaves out."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").split() if path else ()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None


def encode_parts(parts, encoder, **text_options):
    """Yield the ids of parts of files as arrays, and <|endoftext|> between two files."""
    for i, part in enumerate(parts):
        if i and encoder.eot is not None:
            yield np.array([encoder.eot], id_type(encoder))
        for text in read_text(*part, **text_options):
            yield np.array(encoder.encode(text), id_type(encoder))


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
