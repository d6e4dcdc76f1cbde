"""From texts to ids: what train.py trains on and evaluate.py measures.

A text may be given as

    shakespeare.txt     a file; in a .jsonl file each line is an object with a "text"
    notes               a directory: every .txt and .md below it that is not empty, sorted
    https://host/file   an address: fetched once, and kept in models_dir under texts
    -                   standard input, or another pipe: kept in a file while it is needed

and may be larger than memory: it is read a megabyte at a time, and its ids stay in a file, of which
the system loads what is used (np.memmap).
The last part of it is held out, to measure how well the model predicts new text.

Between two texts the ids have an <|endoftext|>: between two files, between two lines of a .jsonl
file, and where a file contains it (a line break after it belongs to it). From that the model learns
where a text ends. It still sees the text before, but it learns that this does not help.
"""

import hashlib
import json
import os
import re
import shutil
from itertools import chain, compress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from tqdm import tqdm

import cli
from encoder import FIND_BOUNDARY, Encoder
from model_files import END_OF_TEXT, files, hub

TEXT_HELP = (
    'UTF-8 files, directories (each .txt and .md below), .jsonl files with a "text" per line, '
    "http(s) addresses, - for standard input"
)

# ==== Finding texts =============================================================================


def find_texts(names, models_dir, keep):
    """Return the paths of the files that the names stand for, in the same order.

    keep: the directory for what can be read only once, in files named piped-text-N.
    """
    paths = []
    for name in map(str, names):
        if is_address(name):
            paths.append(fetch_text(name, Path(models_dir) / "texts"))
        elif os.path.isdir(name):
            paths += files_below(Path(name))
        elif name == "-" or (os.path.exists(name) and not os.path.isfile(name)):  # a pipe
            paths.append(keep_text(name, Path(keep) / f"piped-text-{len(paths)}"))
        else:
            paths.append(name)
    return paths


def is_address(name):
    return re.match("https?://", name, re.I) is not None


