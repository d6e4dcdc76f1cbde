"""Byte-level byte-pair encoding: text to ids and back, and learning a vocabulary from a text.

A text is cut into words, and the UTF-8 bytes of a word are its first tokens. Of all neighbours in
the word, those that come first in the list of merges become one token, until no merge is left:
    " low" -> " ", "l", "o", "w" -> " l", "o", "w" -> " l", "ow" -> " low" -> [1877]
In files a token is spelled with one visible character for each byte: " low" is "Ġlow".
Sources: Sennrich et al. 2016, section 3.2 (merges); Radford et al. 2019, section 2.2 (bytes).
"""

import codecs
import gc
import hashlib
import heapq
import json
import re
from collections import Counter, defaultdict
from itertools import chain, filterfalse, pairwise
from pathlib import Path

import regex

from tensor_file import read_json, write_atomic

END_OF_TEXT = "<|endoftext|>"
# SHA-256 of the vocabulary that all released sizes share: it needs no check, which takes 30 ms.
RELEASED = "00f404d36600411e497efb3df08d3b4e094f0820e2595afcb7cbd0c4353d4fcb"

# A word is a contraction's end, letters, digits or other signs, each with the space before it, or
# white space, which leaves its last space to the word that follows.
WORD = r"'(?:[sdmt]|ll|ve|re)| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)|\s+"

# The references cut by Unicode 16. Where it has no character, newer ones have letters and numbers,
# and so has a newer `regex`: these ranges (first-last, hexadecimal) stay "other signs" here.
UNASSIGNED = "".join(
    "-".join(chr(int(code, 16)) for code in codes.split("-"))
    for codes in """
    557-558 58b-58c 88f-88f c5b-c5c cd7-cdc 208f-208f 209d-209f a7ce-a7cf a7d2-a7d2 a7d4-a7d4
    a7dd-a7f1 ab6c-ab6f 107bb-107ff 10940-1097f 10ec5-10efb 11b0a-11bbf 11daa-11edf 1246f-1246f
    12475-1247f 12544-12f8f 16e9b-16eff 16ff2-16fff 187f8-187ff 18cd6-18cfe 18d09-1afef 1b123-1b131
    1b168-1b16f 1d6a6-1d6a7 1df1f-1df24 1df2b-1dfff 1e600-1e7df 2b73a-2b73f 2b81e-2b81f 2cea2-2ceaf
    323b0-e0000""".split()
)
FIND_UNASSIGNED = re.compile(f"[{UNASSIGNED}]").search

# A place where a word always ends: no word goes on from other signs to white space.
FIND_CUT = re.compile(r"\S[ \n]").search

# Three patterns of one meaning: `re` is twice as fast as `regex`, and both slow down with ranges.
FIND_ASCII_WORDS = re.compile(WORD.format(L="A-Za-z", N="0-9"), re.ASCII).findall
FIND_WORDS = regex.compile(WORD.format(L=r"\p{L}", N=r"\p{N}")).findall
FIND_WORDS_EXACTLY = regex.compile(
    WORD.format(L=rf"[\p{{L}}--[{UNASSIGNED}]]", N=rf"[\p{{N}}--[{UNASSIGNED}]]"), regex.VERSION1
).findall

VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHAR_OF_BYTE = {byte: chr(byte) for byte in VISIBLE}
CHAR_OF_BYTE |= {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}
CACHE_SIZE = 1 << 16  # words: some 16 MB


class Cache(dict):
    """A dict that computes what it lacks, so that a hit costs no call of a Python function."""

    def __init__(self, compute):
        self.compute = compute

    def __missing__(self, key):
        value = self.compute(key)
        if len(self) >= CACHE_SIZE:
            self.clear()
        if len(value) < 100:  # a long word hardly comes back, and fills the memory
            self[key] = value
        return value


