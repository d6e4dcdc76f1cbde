"""Read and save the files of a vocabulary: tokenizer.json, or vocab.json with merges.txt.

They are read as transformers.AutoTokenizer reads them. It has two classes: GPT2Tokenizer takes ids
and merges from tokenizer.json, and all other settings from tokenizer_config.json;
PreTrainedTokenizerFast takes everything from tokenizer.json. Files are refused if they contradict
each other, if versions of transformers read them differently, or if their rules are not GPT-2's.
"""

import contextlib
import gc
import json
from itertools import filterfalse
from pathlib import Path
from typing import NamedTuple

from model_files import END_OF_TEXT
from model_files.files import (
    MAX_JSON,
    MAX_SETTINGS,
    MAX_VALUES,
    read_bytes,
    read_json,
    write_atomic,
)

MAIN_FILES = (  # {name in this module: name on disk}. The first set whose files all exist is read.
    {"tokenizer.json": "tokenizer.json"},
    {"vocab.json": "vocab.json", "merges.txt": "merges.txt"},
    {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"},  # OpenAI's names
)
SIDE_FILES = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FILES = ("tokenizer.json", "vocab.json", "merges.txt", *SIDE_FILES)
MAX_ADDED = 200_000  # All added tokens, joined in one pattern, may have this many characters.
GPT2_CLASSES = None, "GPT2Tokenizer", "GPT2TokenizerFast"
FAST_CLASSES = "PreTrainedTokenizerFast", "TokenizersBackend"  # The second is its new name.
UNUSUAL = (  # For GPT-2, these keys of "model" in tokenizer.json are false, null or missing.
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)


class Vocabulary(NamedTuple):
    """A vocabulary. Tokens are spelled with the byte alphabet of encoder.py.

    ids: {token: id}; merges: [(token, token), ...], in the order in which they were learned; added:
    {text: AddedToken}, which may have ids beyond those in ids; add_prefix_space: every text gets a
    space in front; files: {name: bytes} of the files that were read; source: for error messages.
    """

    ids: dict
    merges: list
    added: dict = {}
    add_prefix_space: bool = False
    files: dict = {}
    source: str = "the vocabulary"

    def is_plain(self):
        """Return whether text becomes ids by GPT-2's own rules."""
        return not self.add_prefix_space and self.added.keys() <= {END_OF_TEXT}


def read_vocabulary(directory, is_released=False):
    """Return the Vocabulary of a directory.

    is_released: prefer OpenAI's names, then vocab.json with merges.txt, and read no side files.
    FileNotFoundError if the files are missing, ValueError naming the file if one is damaged or has
    rules that are not GPT-2's.
    """
    directory = Path(directory)
    paths = find_files(directory, is_released)
    with paused_gc():
        limits = dict.fromkeys(SIDE_FILES, MAX_SETTINGS)
        files = {name: read_bytes(path, limits.get(name, MAX_JSON)) for name, path in paths.items()}
        contents = {
            name: read_json(paths[name], data)
            for name, data in files.items()
            if name != "merges.txt"
        }
        if "tokenizer.json" in contents:
            ids, merges = read_tokenizer(paths["tokenizer.json"], contents["tokenizer.json"])
            source = paths["tokenizer.json"]
        else:
            ids = contents["vocab.json"]
            merges = read_merges(paths["merges.txt"], files["merges.txt"], ids)
            source = f"{paths['vocab.json']} or {paths['merges.txt']}"
        try:
            check_vocabulary(ids, merges)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    is_fast, add_prefix_space = read_settings(directory, contents)
    added = {}
    if paths.keys() != {"vocab.json", "merges.txt"} or END_OF_TEXT not in ids:
        from model_files.added_tokens import read_added  # GPT-2 itself does not need it.

        try:
            added = read_added(paths, contents, ids, is_fast)
        except (AttributeError, KeyError, TypeError) as error:
            where = " or ".join(map(str, paths.values()))
            raise ValueError(f"{where}: damaged added tokens ({error!r:.80})") from None
        if (n_chars := sum(map(len, added))) > MAX_ADDED:
            fault = f"the added tokens have {n_chars} characters, more than {MAX_ADDED}"
            raise ValueError(f"{directory}: {fault}")
    return Vocabulary(ids, merges, added, add_prefix_space, files, str(source))


def holds_vocabulary(directory):
    """Return whether a directory has a vocabulary that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return bool(read_vocabulary(directory))
    return False


def find_files(directory, is_released):
    """Return {name: path} of the files that define the vocabulary."""
    kinds = reversed(MAIN_FILES) if is_released else MAIN_FILES
    for kind in kinds:
        paths = {name: directory / file for name, file in kind.items()}
        if all(path.exists() for path in paths.values()):
            if not is_released:
                side = {name: directory / name for name in SIDE_FILES}
                paths |= {name: path for name, path in side.items() if path.exists()}
            return paths
    path = directory / "tokenizer_config.json"
    if path.exists():
        check_class(path, read_json(path).get("tokenizer_class"))
    for path in (*directory.glob("vocab.txt"), *directory.glob("*.model")):  # SentencePiece's
        raise ValueError(f"{path} is not of GPT-2's tokenizer, and no other is supported")
    raise FileNotFoundError(
        f"{directory} has no vocab.json with merges.txt, no encoder.json with vocab.bpe and no "
        "tokenizer.json: copy them from where the model was trained, or give --tokenizer MODEL"
    )


def check_class(path, name):
    """Raise ValueError unless a tokenizer class is GPT-2's."""
    if name not in GPT2_CLASSES + FAST_CLASSES:
        raise ValueError(f"{path}: tokenizer_class {name!r:.40} is not GPT-2's tokenizer")


@contextlib.contextmanager
def paused_gc():
    """Pause the garbage collector, which would search 50,000 new tuples again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def check_vocabulary(ids, merges):
    """Raise ValueError unless each token has an id of its own and each merge makes a token."""
    if {*map(type, ids.values())} != {int}:
        raise ValueError("an id is not an integer")
    if min(ids.values()) < 0 or max(ids.values()) > MAX_VALUES:
        raise ValueError(f"an id is not between 0 and {MAX_VALUES}")
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{len(ids)} tokens have {len(set(ids.values()))} ids: two share one")
    for token in filterfalse(ids.__contains__, map("".join, merges)):
        raise ValueError(f"a merge makes {token!r:.40}, which is not a token")


def read_merges(path, data, ids):
    """Return the pairs of tokens, one per line. The first line may be a version instead.

    The tokens are the same str objects as in ids, which saves 10 MB.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if text.startswith("#version"):
        text = text.partition("\n")[2]
    text = text.strip()
    n_lines = text.count("\n") + 1 if text else 0
    if n_lines > MAX_VALUES:
        raise ValueError(f"{path}: it has {n_lines} merges, more than {MAX_VALUES}")
    tokens = text.split(maxsplit=2 * n_lines)
    if len(tokens) != 2 * n_lines:
        raise ValueError(f"{path}: a line does not hold two tokens")
    known = dict(zip(ids, ids))
    try:
        tokens = [known[token] for token in tokens]
    except KeyError as error:
        raise ValueError(f"{path}: a merge has {error!s:.40}, which is not a token") from None
    return list(zip(tokens[::2], tokens[1::2]))


def read_tokenizer(path, file):
    """Return the ids and merges of a tokenizer.json. ValueError if its rules are not GPT-2's."""
    try:
        model, post = file["model"], file.get("post_processor")
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"its type is {model['type']}")
        ids = dict(model["vocab"].items())
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        known = dict(zip(ids, ids))
        merges = [(known[a], known[b]) for a, b in pairs]
        is_usual = {
            **{f"model.{name}": not model.get(name) for name in UNUSUAL},
            "normalizer": file.get("normalizer") is None,
            "pre_tokenizer": pre_tokenizer(file).get("use_regex", True) is True,
            "post_processor": post is None or not adds_tokens(post),
            "decoder": not file.get("decoder") or file["decoder"]["type"] == "ByteLevel",
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a byte-level BPE vocabulary ({fault:.80})") from None
    for name, usual in is_usual.items():
        if not usual:
            raise ValueError(f"{path}: {name} is not GPT-2's, and no other is supported")
    return ids, merges


def pre_tokenizer(file):
    """Return the settings of the ByteLevel pre-tokenizer, alone or in a Sequence of one."""
    settings = file.get("pre_tokenizer") or {"type": "ByteLevel"}
    if settings.get("type") == "Sequence" and len(settings["pretokenizers"]) == 1:
        settings = settings["pretokenizers"][0]
    return settings if settings.get("type") == "ByteLevel" else {"use_regex": False}


def adds_tokens(post):
    """Return whether a post-processor adds tokens to a text. ByteLevel only adjusts offsets."""
    if post["type"] == "Sequence":
        return any(map(adds_tokens, post["processors"]))
    if post["type"] == "TemplateProcessing":
        return [name for piece in post["single"] for name in piece] != ["Sequence"]
    return post["type"] != "ByteLevel"


def read_settings(directory, contents):
    """Return whether transformers uses PreTrainedTokenizerFast, and add_prefix_space."""
    path = directory / "tokenizer_config.json"
    settings, tokenizer = contents.get(path.name, {}), contents.get("tokenizer.json")
    name = settings.get("tokenizer_class")
    is_fast = name in FAST_CLASSES
    check_class(path, name)
    if is_fast and not tokenizer:
        raise ValueError(f"{path}: tokenizer_class {name} reads tokenizer.json, which is missing")
    config = directory / "config.json"
    if not name and config.exists():
        other_name = read_json(config).get("tokenizer_class")
        if other_name not in GPT2_CLASSES:
            raise ValueError(f"{config}: tokenizer_class {other_name!r:.40} is not GPT-2's")
    refused = ["split_special_tokens", "fast_tokenizer_files"]
    if not tokenizer:
        refused += ["add_bos_token", "add_eos_token"]
    for name in filter(settings.get, refused):
        raise ValueError(f"{path}: {name} is {settings[name]!r:.40}, which is not supported")
    if not is_fast:
        return False, bool(settings.get("add_prefix_space"))
    for name in ("pre_tokenizer", "decoder"):
        if not tokenizer.get(name):
            raise ValueError(f"{directory / 'tokenizer.json'}: {name} is missing")
    add_prefix_space = bool(pre_tokenizer(tokenizer).get("add_prefix_space"))
    if settings.get("add_prefix_space") not in (None, add_prefix_space):
        raise ValueError(f"{path}: add_prefix_space contradicts tokenizer.json")
    return True, add_prefix_space


def vocabulary_files(vocabulary):
    """Return {name: bytes} of the files that the vocabulary was read from, or else of new ones."""
    merges = "".join(f"{a} {b}\n" for a, b in vocabulary.merges)
    return vocabulary.files or {
        "vocab.json": json.dumps(vocabulary.ids).encode(),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
    }


def save_vocabulary(vocabulary, directory):
    """Write the files of a vocabulary. ValueError if another file there would change its ids."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = vocabulary_files(vocabulary)
    for name in FILES:
        if name not in files and (directory / name).exists():
            raise ValueError(f"{directory / name} belongs to another vocabulary: move it away")
    for name, data in files.items():
        with write_atomic(directory / name) as file:
            file.write(data)
