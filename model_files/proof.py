"""What counts as proof that a file is whole, and the one that its name says."""

import base64
import contextlib
import hashlib
import re
from typing import NamedTuple

from model_files.files import read_json
from model_files.safetensors import read_safetensors
from model_files.tensor_bundle import read_index

CHUNK = 1 << 20  # bytes
KEYS = {  # a JSON file of this name holds at least one of these
    "config.json": {"n_layer", "n_embd", "n_head", "model_type"},
    "generation_config.json": {"eos_token_id", "_from_model_config", "transformers_version"},
    "tokenizer.json": {"model"},
    "tokenizer_config.json": {"tokenizer_class", "model_max_length", "added_tokens_decoder"},
    "special_tokens_map.json": {"eos_token", "bos_token", "pad_token", "additional_special_tokens"},
    "model.safetensors.index.json": {"weight_map"},
    "hparams.json": {"n_layer"},
}


class Promise(NamedTuple):
    """A digest that somebody who knows has given; algorithm: of hashlib, or git's own SHA-1."""

    algorithm: str
    digest: str


def promise_of(answers, sha256):
    """-> what the bytes must hash to, None if nobody says: the SHA-256 that is pinned, else what
    the hub's or the store's own answer says. A content host's ETag is no hash of the file."""
    if sha256:
        return Promise("sha256", sha256)
    hub = [answer.headers for answer in answers if "X-Repo-Commit" in answer.headers]
    for name in "X-Linked-Etag", "ETag":
        for headers in hub:
            tag = headers.get(name, "").removeprefix("W/").strip('"').lower()
            if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", tag):
                return Promise("sha256" if len(tag) == 64 else "git", tag)
    # Of a whole file that comes in part, the store gives the MD5 under another name.
    last = answers[-1]
    name = "Content-MD5" if last.status_code == 200 else "x-ms-blob-content-md5"
    with contextlib.suppress(ValueError):
        if md5 := base64.b64decode(last.headers.get(name, ""), validate=True).hex():
            return Promise("md5", md5)
    return None


def prove(path, name, promise):
    """ValueError unless the file at path, which is to be called name, is whole and no other.

    Proof is its SHA-256, pinned here or told by the hub; git's SHA-1 of a small file, told by the
    hub; its MD5, told by OpenAI's store. Where nobody tells a hash, the content itself:

        *.safetensors            a header, and a file exactly as long as it says
        *.json                   strict JSON with a key that such a file has; vocab.json, or its
                                 like: tokens with the ids 0 to n - 1; added_tokens.json: with ids
        merges.txt, vocab.bpe    each token of the vocabulary beside it that is longer than a byte
                                 is the product of a merge, or a special token such as <|this|>
        model.ckpt.index         a table, whose blocks have checksums
        model.ckpt.data-*        as long as the index beside it says; its CRC-32C are checked later

    A length is no proof: a page that somebody puts in the file's place has one, too.
    """
    if promise:
        if (found := digest(path, promise.algorithm)) != promise.digest:
            hashes = f"{found[:8]}..., not {promise.digest[:8]}..."
            raise ValueError(f"its {promise.algorithm} hash is {hashes}")
    elif name == "model.ckpt.index":
        read_index(path.read_bytes())
    elif name.startswith("model.ckpt.data-"):
        _, entries = read_index(path.with_name("model.ckpt.index").read_bytes())
        size, ends = path.stat().st_size, [end for _, _, end, *_ in entries]
        if size != max(ends, default=0):
            raise ValueError(f"has {size} bytes, not the {max(ends, default=0)} of its index")
    elif name.endswith(".safetensors"):
        read_safetensors(path)
    elif name in ("merges.txt", "vocab.bpe"):
        ids = "vocab.json" if name == "merges.txt" else "encoder.json"
        check_merges(read_json(path.with_name(ids)), path.read_text(encoding="utf-8"))
    elif name in ("vocab.json", "encoder.json", "added_tokens.json"):
        check_ids(read_json(path), first=0 if name != "added_tokens.json" else None)
    elif name in KEYS and not KEYS[name] & read_json(path).keys():
        raise ValueError(f"holds none of {', '.join(sorted(KEYS[name]))}")


def digest(path, algorithm):
    hasher = hashlib.sha1() if algorithm == "git" else hashlib.new(algorithm)
    if algorithm == "git":
        hasher.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def check_ids(ids, first):
    if set(map(type, ids.values())) - {int}:
        raise ValueError("an id is not an integer")
    if first is not None and (not ids or sorted(ids.values()) != list(range(len(ids)))):
        raise ValueError(f"the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}")


def check_merges(ids, merges):
    made = {line.replace(" ", "", 1) for line in merges.splitlines() if line.count(" ") == 1}
    for token in ids:
        if len(token) > 1 and token not in made and not re.fullmatch(r"<.+>|\[.+\]", token):
            raise ValueError(f"cut off: no merge makes the token {token!r:.40}")
