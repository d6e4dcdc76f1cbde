"""Find texts, read them, and turn them into ids, for train.py and evaluate.py.

A text is given as one of these:

    shakespeare.txt     a file; in a .jsonl file each line is an object with a "text"
    notes               a directory: every .txt and .md below it that is not empty, sorted
    https://host/file   an address: fetched once, and kept in models_dir under texts
    -                   standard input, or another pipe: kept in a file while it is needed

A text may be larger than memory: it is read a megabyte at a time, and its ids stay in a file, of
which np.memmap loads only the parts in use. The end of the text is held out, to measure how well
the model predicts new text.

In the ids, an <|endoftext|> stands between two files, between two lines of a .jsonl file, and where
a file itself contains one (a line break right after it belongs to it). From it, the model learns
where a text ends. It still sees the text before, but it learns that this does not help.
"""

import hashlib
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
from training.formats import plain_text, text_of_line

TEXT_HELP = (
    'text files, directories (each .txt and .md below), .jsonl files with a "text" per line, '
    ".csv files, http(s) addresses, - for standard input"
)

# ==== Finding texts =============================================================================


def find_texts(names, models_dir, keep, text_column=None, text_key="text"):
    """Return the paths of the files that the names stand for, in the same order.

    keep: the directory for copies, piped-text-N, of pipes, which can be read only once, and of
    files in other formats (see formats.py, also for text_column and text_key).
    """
    paths = []  # pairs of a path and the name of the text in errors
    for name in map(str, names):
        if is_address(name):
            paths.append((fetch_text(name, Path(models_dir) / "texts"), None))
        elif os.path.isdir(name):
            paths += [(path, None) for path in files_below(Path(name))]
        elif name == "-" or (os.path.exists(name) and not os.path.isfile(name)):  # a pipe
            shown = "standard input" if name == "-" else name
            paths.append((keep_text(name, Path(keep) / f"piped-text-{len(paths)}", shown), shown))
        else:
            paths.append((name, None))
    is_table = (str(path).lower().endswith((".csv", ".tsv")) for path, _ in paths)
    if text_column and not any(is_table):
        raise ValueError("--text_column has no effect: no text is a .csv or a .tsv file")
    options = text_column, text_key
    return [
        plain_text(path, Path(keep) / f"piped-text-{i}", *options, shown)
        for i, (path, shown) in enumerate(paths)
    ]


def is_address(name):
    return re.match("https?://", name, re.I) is not None


def keep_text(name, path, shown):
    """Copy everything from a pipe into a file, and return its path. shown: its name in errors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(cli.open_bytes(name), file)
        if file.tell() == 0:
            raise ValueError(f"{shown} is empty")
    return path


def files_below(directory):
    """Return the .txt and .md files below a directory that are not empty."""
    texts = (path for path in directory.rglob("*") if path.suffix.lower() in (".txt", ".md"))
    paths = sorted(path for path in texts if path.is_file() and path.stat().st_size > 0)
    if not paths:
        raise ValueError(f"{directory}: there is no .txt and no .md file below it")
    return paths


def fetch_text(address, directory):
    """Return the path of a copy of the text at an address, and fetch it if there is none.

    Its name depends on the address without credentials, because a run does not keep those.
    """
    kept = files.without_credentials(address)
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(kept).path.split("/")[-1]))[-80:] or "text"
    digest = hashlib.sha256(kept.encode()).hexdigest()[:8]  # many texts are called input.txt
    path = directory / f"{digest}-{name}"
    if not path.exists():
        with files.lock(directory):
            files.remove_temporary(directory)
            if not path.exists():  # another process may have fetched it
                with files.write_atomic(path) as file:
                    hub.receive(hub.Server(address), "", file, path.name)
    return path


def forget_credentials(address, models_dir):
    """Return an address without credentials. If it has some, fetch the text first, with them."""
    kept = files.without_credentials(address)
    if kept != address:
        fetch_text(address, Path(models_dir) / "texts")
    return kept


# ==== Reading ===================================================================================

BLOCK = 2**20  # This many bytes are read at a time.
MAX_REST = 2**20  # If no word ends in more bytes than this, the text is cut inside the word.
MAX_LINE = 2**24  # A line of more bytes is refused.
BOUNDARY = re.compile(re.escape(END_OF_TEXT) + "(?:\r?\n)?")  # It separates two texts in a file.
BOUNDARY_BYTES = re.compile(BOUNDARY.pattern.encode())
MAX_BOUNDARY = len(END_OF_TEXT) + 2
WHOLE_WORDS = re.compile(
    rb"""
    .*           # as much as possible, up to the end of a word. That is
    (?<=\S)      # after a visible character
    (?<!\|>)     # (except the end of an <|endoftext|>, which may include a line break)
    (?=[\x20\n]) # and before a space or line break
    """,
    re.DOTALL | re.VERBOSE,
)
CHANGES = ("lowercase", "stopwords", "literal_endoftext")  # These are options of split_texts.


def split_files(paths, val_fraction):
    """Return two lists of parts of files, (path, start, stop) in bytes: to train on, and held out.

    All files together count as one text. Its end is held out: part of one file, and later files.
    """
    sizes = [os.path.getsize(path) for path in paths]
    if sum(sizes) == 0:
        raise ValueError(f"{paths[0]}: the file is empty")
    n_left = int(sum(sizes) * (1 - val_fraction))  # bytes to train on, in this file and later ones
    train_parts, val_parts = [], []
    for path, size in zip(paths, sizes):
        if size == 0:
            continue
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


def place_to_cut(file, path, offset):
    """Return an offset near the given one at which a file can be cut.

    A .jsonl file is cut at the end of a line, others never inside a boundary or a character.
    """
    if is_jsonl(path):
        if offset == 0:
            return 0
        file.seek(offset - 1)  # if a line starts at offset, this reads the line break before it
        return offset - 1 + len(read_line(file))
    start = max(offset - MAX_BOUNDARY, 0)
    file.seek(start)
    for match in BOUNDARY_BYTES.finditer(file.read(2 * MAX_BOUNDARY)):
        if match.start() < offset - start < match.end():
            return start + match.start()
    file.seek(offset)
    for byte in file.read(3):
        if byte >> 6 != 0b10:  # 10xxxxxx continues a character
            break
        offset += 1
    return offset


def is_jsonl(path):
    return str(path).lower().endswith(".jsonl")


def read_texts(parts, **changes):
    """Yield pieces of the texts in parts of files, with None between two texts, and show a bar.

    changes: keyword arguments of split_texts.
    """
    n_bytes = sum(stop - start for _, start, stop in parts)
    bar = tqdm(desc="reading", total=n_bytes, unit="B", unit_scale=True, leave=False, disable=None)
    is_open = False  # whether the last thing that was yielded is a piece of text
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


def split_texts(
    piece, lowercase=False, stopwords=(), literal_endoftext=False, special_tokens=False
):
    """Yield the texts in a piece of text, and None for each <|endoftext|> between them.

    lowercase: change the texts to lower case; stopwords: leave out these words; literal_endoftext:
    read <|endoftext|> as ordinary text; special_tokens: keep a line break after it.
    """
    piece = piece.replace("\r\n", "\n")  # Windows ends a line with both characters.
    texts = [piece]
    if not literal_endoftext:
        texts = piece.split(END_OF_TEXT) if special_tokens else BOUNDARY.split(piece)
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

    A piece is the "text" of a line in a .jsonl file, a line of another file if by_line, otherwise
    about a megabyte. begins_text: whether a text begins with it; size: its bytes in the file.
    """
    split = read_lines if by_line or is_jsonl(path) else read_blocks
    offset = start
    with open(path, "rb") as file:
        file.seek(start)
        for data in split(file, stop):
            try:
                piece = data.decode()
            except UnicodeDecodeError as error:
                at = offset + error.start
                raise ValueError(f"{path}: byte {at} is not UTF-8: convert the file") from None
            if is_jsonl(path):
                yield True, text_of_line(piece, f"{path}: the line at byte {offset}"), len(data)
            else:
                yield offset == start, piece, len(data)
            offset += len(data)


