"""Files of a vocabulary: tokenizer.json, or vocab.json with merges.txt, or encoder.json with
vocab.bpe.

A token is spelled with one visible character for each of its bytes: " low" is "Ġlow", and "é",
two bytes of UTF-8, is "Ã©". Lesson: step 1.

What the files mean is what transformers.AutoTokenizer makes of them. It has two classes for them:
GPT2Tokenizer takes ids and merges from tokenizer.json, and the rest from tokenizer_config.json;
PreTrainedTokenizerFast takes tokenizer.json as it is. A file is refused where it contradicts
another one, where the versions of transformers differ, or where its rules are not GPT-2's.
"""

import contextlib
import gc
import json
import zlib
from itertools import chain, filterfalse
from pathlib import Path
from typing import NamedTuple

from model_files.added_tokens import ADDED, CONFIG, MAP, read_added
from model_files.files import read_bytes, read_json, write_atomic

# Bytes and CRC-32 of vocab.json and merges.txt of all released sizes: they need no check, which
# takes 30 ms. Nobody is guarded against here, and hashlib would bring OpenSSL, 3 MB of it.
RELEASED = [(1042301, 0x6E35860C), (456318, 0xCF4B72C4)]

VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHAR_OF_BYTE = {byte: chr(byte) for byte in VISIBLE}
CHAR_OF_BYTE |= {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}

SIDE = (CONFIG, MAP, ADDED)
KINDS = (  # {name: the same under OpenAI's name}
    {"tokenizer.json": "tokenizer.json"},
    {"vocab.json": "vocab.json", "merges.txt": "merges.txt"},
    {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"},
)
FILES = ("tokenizer.json", "vocab.json", "merges.txt", *SIDE)
GPT2 = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class by its old and its new name
UNUSUAL = (  # keys of tokenizer.json's model that are empty or false where it is as GPT-2's
    *("dropout", "continuing_subword_prefix", "end_of_word_suffix"),
    *("byte_fallback", "ignore_merges"),
)


class Vocabulary(NamedTuple):
    """What the files say.

    ids: {spelled token: id}; merges: [(spelled token, spelled token)], the first comes first;
    added: {literal text: AddedToken}, of which those that are not in ids, too, have the ids that
    come next; add_prefix_space: each part of a text begins with a space; files: {name: bytes}, none
    where it was learned.
    """

    ids: dict
    merges: list
    added: dict = {}
    add_prefix_space: bool = False
    files: dict = {}


def read_vocabulary(directory, is_released=False):
    """-> the Vocabulary of a directory; is_released: of vocab.json and merges.txt, or as OpenAI
    calls them, whatever there is beside them.

    FileNotFoundError if there is none, ValueError naming the file if one is damaged, or says what
    is not done here.
    """
    paths = find_files(Path(directory), is_released)
    with paused_gc():
        files = {name: read_bytes(path) for name, path in paths.items()}
        said = {n: read_json(paths[n], data) for n, data in files.items() if n != "merges.txt"}
        if "tokenizer.json" in said:
            ids, merges = read_tokenizer(paths["tokenizer.json"], said["tokenizer.json"])
        else:
            ids = said["vocab.json"]
            merges = read_merges(paths["merges.txt"], files["merges.txt"], ids)
        names = [name for name in paths if name not in SIDE]
        if [(len(files[name]), zlib.crc32(files[name])) for name in names] != RELEASED:
            try:
                check_vocabulary(ids, merges)
            except ValueError as error:
                where = " or ".join(str(paths[name]) for name in names)
                raise ValueError(f"{where}: {error}") from None
    is_fast, prefix = read_settings(Path(directory), said)
    try:
        added = read_added(paths, said, ids, is_fast)
    except (AttributeError, KeyError, TypeError) as error:
        where = " or ".join(map(str, paths.values()))
        raise ValueError(f"{where}: damaged added tokens ({error!r:.80})") from None
    return Vocabulary(ids, merges, added, prefix, files)


def find_files(directory, is_released):
    """-> {name: path} of the files that say what the vocabulary is."""
    for names in KINDS[::-1] if is_released else KINDS:
        if all((directory / name).is_file() for name in names.values()):
            side = () if is_released else SIDE
            names = names | {name: name for name in side if (directory / name).is_file()}
            return {name: directory / there for name, there in names.items()}
    raise FileNotFoundError(
        f"{directory}: no vocab.json with merges.txt, no encoder.json with vocab.bpe, "
        "no tokenizer.json"
    )


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


def check_vocabulary(ids, merges):
    """ValueError if ids are not 0 to n - 1, a byte has no token, or a merge leads nowhere."""
    if set(map(type, ids.values())) - {int}:
        raise ValueError("an id is not an integer")
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}, each once")
    if missing := BYTE_OF_CHAR.keys() - ids.keys():
        raise ValueError(f"byte {BYTE_OF_CHAR[min(missing)]} has no token")
    if len(set(merges)) < len(merges):
        raise ValueError("a merge is there twice")
    tokens = chain(chain.from_iterable(merges), map("".join, merges))
    for token in filterfalse(ids.__contains__, tokens):
        raise ValueError(f"a merge leads nowhere: {token!r:.40} has no id")