def keep_text(name, path):
    """Copy everything that comes through a pipe into a file, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(cli.open_bytes(name), file)
        if file.tell() == 0:
            raise ValueError(f"{'standard input' if name == '-' else name} is empty")
    return path


def files_below(directory):
    """Return the .txt and .md files below a directory that are not empty."""
    found = (path for path in directory.rglob("*") if path.suffix.lower() in (".txt", ".md"))
    paths = sorted(path for path in found if path.is_file() and path.stat().st_size > 0)
    if not paths:
        raise ValueError(f"{directory}: there is no .txt and no .md file below it")
    return paths


def fetch_text(address, directory):
    """Return the path of the file at an address, which is fetched unless it is already there.

    Its name depends on the address without credentials: that is all that a run keeps.
    """
    kept = files.without_credentials(address)
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(kept).path.split("/")[-1]))[-80:] or "text"
    digest = hashlib.sha256(kept.encode()).hexdigest()[:8]  # many files are called input.txt
    path = directory / f"{digest}-{name}"
    if not path.exists():
        with files.lock(directory):
            files.remove_temporary(directory)
            if not path.exists():  # another process may have fetched it
                with files.write_atomic(path) as file:
                    hub.receive(hub.Server(address), "", file, path.name)
    return path


def forget_credentials(address, models_dir):
    """Return an address without credentials, after what needs them has been fetched."""
    kept = files.without_credentials(address)
    if kept != address:
        fetch_text(address, Path(models_dir) / "texts")
    return kept


# ==== Reading ===================================================================================

BLOCK = 2**20  # bytes that are read at a time
MAX_REST = 2**20  # bytes; a longer part of a text in which no word ends is cut
MAX_LINE = 2**24  # bytes; the longest line that is read as a whole
BOUNDARY = re.compile(re.escape(END_OF_TEXT) + "(?:\r?\n)?")  # between two texts in a file
BOUNDARY_BYTES = re.compile(BOUNDARY.pattern.encode())
MAX_BOUNDARY = len(END_OF_TEXT) + 2
WHOLE_WORDS = re.compile(
    rb"""
    .*           # as much as possible, up to a place
    (?<=\S)      # after a visible character
    (?<!\|>)     # that does not end an <|endoftext|>, to which a line break after it belongs
    (?=[\x20\n]) # and before a space or line break: a word ends there
    """,
    re.DOTALL | re.VERBOSE,
)
CHANGES = ("lowercase", "stopwords", "literal_endoftext")  # options of split_texts


def split_files(paths, val_fraction):
    """Return two lists of parts, (path, start, stop) in bytes: to train on, and held out.

    Held out is the last part of all bytes together: the end of one file, and whole files after it.
    """
    sizes = [os.path.getsize(path) for path in paths]
    n_left = int(sum(sizes) * (1 - val_fraction))  # bytes to train on, in this file and after it
    train_parts, val_parts = [], []
    for path, size in zip(paths, sizes):
        if size == 0:
            raise ValueError(f"{path}: the file is empty")
        with open(path, "rb") as file:
            first = 3 if file.read(3) == b"\xef\xbb\xbf" else 0  # skip a byte order mark
            middle = place_to_cut(file, path, min(max(n_left, 0), size))
        middle = max(middle, first)
        if first < middle:
            train_parts.append((path, first, middle))
        if middle < size:
            val_parts.append((path, middle, size))
        n_left -= size
    return train_parts, val_parts


def place_to_cut(file, path, place):
    """Return where a file can be cut, close to a place.

    That is the end of a line of a .jsonl file; otherwise not inside a boundary or a character.
    """
    if is_jsonl(path):
        if place == 0:
            return 0
        file.seek(place - 1)  # If a line starts at place, this reads the line break before it.
        return place - 1 + len(read_line(file))
    start = max(place - MAX_BOUNDARY, 0)
    file.seek(start)
    for found in BOUNDARY_BYTES.finditer(file.read(2 * MAX_BOUNDARY)):
        if found.start() < place - start < found.end():
            return start + found.start()
    file.seek(place)
    for byte in file.read(3):
        if byte >> 6 != 0b10:  # 10xxxxxx continues a character
            break
        place += 1
    return place


def is_jsonl(path):
    return str(path).lower().endswith(".jsonl")


def read_texts(parts, **changes):
    """Yield the texts in parts of files, in pieces, with None between two texts, and show a bar.

    changes: keyword arguments of split_texts.
    """
    n_bytes = sum(stop - start for _, start, stop in parts)
    bar = tqdm(desc="reading", total=n_bytes, unit="B", unit_scale=True, leave=False, disable=None)
    is_open = False  # was the last thing that we yielded a piece of text?
    with bar:
        for part in parts:
            for begins_text, piece, size in read_pieces(*part):
                if begins_text and is_open:
                    yield None
                    is_open = False
                for text in split_texts(piece, **changes):
                    yield text
                    is_open = text is not None
                bar.update(size)


def split_texts(piece, lowercase=False, stopwords=(), literal_endoftext=False):
    """Yield the texts in a piece of text, and None for each <|endoftext|>.

    lowercase: make them lower case; stopwords: leave out these words; literal_endoftext: read
    <|endoftext|> as ordinary text.
    """
    texts = [piece] if literal_endoftext else BOUNDARY.split(piece)
    words = "|".join(map(re.escape, stopwords))
    for i, text in enumerate(texts):
        if i > 0:
            yield None
        if not text:
            continue
        if lowercase:
            text = text.lower()
        if stopwords:
            text = re.sub(rf"\b(?:{words})\b ?", "", text, flags=re.I)
        yield text


def read_pieces(path, start, stop, by_line=False):
    """Yield (begins_text, piece, size) for the bytes start to stop of a file.

    A piece is the "text" of a line of a .jsonl file; of other files a line if by_line, otherwise
    about a megabyte. begins_text: whether a new text begins with it; size: its bytes in the file.
    """
    split = read_lines if by_line or is_jsonl(path) else read_blocks
    place = start
    with open(path, "rb") as file:
        file.seek(start)
        for data in split(file, stop):
            try:
                piece = data.decode()
            except UnicodeDecodeError as error:
                at = place + error.start
                raise ValueError(f"{path}: byte {at} is not UTF-8: convert the file") from None
            if is_jsonl(path):
                yield True, text_of_line(piece, f"{path}: the line at byte {place}"), len(data)
            else:
                yield place == start, piece, len(data)
            place += len(data)


def read_lines(file, stop):
    """Yield the lines of a binary file, from where it stands up to byte stop."""
    while file.tell() < stop:
        yield read_line(file)


def read_line(file):
    """Return the next line of a binary file. ValueError if it is too long to be read as a whole."""
    start = file.tell()
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        advice = f"has more than {MAX_LINE} bytes: break it into shorter lines"
        raise ValueError(f"{file.name}: the line at byte {start} {advice}")
    return line


def read_blocks(file, stop):
    """Yield the same bytes, about a megabyte at a time, split where a word ends."""
    rest = b""
    for start in range(file.tell(), stop, BLOCK):
        rest += file.read(min(BLOCK, stop - start))
        words = WHOLE_WORDS.match(rest)
        end = words.end() if words else 0
        if start + BLOCK >= stop:  # the last block
            end = len(rest)
        elif end == 0 and len(rest) > MAX_REST:
            end = last_character(rest)
        yield rest[:end]
        rest = rest[end:]


def last_character(data):
    """Return where bytes in which no word ends can be cut: before the last character, or before
    what may be the beginning of an <|endoftext|>. The ids there may differ from the whole text's.
    """
    end = len(data) - 1
    while end > 0 and data[end] >> 6 == 0b10:  # 10xxxxxx continues a character
        end -= 1
    start = data.rfind(b"<", len(data) - MAX_BOUNDARY)
    return min(start, end) if start > 0 else end


def text_of_line(line, where):
    """Return the text of a line of a .jsonl file: {"text": "Once upon a time"}."""
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(f'{where} is not an object with a string "text"')
    return row["text"]


def read_stopwords(path):
    """Return the words in a file, which split_texts can leave out."""
    try:
        return files.read_bytes(path).decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None


# ==== To ids ====================================================================================

PIECE = 2**16  # characters; where no word ends in so many of them, a text is cut
COPIES = 16  # of the text, each spelled differently, with merge dropout


def write_ids(file, parts, encoder, **changes):
    """Append the ids of parts of files to a binary file, and return how many there are."""
    n_ids = 0
    for ids in encode_parts(parts, encoder, **changes):
        file.write(ids.tobytes())
        n_ids += len(ids)
    return n_ids


def encode_parts(parts, encoder, **changes):
    """Yield the ids of parts of files as arrays. changes: keyword arguments of split_texts."""
    for text in read_texts(parts, **changes):
        yield np.array(encode_text(text, encoder), id_type(encoder))


def encode_text(text, encoder):
    """Return the ids of a text. None stands for its end: <|endoftext|>, if the model has that."""
    if text is not None:
        return list(chain.from_iterable(map(encoder.encode, bounded_pieces(text))))
    return [] if encoder.eot is None else [encoder.eot]


def bounded_pieces(text):
    """Yield a text, or pieces of it if a very long word has to be cut: merging the bytes of a word
    takes a hundred times as much memory as the word."""
    start = place = 0
    while place + 2 * PIECE < len(text):
        boundary = FIND_BOUNDARY(text, place + PIECE, place + 2 * PIECE)
        if boundary:  # a word ends here
            place = boundary.end() - 1
        else:
            place += 2 * PIECE
            yield text[start:place]
            start = place
    yield text[start:]


def id_type(encoder):
    return np.uint16 if encoder.n_vocab <= 2**16 else np.uint32


def segmentations(encoder, share, rng):
    """Yield encoders that split words into tokens in different ways: merge dropout.

    The first one lacks this share of the merges, and each after it fewer. The last one lacks none:
    it is the encoder itself. " low" may be one token, or " l", "ow" without the merge of these two,
    or " l", "o", "w" without that of "o" and "w". Text in several spellings is harder to learn by
    heart. Source: Provilkov et al. 2020, "BPE-Dropout", who drop merges for each word anew.
    """
    merges = encoder.vocabulary.merges
    if share > 0:
        for i in range(COPIES - 1):
            kept = rng.random(len(merges)) >= share * (1 - i / (COPIES - 1))
            fewer = encoder.vocabulary._replace(merges=list(compress(merges, kept)))
            yield Encoder(fewer, encoder.n_vocab)
    yield encoder
