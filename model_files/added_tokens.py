"""Added tokens: texts that become an id wherever they stand, and the files that name them.

tokenizer.json           added_tokens: [{"id": 50257, "content": "<|user|>", "lstrip": false, ...}]
tokenizer_config.json    added_tokens_decoder: {"50257": {"content": "<|user|>", ...}}
                         pad_token: "<pad>", and so on; additional_special_tokens: ["<a>", ...]
special_tokens_map.json  the same as these two
added_tokens.json        {"<|user|>": 50257}
"""

from itertools import count
from typing import NamedTuple

END_OF_TEXT = "<|endoftext|>"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
PURPOSES = [f"{purpose}_token" for purpose in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


class AddedToken(NamedTuple):
    """A text that becomes its id wherever it stands, before the rest is cut into words.

    lstrip, rstrip: so does the white space before it, after it; single_word: only where no letter,
    digit or _ is next to it; normalized: it is looked for when the others have been found.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def read_added(paths, said, ids, is_fast):
    """-> {text: AddedToken}, by all files: a text that is no token yet gets the next free id.

    said: {name of a file: what it says}; is_fast: is it PreTrainedTokenizerFast that reads them?
    """
    file, settings, special = (said.get(name, {}) for name in ("tokenizer.json", CONFIG, MAP))
    whole = [
        added_token(paths["tokenizer.json"], token, token["id"])
        for token in file.get("added_tokens") or []
    ]
    has_decoder = "added_tokens_decoder" in settings
    named = special_tokens(file, settings, {} if has_decoder else special, is_fast)
    if has_decoder:
        more = decoder_tokens(paths[CONFIG], settings["added_tokens_decoder"])
        lost = {text for _, text, _ in whole} - {text for _, text, _ in more} - {END_OF_TEXT}
        if lost and not is_fast:
            raise ValueError(f"{paths[CONFIG]}: added_tokens_decoder lacks {min(lost)!r:.40}")
    else:
        known = {(text, token.id) for _, text, token in whole}
        names = {token["content"] for token in named}
        more = [
            added_token(paths[ADDED], {"content": text, "normalized": text not in names}, id_)
            for text, id_ in said.get(ADDED, {}).items()
            if (text, id_) not in known
        ]
    stated = [*whole, *sorted(more, key=by_id)] if is_fast else sorted([*whole, *more], key=by_id)
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
    for token in named:
        _, text, token = added_token(paths.get(CONFIG) or paths.get(MAP), token)
        if text not in added:
            added[text] = token._replace(id=ids[text] if text in ids else next(new))
    return added


def decoder_tokens(path, decoder):
    return [
        added_token(path, token, int(id_) if id_.isdecimal() else id_)
        for id_, token in decoder.items()
    ]


def added_token(path, said, id_=0):
    """-> path, text, AddedToken of a dict that describes it."""
    text = said["content"]
    flags = [said.get(name, False) for name in AddedToken._fields[1:4]]
    flags.append(said.get("normalized", not said.get("special", True)))
    if type(text) is not str or not text or {*map(type, flags)} != {bool} or type(id_) is not int:
        raise ValueError(f"{path}: damaged added token {said!r:.40}")
    return path, text, AddedToken(id_, *(flags if text != END_OF_TEXT else ()))


def by_id(stated):
    return stated[2].id


def special_tokens(file, settings, special, is_fast):
    """-> what tokenizer_config.json and special_tokens_map.json name by a purpose, as dicts."""
    usual = {} if is_fast else dict.fromkeys(PURPOSES[:3], END_OF_TEXT)
    if is_fast and file.get("padding"):
        usual = {"pad_token": file["padding"]["pad_token"]}
    roles = usual | settings | special
    others = [name for name in roles if name.endswith("_token") and name not in PURPOSES]
    named = [roles.get(name) for name in PURPOSES + others]
    lists = (
        said.get(name)
        for said in (settings, special)
        for name in ("extra_special_tokens", "additional_special_tokens")
    )
    extra = next(filter(None, lists), [])
    named += extra.values() if isinstance(extra, dict) else extra
    named = [{"content": token} if isinstance(token, str) else token for token in named if token]
    return [token for token in named if isinstance(token, dict)]  # not add_bos_token, true