class Encoder:
    """A vocabulary at work.

    encoder: {spelled token: id}; merges: [(spelled token, spelled token)], the first comes first;
    added: {literal text: id}, texts beyond `encoder` that become their id wherever they stand.
    """

    def __init__(self, encoder, merges, added=None):
        self.encoder, self.merges = encoder, merges
        self.added = {text: id_ for text, id_ in (added or {}).items() if text not in encoder}
        self.rank = dict(zip(merges, range(len(merges)), strict=True))
        id_of = {**encoder, **self.added}
        self.token_of_id = dict(zip(id_of.values(), id_of, strict=True))
        self.n_vocab = len(id_of)
        self.eot = id_of.get(END_OF_TEXT)
        self.ids_of_word, self.bytes_of_id = Cache(self._ids_of_word), Cache(self._bytes_of_id)
        longest_first = sorted(self.added, key=len, reverse=True)
        self.split_added = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split

    def encode(self, text):
        """The ids of a text: "Hello world" -> [15496, 995]. A lone surrogate counts as U+FFFD, and
        <|endoftext|> as plain text, as in tiktoken's encode_ordinary."""
        text = without_surrogates(text)
        if not self.added:
            return self._encode(text)
        ids = []
        for i, part in enumerate(self.split_added(text)):
            ids += [self.added[part]] if i % 2 else self._encode(part)
        return ids

    def encode_bytes(self, data):
        """The ids of any bytes, UTF-8 or not; `decode_bytes` gives the same bytes back."""
        return self._encode(data.decode("utf-8", "surrogateescape"))

    def decode(self, ids):
        """The text of ids: [15496, 995] -> "Hello world". What is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        """The bytes of ids; ValueError for an id that the vocabulary does not have."""
        return b"".join(map(self.bytes_of_id.__getitem__, ids))

    def _encode(self, text):
        words = chain.from_iterable(split_words(text))
        return list(chain.from_iterable(map(self.ids_of_word.__getitem__, words)))

    def _ids_of_word(self, word):
        tokens = [CHAR_OF_BYTE[byte] for byte in word.encode("utf-8", "surrogateescape")]
        return tuple(self.encoder[token] for token in merge(tokens, self.rank))

    def _bytes_of_id(self, id_):
        token = self.token_of_id.get(id_)
        if token is None:
            raise ValueError(f"id {id_} is not in the vocabulary, which has {self.n_vocab} tokens")
        if token in self.added or not BYTE_OF_CHAR.keys() >= set(token):
            return token.encode("utf-8", "surrogatepass")
        return bytes(BYTE_OF_CHAR[char] for char in token)


def without_surrogates(text):
    """Pairs of surrogates become the character they stand for, lone ones U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def split_words(text):
    """Yield the words of a text as lists: "So,  I'm in" -> ["So", ",", " ", " I", "'m", " in"].

    A list holds some 1,000 characters: memory stays flat, and a character beyond ASCII slows down
    no more than its surroundings.
    """
    start = 0
    while start < len(text):
        cut = FIND_CUT(text, start + 1000)
        end = cut.end() - 1 if cut else len(text)
        part = text[start:end]
        if part.isascii():
            yield FIND_ASCII_WORDS(part)
        else:
            yield FIND_WORDS_EXACTLY(part) if FIND_UNASSIGNED(part) else FIND_WORDS(part)
        start = end


def merge(tokens, rank):
    """Merge neighbours, lowest rank first, then leftmost, until none is left to merge.

    n log n steps whatever the text: a heap of merges over a doubly linked list of tokens.
    """
    n = len(tokens)
    tokens = [*tokens, None]  # at n and at -1: the neighbour of both ends, which merges with none
    before, after = list(range(-1, n)), list(range(1, n + 1))
    # rank * n + position sorts as (rank, position) does and takes a third of the memory.
    heap = [rank[pair] * n + i for i, pair in enumerate(pairwise(tokens)) if pair in rank]
    heapq.heapify(heap)
    while heap:
        lowest, i = divmod(heapq.heappop(heap), n)
        j = after[i]
        # Either token may have been merged with another neighbour since this went on the heap.
        if rank.get((tokens[i], tokens[j])) != lowest:
            continue
        tokens[i] += tokens[j]
        tokens[j] = None
        after[i] = after[j]
        before[after[i]] = i
        for left, right in (before[i], i), (i, after[i]):
            if (found := rank.get((tokens[left], tokens[right]))) is not None:
                heapq.heappush(heap, found * n + left)
    return [token for token in tokens if token]