def read_lines(file, stop):
    """Yield the lines of a binary file, from its current position to byte stop."""
    while file.tell() < stop:
        yield read_line(file)


def read_line(file):
    """Return the next line of a binary file. ValueError if it is longer than MAX_LINE."""
    start = file.tell()
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        advice = f"has more than {MAX_LINE} bytes: break it into shorter lines"
        raise ValueError(f"{file.name}: the line at byte {start} {advice}")
    return line


def read_blocks(file, stop):
    """Yield the same bytes as read_lines, but about a megabyte at a time, cut where a word ends."""
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
    """Return where to cut bytes in which no word ends: before the last character, or before the
    possible beginning of an <|endoftext|>. The cut may change the ids next to it."""
    end = len(data) - 1
    while end > 0 and data[end] >> 6 == 0b10:  # 10xxxxxx continues a character
        end -= 1
    start = data.rfind(b"<", len(data) - MAX_BOUNDARY)
    return min(start, end) if start > 0 else end


def read_stopwords(path):
    """Return the words in a file, for split_texts to leave out."""
    try:
        return files.read_bytes(path).decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): convert the file") from None


# ==== To ids ====================================================================================

PIECE = 2**16  # If no word ends in this many characters, the text is cut inside the word.
COPIES = 16  # Merge dropout makes this many copies of the text, each split into tokens differently.


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
    """Return the ids of a text. None, the end of a text, becomes <|endoftext|> if there is one."""
    if text is not None:
        return list(chain.from_iterable(map(encoder.encode, bounded_pieces(text))))
    return [] if encoder.eot is None else [encoder.eot]


def bounded_pieces(text):
    """Yield a text, in pieces if it has very long words: these are cut, since merging the bytes of
    a word takes a hundred times as much memory as the word."""
    start = end = 0  # text[start:end] will be part of the next piece
    while end + 2 * PIECE < len(text):
        boundary = FIND_BOUNDARY(text, end + PIECE, end + 2 * PIECE)
        if boundary:  # a word ends here
            end = boundary.end() - 1
        else:
            end += 2 * PIECE
            yield text[start:end]
            start = end
    yield text[start:]


def id_type(encoder):
    return np.uint16 if encoder.n_vocab <= 2**16 else np.uint32


def segmentations(encoder, share, rng):
    """Yield encoders that split words into tokens in different ways: merge dropout.

    The first encoder lacks this share of the merges, each later one lacks fewer, and the last one
    is the given encoder. " low" may be one token; or " l", "ow" without the merge of these two; or
    " l", "o", "w" without that of "o" and "w", too. Text in several spellings is harder to learn by
    heart. Source: Provilkov et al. 2020, "BPE-Dropout", where each word lacks merges of its own.
    """
    merges = encoder.vocabulary.merges
    if share > 0:
        for i in range(COPIES - 1):
            kept = rng.random(len(merges)) >= share * (1 - i / (COPIES - 1))
            fewer = encoder.vocabulary._replace(merges=list(compress(merges, kept)))
            yield Encoder(fewer, encoder.n_vocab)
    yield encoder