def read_merges(path, data, ids):
    """Pairs of tokens, a line each; the first line may give a version instead.

    Their strings are those of ids: to have each token once saves 10 MB.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if text.startswith("#version"):
        text = text.partition("\n")[2]
    text, tokens = text.strip(), text.split()
    if len(tokens) != 2 * (text.count("\n") + bool(text)):
        raise ValueError(f"{path}: not two tokens a line")
    spelled = dict(zip(ids, ids))
    tokens = list(map(spelled.get, tokens, tokens))
    return list(zip(tokens[::2], tokens[1::2], strict=True))


def read_tokenizer(path, file):
    """The ids and merges of a tokenizer.json that treats text as GPT-2 does."""
    try:
        model, post = file["model"], file.get("post_processor")
        ids = dict(model["vocab"])
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        merges = [(str(a), str(b)) for a, b in pairs]
        is_usual = {
            "model.type": model.get("type", "BPE") == "BPE",
            **{f"model.{name}": not model.get(name) for name in UNUSUAL},
            "normalizer": file.get("normalizer") is None,
            "pre_tokenizer": pre_tokenizer(file).get("use_regex", True) is True,
            "post_processor": post is None or not adds_tokens(post),
            "decoder": not file.get("decoder") or file["decoder"]["type"] == "ByteLevel",
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a byte-level BPE vocabulary ({fault:.80})") from None
    for name in filterfalse(is_usual.get, is_usual):
        raise ValueError(f"{path}: {name} is not GPT-2's: it would give other ids or another text")
    return ids, merges


def pre_tokenizer(file):
    """What tokenizer.json says of its ByteLevel, which may be the only member of a Sequence."""
    cut = file.get("pre_tokenizer") or {"type": "ByteLevel"}
    if cut.get("type") == "Sequence" and len(cut["pretokenizers"]) == 1:
        cut = cut["pretokenizers"][0]
    return cut if cut.get("type") == "ByteLevel" else {"use_regex": False}


def adds_tokens(post):
    """Does a post-processor do more than to count characters?"""
    if post["type"] == "Sequence":
        return any(map(adds_tokens, post["processors"]))
    if post["type"] == "TemplateProcessing":
        return [name for piece in post["single"] for name in piece] != ["Sequence"]
    return post["type"] != "ByteLevel"


def read_settings(directory, said):
    """-> does AutoTokenizer take tokenizer.json as it is, and does a part begin with a space?"""
    settings, path = said.get(CONFIG, {}), directory / CONFIG
    name = settings.get("tokenizer_class")
    is_fast, is_whole = name in FAST, "tokenizer.json" in said
    if name not in GPT2 + FAST:
        raise ValueError(f"{path}: tokenizer_class {name!r:.40} is not GPT-2's")
    if is_fast and not is_whole:
        raise ValueError(f"{path}: tokenizer_class {name} reads tokenizer.json: there is none")
    config = directory / "config.json"
    named = read_json(config).get("tokenizer_class") if config.is_file() and not name else None
    if named not in GPT2:
        raise ValueError(f"{config}: tokenizer_class {named!r:.40} is not GPT-2's")
    refused = ["split_special_tokens", "fast_tokenizer_files"]
    refused += [] if is_whole else ["add_bos_token", "add_eos_token"]
    for name in filter(settings.get, refused):
        raise ValueError(f"{path}: {name} is {settings[name]!r:.40}: it would give other ids")
    prefix = bool(settings.get("add_prefix_space"))
    if is_fast:
        for name in "pre_tokenizer", "decoder":
            if not said["tokenizer.json"].get(name):
                raise ValueError(f"{directory / 'tokenizer.json'}: it has no {name}")
        prefix = bool(pre_tokenizer(said["tokenizer.json"]).get("add_prefix_space"))
        if settings.get("add_prefix_space") not in (None, prefix):
            raise ValueError(f"{path}: add_prefix_space contradicts tokenizer.json")
    return is_fast, prefix


def save_vocabulary(vocabulary, directory):
    """Write the files that it was read from, unchanged; vocab.json and merges.txt if it was not."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    merges = "".join(f"{a} {b}\n" for a, b in vocabulary.merges)
    files = vocabulary.files or {
        "vocab.json": json.dumps(vocabulary.ids).encode(),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
    }
    for name, data in files.items():
        with write_atomic(directory / name) as file:
            file.write(data)
    for name in {*FILES} - files.keys():  # of a model before
        (directory / name).unlink(missing_ok=True)
