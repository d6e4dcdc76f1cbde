"""Byte-level byte-pair encoding: text to ids and back, and learning a vocabulary from a text.

    " low" -> " ", "l", "o", "w" -> " l", "o", "w" -> " l", "ow" -> " low" -> [1877]

(in the vocabulary of the released models; others have learned other merges)

1. A text is cut into words. The space before a word belongs to it.
2. The bytes of a word are its first tokens: so no text is without tokens.
3. Neighbours become one token, those that stand first in the list of merges first, until no two
   neighbours are in the list.
4. Each token has a number, its id.

A learned vocabulary is such a list: the pair of neighbours that a text has most often is the first
merge, the pair that it then has most often is the second, and so on.

In files, and here, a token is spelled with one visible character for each of its bytes: " low" is
"Ġlow" (model_files/vocabulary.py has the alphabet).
Sources: Sennrich et al. 2016, section 3.2 (merges); Radford et al. 2019, section 2.2 (bytes).
Lesson: steps 2 to 4 and 18.
"""

import codecs
import heapq
import math
import re
from collections import Counter, defaultdict
from itertools import chain, pairwise

import regex

from model_files.added_tokens import END_OF_TEXT
from model_files.vocabulary import BYTE_OF_CHAR, CHAR_OF_BYTE, Vocabulary, read_vocabulary

MAX_WORDS = 1 << 16  # whose ids an encoder remembers: some 16 MB


# ================================================================================================
# Words
# ================================================================================================

# A word is a contraction's end, letters, digits or other signs, each with the space before it, or
# white space, which leaves its last space to the word that follows.
WORD = r"'(?:[sdmt]|ll|ve|re)| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)|\s+"

# The references cut by Unicode 16. Where it has no character, newer ones have letters, numbers
# and marks, and so has a newer `regex`: these ranges (first-last, hexadecimal) stay "other signs".
UNASSIGNED = "".join(
    "-".join(chr(int(code, 16)) for code in codes.split("-"))
    for codes in """
    557-558 58b-58c 5c8-5c9 88f-88f b53-b54 c5b-c5c cd7-cdc 1acf-1af0 208f-208f 209d-209f a7ce-a7cf
    a7d2-a7d2 a7d4-a7d4 a7dd-a7f1 ab6c-ab6f 107bb-107ff 10940-1097f 10ec5-10efb 11b0a-11bbf
    11daa-11edf 1246f-1246f 12475-1247f 12544-12f8f 16e9b-16eff 16ff2-16fff 187f8-187ff 18cd6-18cfe
    18d09-1afef 1b123-1b131 1b168-1b16f 1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f-1d25f 1d280-1d281
    1d6a6-1d6a7 1df1f-1df24 1df2b-1dfff 1e600-1e7df 2b73a-2b73f 2b81e-2b81f 2cea2-2ceaf
    323b0-e0000""".split()
)
FIND_UNASSIGNED = re.compile(f"[{UNASSIGNED}]").search

# Three patterns of one meaning: `re` is twice as fast as `regex`, and both slow down with ranges.
FIND_ASCII_WORDS = re.compile(WORD.format(L="A-Za-z", N="0-9"), re.ASCII).findall
FIND_WORDS = regex.compile(WORD.format(L=r"\p{L}", N=r"\p{N}")).findall
FIND_WORDS_EXACTLY = regex.compile(
    WORD.format(L=rf"[\p{{L}}--[{UNASSIGNED}]]", N=rf"[\p{{N}}--[{UNASSIGNED}]]"), regex.VERSION1
).findall

# A place where a word always ends: where white space follows something else.
FIND_CUT = re.compile(r"\S[ \n]").search


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