def decode_stream(encoder, ids):
    """Yield the text of ids piece by piece, a character as soon as its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id_ in ids:
        if text := decoder.decode(encoder.decode_bytes([id_])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def learn_bpe(chunks, vocab_size):
    """The vocabulary of a text: <|endoftext|>, the 256 bytes, then a token for each merge.

    chunks: an iterable of texts; no word goes across their ends, so that a file may give other
    words by the line than in one piece. Merges the pair of tokens that is there most often (of
    equals, the one with the lower ids), until no pair is there twice or vocab_size is reached.
    ["low low lower"], 260 -> merges l o, lo w, Ġ low
    """
    tokens = [END_OF_TEXT, *sorted(BYTE_OF_CHAR)]
    encoder = {token: id_ for id_, token in enumerate(tokens)}
    if vocab_size < len(tokens):
        raise ValueError(f"vocab_size {vocab_size} is less than 257: {END_OF_TEXT}, 256 bytes")
    times = Counter()
    for chunk in chunks:
        for words in split_words(without_surrogates(chunk)):
            times.update(words)
    id_of_byte = [encoder[CHAR_OF_BYTE[byte]] for byte in range(256)]
    words = [([id_of_byte[byte] for byte in word.encode()], n) for word, n in times.items()]
    count, where = Counter(), defaultdict(set)
    for w, (ids, n) in enumerate(words):
        for pair in pairwise(ids):
            count[pair] += n
            where[pair].add(w)
    heap = [(-count[pair], pair, where[pair]) for pair in where]
    heapq.heapify(heap)
    merges = {}
    while heap and len(tokens) < vocab_size:
        minus, pair, found_in = heapq.heappop(heap)
        if -minus != count[pair]:  # other merges have taken some since
            heapq.heappush(heap, (-count[pair], pair, found_in))
            continue
        if count[pair] < 2:
            break
        a, b = pair
        new = encoder.setdefault(tokens[a] + tokens[b], len(tokens))
        if new == len(tokens):
            tokens.append(tokens[a] + tokens[b])
        merges[tokens[a], tokens[b]] = None
        where = defaultdict(set)
        for w in found_in:
            ids, n = words[w]
            merged, i = [], 0
            while i < len(ids):
                if ids[i] != a or i + 1 == len(ids) or ids[i + 1] != b:
                    merged.append(ids[i])
                    i += 1
                    continue
                if merged:
                    count[merged[-1], a] -= n
                    count[merged[-1], new] += n
                    where[merged[-1], new].add(w)
                if i + 2 < len(ids):
                    count[b, ids[i + 2]] -= n
                    count[new, ids[i + 2]] += n
                    where[new, ids[i + 2]].add(w)
                merged.append(new)
                i += 2
            words[w] = merged, n
        for pair in where:
            heapq.heappush(heap, (-count[pair], pair, where[pair]))
    return Encoder(encoder, list(merges))


def get_encoder(directory):
    """Read vocab.json and merges.txt, or encoder.json and vocab.bpe, or tokenizer.json.

    FileNotFoundError if none of them is there, ValueError naming the file if one is damaged.
    """
    collects = gc.isenabled()
    gc.disable()  # 50,000 new pairs set it off again and again, for a fifth of the loading time
    try:
        return read_encoder(Path(directory))
    finally:
        if collects:
            gc.enable()


def read_encoder(directory):
    """The Encoder of the first kind of vocabulary that the directory holds."""
    for names in ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("tokenizer.json",):
        paths = [directory / name for name in names]
        if all(path.exists() for path in paths):
            break
    else:
        raise FileNotFoundError(
            f"{directory}: no vocab.json with merges.txt, no encoder.json with vocab.bpe, "
            "no tokenizer.json"
        )
    if len(paths) == 1:
        parts = read_tokenizer(paths[0])
    else:
        added = directory / "added_tokens.json"
        added = read_json(added) if added.exists() else {}
        parts = read_json(paths[0]), read_merges(paths[1]), added
    content = b"".join(path.read_bytes() for path in paths)
    if parts[2] or hashlib.sha256(content).hexdigest() != RELEASED:
        try:
            check_vocabulary(*parts)
        except ValueError as error:
            raise ValueError(f"{' or '.join(map(str, paths))}: {error}") from None
    return Encoder(*parts)


def check_vocabulary(encoder, merges, added):
    """ValueError if ids are not 0 to n - 1, a byte has no token, or a merge leads nowhere."""
    ids = {**added, **encoder}.values()
    if set(map(type, ids)) - {int}:
        raise ValueError("an id is not an integer")
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"the ids of {len(ids)} tokens are not 0 to {len(ids) - 1}, each once")
    if missing := BYTE_OF_CHAR.keys() - encoder.keys():
        raise ValueError(f"byte {BYTE_OF_CHAR[min(missing)]} has no token")
    if "" in added:
        raise ValueError("an added token is empty")
    if len(set(merges)) < len(merges):
        raise ValueError("a merge is there twice")
    tokens = chain(chain.from_iterable(merges), map("".join, merges))
    for token in filterfalse(encoder.__contains__, tokens):
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
    """Vocabulary, merges and added tokens of a tokenizer.json that treats text as GPT-2 does."""
    file = read_json(path)
    try:
        model, cut = file["model"], file.get("pre_tokenizer") or {"type": "ByteLevel"}
        vocabulary = dict(model["vocab"])
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
    return vocabulary, merges, added


def save_encoder(encoder, directory):
    """Write vocab.json and merges.txt, and added_tokens.json if and only if there are any."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    merges = "".join(f"{a} {b}\n" for a, b in encoder.merges)
    texts = {"vocab.json": json.dumps(encoder.encoder), "merges.txt": f"#version: 0.2\n{merges}"}
    if encoder.added:
        texts["added_tokens.json"] = json.dumps(encoder.added)
    else:
        (directory / "added_tokens.json").unlink(missing_ok=True)
    for name, text in texts.items():
        with write_atomic(directory / name) as file:
            file.write(text.encode())
