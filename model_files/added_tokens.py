"""Added tokens: texts such as <|user|> that become one id wherever they stand in a text.

GPT-2 itself has none but <|endoftext|>. These files may name those of other models:

tokenizer.json           added_tokens: [{"id": 50257, "content": "<|user|>", "lstrip": false, ...}]
tokenizer_config.json    added_tokens_decoder: {"50257": {"content": "<|user|>", ...}}
                         pad_token: "<pad>", and so on; additional_special_tokens: ["<a>", ...]
special_tokens_map.json  the same as these two
added_tokens.json        {"<|user|>": 50257}
"""

import re
from itertools import count
from typing import NamedTuple

import regex

from model_files import END_OF_TEXT
from model_files.unicode16 import UNASSIGNED

PURPOSES = [f"{purpose}_token" for purpose in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


class AddedToken(NamedTuple):
    """A text that becomes its id before the rest of the text is split into words.

    lstrip, rstrip: it takes the white space before it, after it; single_word: it counts only where
    no letter, digit or _ is next to it; normalized: it is searched for after the others.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


# ==== In a text =================================================================================

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
FIND_LETTER = regex.compile(rf"[\w--[{UNASSIGNED}]]", regex.VERSION1).search


def encode(text, encoder):
    """Return the ids of a text in which added tokens may stand."""
    ids = []
    for part in split_at_added(text, encoder.vocabulary):
        if isinstance(part, str):
            ids += encoder.encode_words(part)
        elif part.id < encoder.n_vocab:
            ids.append(part.id)
        else:
            token = encoder.tokens[part.id]
            raise ValueError(f"{token!r} is id {part.id}: the model has {encoder.n_vocab} ids")
    return ids


def split_at_added(text, vocabulary):
    """Return the parts of a text: "Hi<|user|>!" -> ["Hi", AddedToken(50257), "!"].

    If the vocabulary says so, each part that is text begins with a space.
    """
    parts = [text] if text else []
    for normalized in (False, True):
        added = {
            text: token
            for text, token in vocabulary.added.items()
            if token.normalized == normalized and text != END_OF_TEXT
        }
        if added:
            parts = [new for part in parts for new in split_part(part, added)]
    if vocabulary.add_prefix_space:
        parts = [with_space(part) for part in parts]
    return parts


def with_space(part):
    return " " + part if isinstance(part, str) and not part.startswith(" ") else part


def split_part(part, added):
    """Yield what a part becomes when it is split at these added tokens, {text: AddedToken}."""
    if not isinstance(part, str):
        yield part
        return
    longest_first = sorted(added, key=len, reverse=True)
    end = 0  # of the last added token, with the white space that it takes
    for match in re.finditer("|".join(map(re.escape, longest_first)), part):
        token = added[match[0]]
        start, stop = match.span()
        neighbours = part[max(start - 1, 0) : start] + part[stop : stop + 1]
        if start < end or (token.single_word and FIND_LETTER(neighbours)):
            continue
        while token.lstrip and start > end and part[start - 1] in SPACES:
            start -= 1
        while token.rstrip and stop < len(part) and part[stop] in SPACES:
            stop += 1
        if start > end:
            yield part[end:start]
        yield token
        end = stop
    if end < len(part):
        yield part[end:]


# ==== In files ==================================================================================


def read_added(paths, contents, ids, is_fast):
    """Return {text: AddedToken}, which all files together define.

    paths, contents: {name of a file: its path, what it says}; ids: {token: id} of the vocabulary. A
    text that is not in it gets the next free id. is_fast: PreTrainedTokenizerFast reads the files.
    ValueError naming the file if two of them contradict each other.
    """
    tokenizer = contents.get("tokenizer.json", {})
    settings = contents.get("tokenizer_config.json", {})
    special = contents.get("special_tokens_map.json", {})
    listed = [
        added_token(paths["tokenizer.json"], entry, entry["id"])
        for entry in tokenizer.get("added_tokens") or []
    ]
    if "added_tokens_decoder" in settings:
        named = special_tokens(tokenizer, settings, {}, is_fast)
        path = paths["tokenizer_config.json"]
        more = decoder_tokens(path, settings["added_tokens_decoder"])
        lost = {text for _, text, _ in listed} - {text for _, text, _ in more} - {END_OF_TEXT}
        if lost and not is_fast:
            raise ValueError(f"{path}: added_tokens_decoder lacks {min(lost)!r:.40}")
    else:
        named = special_tokens(tokenizer, settings, special, is_fast)
        known = {(text, token.id) for _, text, token in listed}
        names = {entry["content"] for entry in named}
        more = [
            added_token(
                paths["added_tokens.json"], {"content": text, "normalized": text not in names}, id_
            )
            for text, id_ in contents.get("added_tokens.json", {}).items()
            if (text, id_) not in known
        ]
    more.sort(key=by_id)
    stated = listed + more
    if not is_fast:
        stated.sort(key=by_id)
    added, new = {}, count(len(ids))
    for path, text, token in stated:
        if text not in added:
            added[text] = token._replace(id=ids[text] if text in ids else next(new))
        if token.id != added[text].id:
            raise ValueError(
                f"{path}: added token {text!r:.40} has the id {token.id}, but gets {added[text].id}"
            )
        if token != added[text]:
            raise ValueError(f"{path}: added token {text!r:.40} contradicts tokenizer.json")
    for entry in named:
        _, text, token = added_token("a special token", entry)
        if text not in added:
            added[text] = token._replace(id=ids[text] if text in ids else next(new))
    return added


def decoder_tokens(path, decoder):
    return [
        added_token(path, entry, int(id_) if id_.isdecimal() else id_)
        for id_, entry in decoder.items()
    ]


def added_token(path, entry, id_=0):
    """Return (path, text, AddedToken) of a dict that describes an added token."""
    text = entry["content"]
    flags = [entry.get(name, False) for name in ("lstrip", "rstrip", "single_word")]
    flags.append(entry.get("normalized", not entry.get("special", True)))
    if type(text) is not str or not text or {*map(type, flags)} != {bool} or type(id_) is not int:
        raise ValueError(f"{path}: damaged added token {entry!r:.40}")
    if text == END_OF_TEXT:
        return path, text, AddedToken(id_)
    return path, text, AddedToken(id_, *flags)


def by_id(stated):
    return stated[2].id


def special_tokens(tokenizer, settings, special, is_fast):
    """Return what the files name by a purpose, such as pad_token, as dicts with "content"."""
    defaults = {}
    if not is_fast:
        defaults = dict.fromkeys(PURPOSES[:3], END_OF_TEXT)
    elif tokenizer.get("padding"):
        defaults = {"pad_token": tokenizer["padding"]["pad_token"]}
    roles = defaults | settings | special
    others = [name for name in roles if name.endswith("_token") and name not in PURPOSES]
    named = [roles.get(name) for name in PURPOSES + others]
    lists = (
        contents.get(name)
        for contents in (settings, special)
        for name in ("extra_special_tokens", "additional_special_tokens")
    )
    extra = next(filter(None, lists), [])
    named += extra.values() if isinstance(extra, dict) else extra
    named = [{"content": token} if isinstance(token, str) else token for token in named]
    return [token for token in named if isinstance(token, dict)]  # add_bos_token is true or false