def without_surrogates(text):
    """Pairs of surrogates become the character they stand for, lone ones U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ================================================================================================
# Merges
# ================================================================================================


def merge_simply(tokens, rank):
    """The definition: of all neighbours merge those of the lowest rank, the leftmost first.

    tokens: [token, ...] of one word; rank: {(token, token): place in the list of merges}.
    """
    while len(tokens) > 1:
        pairs = list(pairwise(tokens))
        ranks = [rank.get(pair, math.inf) for pair in pairs]
        i = ranks.index(min(ranks))
        if pairs[i] not in rank:
            break
        tokens = [*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]]
    return tokens


def merge(tokens, rank):
    """The same, fast: n log n steps for n tokens, where the definition takes n squared.

    The pairs wait in a heap, so that none is looked at twice. The tokens are a linked list: before
    and after hold the places of each one's neighbours, since a merge takes one token out.
    """
    n = len(tokens)
    tokens = [*tokens, None]  # at n and at -1: the neighbour of both ends, which merges with none
    before, after = list(range(-1, n)), list(range(1, n + 1))
    # rank * n + place sorts as (rank, place) does and takes a third of the memory.
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


# ================================================================================================
# Added tokens
# ================================================================================================

# Texts such as <|user|> that become one id: some fine-tuned models have them, GPT-2 has none.

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
FIND_LETTER = regex.compile(rf"[\w--[{UNASSIGNED}]]", regex.VERSION1).search


def split_at_added(text, added):
    """-> the parts of a text: "Hi<|user|>!" -> ["Hi", AddedToken(50257), "!"]"""
    parts = [text] * (text != "")
    for normalized in False, True:
        texts = sorted((x for x in added if added[x].normalized == normalized), key=len)
        if texts:
            find = re.compile("|".join(map(re.escape, reversed(texts)))).finditer  # longest first
            parts = [
                piece
                for part in parts
                for piece in (cut(part, find, added) if isinstance(part, str) else [part])
            ]
    return parts


def cut(text, find, added):
    """Yield the parts of a text, cut at what find finds."""
    end = 0  # of the last added token, white space included
    for found in find(text):
        token, (start, stop) = added[found[0]], found.span()
        beside = text[start - 1 : start] + text[stop : stop + 1]
        if start < end or (token.single_word and FIND_LETTER(beside)):
            continue
        while token.lstrip and start > end and text[start - 1] in SPACES:
            start -= 1
        while token.rstrip and stop < len(text) and text[stop] in SPACES:
            stop += 1
        if start > end:
            yield text[end:start]
        yield token
        end = stop
    if end < len(text):
        yield text[end:]


# ================================================================================================
# Text to ids and back
# ================================================================================================


class Memory(dict):
    """A dict that computes what it lacks, so that a hit costs no call of a Python function."""

    def __init__(self, compute):
        self.compute = compute

    def __missing__(self, key):
        value = self.compute(key)
        if len(self) >= MAX_WORDS:
            self.clear()
        if len(value) < 100:  # a long word hardly comes back, and fills the memory
            self[key] = value
        return value


class Encoder:
    """A vocabulary at work. eot: the id of <|endoftext|>, or None; n_vocab: number of ids, which
    may be more than there are tokens: models are padded to a round number."""

    def __init__(self, vocabulary, n_vocab=None):
        self.vocabulary = vocabulary
        self.rank = dict(zip(vocabulary.merges, range(len(vocabulary.merges)), strict=True))
        self.tokens = sorted(vocabulary.ids, key=vocabulary.ids.get)  # by id
        self.tokens += [text for text in vocabulary.added if text not in vocabulary.ids]
        self.n_vocab = n_vocab or len(self.tokens)
        has_eot = END_OF_TEXT in self.tokens[: self.n_vocab]
        self.eot = self.tokens.index(END_OF_TEXT) if has_eot else None
        self.ids_of_word, self.bytes_of_id = Memory(self._ids_of_word), Memory(self._bytes_of_id)
        self.added = {text: x for text, x in vocabulary.added.items() if text != END_OF_TEXT}

    def encode(self, text):
        """The ids of a text: "Hello world" -> [15496, 995]. A lone surrogate counts as U+FFFD, and
        <|endoftext|> as plain text, as in tiktoken's encode_ordinary."""
        text = without_surrogates(text)
        if self.added or self.vocabulary.add_prefix_space:
            return self._encode_parts(text)
        return self._encode(text)

    def encode_bytes(self, data):
        """The ids of any bytes, UTF-8 or not; `decode_bytes` gives the same bytes back."""
        return self._encode(data.decode("utf-8", "surrogateescape"))

    def decode(self, ids):
        """The text of ids: [15496, 995] -> "Hello world". What is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        """The bytes of ids, none for one that only pads; ValueError for an id beyond n_vocab."""
        return b"".join(map(self.bytes_of_id.__getitem__, ids))

    def decode_stream(self, ids):
        """Yield the text of ids piece by piece, a character as soon as its last byte is there.

        A token may end inside a character: "é" can be two tokens of a byte each.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id_ in ids:
            if text := decoder.decode(self.decode_bytes([id_])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _encode_parts(self, text):
        ids = []
        for part in split_at_added(text, self.added):
            if not isinstance(part, str):
                if part.id >= self.n_vocab:
                    token = self.tokens[part.id]
                    raise ValueError(f"{token!r} is id {part.id}: the model has {self.n_vocab} ids")
                ids.append(part.id)
            elif self.vocabulary.add_prefix_space and not part.startswith(" "):
                ids += self._encode(" " + part)
            else:
                ids += self._encode(part)
        return ids

    def _encode(self, text):
        words = chain.from_iterable(split_words(text))
        return list(chain.from_iterable(map(self.ids_of_word.__getitem__, words)))

    def _ids_of_word(self, word):
        tokens = [CHAR_OF_BYTE[byte] for byte in word.encode("utf-8", "surrogateescape")]
        return tuple(self.vocabulary.ids[token] for token in merge(tokens, self.rank))

    def _bytes_of_id(self, id_):
        if not 0 <= id_ < self.n_vocab:
            raise ValueError(f"id {id_} is not in the vocabulary, which has {self.n_vocab} ids")
        token = self.tokens[id_] if id_ < len(self.tokens) else ""
        if not BYTE_OF_CHAR.keys() >= set(token):
            return token.encode("utf-8", "surrogatepass")
        return bytes(BYTE_OF_CHAR[char] for char in token)


def get_encoder(directory):
    """-> the Encoder of a model directory: vocab.json and merges.txt, or OpenAI's encoder.json and
    vocab.bpe, or tokenizer.json.

    FileNotFoundError if none of them is there, ValueError naming the file if one is damaged.
    """
    return Encoder(read_vocabulary(directory))


# ================================================================================================
# Learning a vocabulary
# ================================================================================================


def learn_bpe(texts, vocab_size):
    """-> Encoder: <|endoftext|>, the 256 bytes, then a token for each merge learned from texts.

    Merges the pair of neighbours that is there most often (of equals, the one with the lower ids),
    until no pair is there twice or vocab_size is reached. No word goes across the end of a text.
    ["low low lower"], 260 -> merges l o, lo w, Ġ low
    """
    tokens = [END_OF_TEXT, *sorted(BYTE_OF_CHAR)]
    if vocab_size < len(tokens):
        raise ValueError(f"vocab_size {vocab_size} is less than 257: {END_OF_TEXT}, 256 bytes")
    times = Counter()
    for text in texts:
        for words in split_words(without_surrogates(text)):
            times.update(words)
    id_of_byte = [tokens.index(CHAR_OF_BYTE[byte]) for byte in range(256)]
    words = [([id_of_byte[byte] for byte in word.encode()], n) for word, n in times.items()]
    merges = learn_merges(words, tokens, vocab_size)
    id_of = {token: id_ for id_, token in enumerate(tokens)}
    return Encoder(Vocabulary(id_of, [(tokens[a], tokens[b]) for a, b in merges]))


def learn_merges_simply(words, tokens, vocab_size):
    """The definition: [(ids of a word, how often it is there), ...] -> [(id, id), ...].

    tokens, a list by id, gets the new ones.
    """
    merges = []
    while len(tokens) < vocab_size:
        count = count_pairs(words)
        pair = min(count, key=lambda pair: (-count[pair], pair), default=None)
        if count[pair] < 2:
            break
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        words = [(replace(ids, pair, len(tokens) - 1), n) for ids, n in words]
    return merges


def count_pairs(words):
    """How often any two ids are neighbours: [([5, 6, 5, 6], 3)] -> {(5, 6): 6, (6, 5): 3}"""
    count = defaultdict(int)
    for ids, n in words:
        for pair in pairwise(ids):
            count[pair] += n
    return count


def replace(ids, pair, new):
    """[5, 6, 7, 5, 6], (5, 6), 8 -> [8, 7, 8]"""
    merged, i = [], 0
    while i < len(ids):
        found = i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair
        merged.append(new if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_merges(words, tokens, vocab_size):
    """The same, fast: a merge changes only the words that hold its pair.

    The pairs wait in a heap, the most frequent on top, each with the numbers of its words. A merge
    only lowers the counts of older pairs, as those that it adds have its new token in them: a pair
    whose count was too high is put back where it belongs.
    """
    words, count, where = list(words), count_pairs(words), defaultdict(set)
    for w, (ids, _) in enumerate(words):
        for pair in pairwise(ids):
            where[pair].add(w)
    heap = [(-count[pair], pair, where[pair]) for pair in where]
    heapq.heapify(heap)
    merges = []
    while heap and len(tokens) < vocab_size:
        minus, pair, found_in = heapq.heappop(heap)
        if -minus != count[pair]:
            heapq.heappush(heap, (-count[pair], pair, found_in))
            continue
        if count[pair] < 2:
            break
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        new, where = len(tokens) - 1, defaultdict(set)
        for w in found_in:
            ids, n = words[w]
            merged = replace(ids, pair, new)
            for old in pairwise(ids):
                count[old] -= n
            for found in pairwise(merged):
                count[found] += n
                if new in found:
                    where[found].add(w)
            words[w] = merged, n
        for found in where:
            heapq.heappush(heap, (-count[found], found, where[found]))
    return merges
