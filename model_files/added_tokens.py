"""Added tokens: texts such as <|user|> that become one id wherever they occur in a text.

GPT-2 itself has only <|endoftext|>. Other models list theirs in these files:

tokenizer.json           added_tokens: [{"id": 50257, "content": "<|user|>", "lstrip": false, ...}]
tokenizer_config.json    added_tokens_decoder: {"50257": {"content": "<|user|>", ...}}
                         pad_token: "<pad>", and so on; additional_special_tokens: ["<a>", ...]
special_tokens_map.json  pad_token, and so on; additional_special_tokens
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
    """An added token: its text is replaced by its id before the other text is split into words.

    lstrip, rstrip: it includes the white space on its left or right; single_word: it is ignored if
    a letter, a digit or _ is next to it; normalized: it is searched for after the others.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


# ==== In a text =================================================================================

# The reference tokenizers call these characters white space. Python's isspace() accepts more.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
FIND_LETTER = regex.compile(rf"[\w--[{UNASSIGNED}]]", regex.VERSION1).search


def encode(text, encoder, special_tokens=False):
    """Return the ids of a text in which added tokens may stand, and <|endoftext|> if
    special_tokens."""
    added = {x: token for x, token in encoder.vocabulary.added.items() if x != END_OF_TEXT}
    if special_tokens:
        added[END_OF_TEXT] = AddedToken(encoder.eot)
    ids = []
    for part in split_at_added(text, added, encoder.vocabulary.add_prefix_space):
        if isinstance(part, str):
            ids += encoder.encode_words(part)
        elif part.id < encoder.n_vocab:
            ids.append(part.id)
        else:
            token, n_vocab = encoder.tokens[part.id], encoder.n_vocab
            raise ValueError(f"added token {token!r} is id {part.id}: the model has {n_vocab} ids")
    return ids


def split_at_added(text, added, add_prefix_space):
    """Return the parts of a text: "Hi<|user|>!" -> ["Hi", AddedToken(50257), "!"].

    added: {text: AddedToken}; add_prefix_space: each part that is text begins with a space.
    """
    parts = [text] if text else []
    for normalized in (False, True):
        some = {x: token for x, token in added.items() if token.normalized == normalized}
        if some:
            parts = [new for part in parts for new in split_part(part, some)]
    if add_prefix_space:
        parts = [with_space(part) for part in parts]
    return parts


def with_space(part):
    return " " + part if isinstance(part, str) and not part.startswith(" ") else part


def split_part(part, added):
    """Split a part, if it is text, at these added tokens, {text: AddedToken}. Yield its parts."""
    if not isinstance(part, str):
        yield part
        return
    longest_first = sorted(added, key=len, reverse=True)
    end = 0  # The part has been split up to here.
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
    """Return {text: AddedToken}, as defined by all files together.

    paths, contents: {name: path} and {name: JSON} of the files; ids: {token: id} of the vocabulary.
    A text that is not in ids gets the next free id. is_fast: PreTrainedTokenizerFast reads the
    files. ValueError naming the file if two of them contradict each other.
    """
    tokenizer = contents.get("tokenizer.json", {})
    settings = contents.get("tokenizer_config.json", {})
    special_map = contents.get("special_tokens_map.json", {})
    main = [
        added_token(paths["tokenizer.json"], entry, entry["id"])
        for entry in tokenizer.get("added_tokens") or []
    ]
    if "added_tokens_decoder" in settings:
        special = special_tokens(tokenizer, settings, {}, is_fast)
        path = paths["tokenizer_config.json"]
        other = decoder_tokens(path, settings["added_tokens_decoder"])
        missing = {text for _, text, _ in main} - {text for _, text, _ in other} - {END_OF_TEXT}
        if missing and not is_fast:
            raise ValueError(f"{path}: added_tokens_decoder lacks {min(missing)!r:.40}")
    else:
        special = special_tokens(tokenizer, settings, special_map, is_fast)
        known = {(text, token.id) for _, text, token in main}
        special_texts = {entry["content"] for entry in special}
        path = paths.get("added_tokens.json")
        other = [
            added_token(path, {"content": text, "normalized": text not in special_texts}, id_)
            for text, id_ in contents.get("added_tokens.json", {}).items()
            if (text, id_) not in known
        ]
    other.sort(key=by_id)
    in_order = main + other
    if not is_fast:
        in_order.sort(key=by_id)
    added, free_ids, taken = {}, count(len(ids)), set(ids.values())
    for path, text, token in in_order:
        if text not in added:
            added[text] = token._replace(id=ids[text] if text in ids else next(free_ids))
        expected = added[text].id
        if text not in ids and expected in taken:
            fault = f"gets the id {expected}, which another token has"
            raise ValueError(f"{path}: added token {text!r:.40} {fault}")
        if token.id != expected:
            fault = f"added token {text!r:.40} has the id {token.id}, but should have {expected}"
            raise ValueError(f"{path}: {fault}")
        if token != added[text]:
            raise ValueError(f"{path}: added token {text!r:.40} contradicts tokenizer.json")
    for entry in special:
        _, text, token = added_token("a special token", entry)
        if text not in added:
            added[text] = token._replace(id=ids[text] if text in ids else next(free_ids))
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


def special_tokens(tokenizer, settings, special_map, is_fast):
    """Return the tokens that have a purpose, such as pad_token, as dicts with "content"."""
    defaults = {}
    if not is_fast:
        defaults = dict.fromkeys(PURPOSES[:3], END_OF_TEXT)
    elif tokenizer.get("padding"):
        defaults = {"pad_token": tokenizer["padding"]["pad_token"]}
    values = defaults | settings | special_map
    others = [name for name in values if name.endswith("_token") and name not in PURPOSES]
    tokens = [values.get(name) for name in PURPOSES + others]
    lists = (
        contents.get(name)
        for contents in (settings, special_map)
        for name in ("extra_special_tokens", "additional_special_tokens")
    )
    extra = next(filter(None, lists), [])
    tokens += extra.values() if isinstance(extra, dict) else extra
    tokens = [{"content": token} if isinstance(token, str) else token for token in tokens]
    # Leave out null, and true or false, which is the value of add_bos_token.
    return [token for token in tokens if isinstance(token, dict)]
