"""Files of a vocabulary: vocab.json with merges.txt, encoder.json with vocab.bpe, tokenizer.json.

A token is spelled with one visible character for each of its bytes: " low" is "Ġlow", and "é",
two bytes of UTF-8, is "Ã©".
"""

import contextlib
import gc
import hashlib
import json
from itertools import chain, filterfalse
from pathlib import Path
from typing import NamedTuple

from model_files.files import read_json, write_atomic

END_OF_TEXT = "<|endoftext|>"
# SHA-256 of the vocabulary that all released sizes share: it needs no check, which takes 30 ms.
RELEASED = "00f404d36600411e497efb3df08d3b4e094f0820e2595afcb7cbd0c4353d4fcb"

VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHAR_OF_BYTE = {byte: chr(byte) for byte in VISIBLE}
CHAR_OF_BYTE |= {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}


class Vocabulary(NamedTuple):
    """What the files say.

    ids: {spelled token: id}; merges: [(spelled token, spelled token)], the first comes first;
    added: {literal text: id}, texts beyond ids that become their id wherever they stand.
    """

    ids: dict
    merges: list
    added: dict = {}


def read_vocabulary(directory):
    """-> the first kind of vocabulary that a directory holds.

    FileNotFoundError if there is none, ValueError naming the file if one is damaged.
    """
    directory = Path(directory)
    for names in ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("tokenizer.json",):
        paths = [directory / name for name in names]
        if all(path.exists() for path in paths):
            break
    else:
        raise FileNotFoundError(
            f"{directory}: no vocab.json with merges.txt, no encoder.json with vocab.bpe, "
            "no tokenizer.json"
        )
    with paused_gc():
        vocabulary = read_tokenizer(*paths) if len(paths) == 1 else read_pair(*paths)
    content = b"".join(path.read_bytes() for path in paths)
    if vocabulary.added or hashlib.sha256(content).hexdigest() != RELEASED:
        try:
            check_vocabulary(vocabulary)
        except ValueError as error:
            raise ValueError(f"{' or '.join(map(str, paths))}: {error}") from None
    return vocabulary


@contextlib.contextmanager
def paused_gc():
    """50,000 new pairs set the collector off again and again, for a fifth of the loading time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def read_pair(ids_path, merges_path):
    """The vocabulary of vocab.json and merges.txt, or of the same under OpenAI's names."""
    ids, added = read_json(ids_path), ids_path.with_name("added_tokens.json")
    added = read_json(added) if added.exists() else {}
    merges = read_merges(merges_path)
    return Vocabulary(ids, merges, {text: i for text, i in added.items() if text not in ids})


def check_vocabulary(vocabulary):
    """ValueError if ids are not 0 to n - 1, a byte has no token, or a merge leads nowhere."""
    id_of, merges, added = vocabulary
    ids = {**added, **id_of}.values()
    if set(map(type, ids)) - {int}:
        raise ValueError("an id is not an integer")
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}, each once")
    if missing := BYTE_OF_CHAR.keys() - id_of.keys():
        raise ValueError(f"byte {BYTE_OF_CHAR[min(missing)]} has no token")
    if "" in added:
        raise ValueError("an added token is empty")
    if len(set(merges)) < len(merges):
        raise ValueError("a merge is there twice")
    tokens = chain(chain.from_iterable(merges), map("".join, merges))
    for token in filterfalse(id_of.__contains__, tokens):
        raise ValueError(f"a merge leads nowhere: {token!r:.40} has no id")


def read_merges(path):
    """Pairs of tokens, a line each; the first line may give a version instead."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if text.startswith("#version"):
        text = text.partition("\n")[2]
    text, tokens = text.strip(), text.split()
    if len(tokens) != 2 * (text.count("\n") + bool(text)):
        raise ValueError(f"{path}: not two tokens a line")
    return list(zip(tokens[::2], tokens[1::2], strict=True))


def read_tokenizer(path):
    """The vocabulary of a tokenizer.json that treats text as GPT-2 does."""
    file = read_json(path)
    try:
        model, cut = file["model"], file.get("pre_tokenizer") or {"type": "ByteLevel"}
        ids = dict(model["vocab"])
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        merges = [(str(a), str(b)) for a, b in pairs]
        added = {str(token["content"]): token["id"] for token in file.get("added_tokens") or []}
        same_cut = cut["type"] == "ByteLevel" and cut.get("use_regex", True)
        same_text = not cut.get("add_prefix_space") and not file.get("normalizer")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a byte-level BPE vocabulary ({fault:.80})") from None
    if not same_cut or not same_text:
        raise ValueError(f"{path}: changes text or cuts words otherwise than GPT-2 does")
    return Vocabulary(ids, merges, {text: id_ for text, id_ in added.items() if text not in ids})


def save_vocabulary(vocabulary, directory):
    """Write vocab.json and merges.txt, and added_tokens.json if and only if there are any."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    merges = "".join(f"{a} {b}\n" for a, b in vocabulary.merges)
    texts = {"vocab.json": json.dumps(vocabulary.ids), "merges.txt": f"#version: 0.2\n{merges}"}
    if vocabulary.added:
        texts["added_tokens.json"] = json.dumps(vocabulary.added)
    else:
        (directory / "added_tokens.json").unlink(missing_ok=True)
    for name, text in texts.items():
        with write_atomic(directory / name) as file:
            file.write(text.encode())
