"""Byte-level byte-pair encoding (BPE): turn text into ids and back, and learn a vocabulary.

    " low" -> " ", "l", "o", "w" -> " l", "o", "w" -> " l", "ow" -> " low" -> [1877]

This is how OpenAI's models encode " low". Other vocabularies have other merges and other ids.

1. The text is split into words. The space before a word belongs to the word.
2. At first each byte of a word is a token, so every text can be encoded.
3. Neighbouring tokens are merged into one, step by step. A vocabulary has a list of the pairs that
   may be merged. If a word has several of them, the one that is first in the list is merged first.
4. Each token is replaced by its number in the vocabulary, its id.

A vocabulary is learned by counting. The most frequent pair of neighbours in a text becomes the
first merge. Then this pair is merged everywhere, all pairs are counted again, and the most frequent
one becomes the second merge, and so on.

Sources: Sennrich et al. 2016, section 3.2 (merges); Radford et al. 2019, section 2.2 (bytes).
Lesson: steps 1 to 4 and 18.
"""

import codecs
import heapq
import math
import os
import re
from collections import Counter, defaultdict
from itertools import chain, pairwise

import regex

from model_files.vocabulary import END_OF_TEXT, Vocabulary, read_vocabulary

# ==== The byte alphabet =========================================================================

# Vocabulary files, and the code below, write one visible character for each byte of a token: " low"
# is "Ġlow", and "é", which has two bytes in UTF-8, is "Ã©". The visible characters of Latin-1 stand
# for themselves (0xAD is an invisible hyphen). The other bytes get the characters from 256 on.
VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHAR_OF_BYTE = {byte: chr(byte) for byte in VISIBLE}
CHAR_OF_BYTE |= {byte: chr(256 + i) for i, byte in enumerate(HIDDEN)}
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}

# ==== Words =====================================================================================

WORD = r"""
    '(?:[sdmt]|ll|ve|re)      # the end of a contraction: it's, we'll
    | \ ?[\p{L}]+             # letters, with the space before them
    | \ ?[\p{N}]+             # digits
    | \ ?[^\s\p{L}\p{N}]+     # other characters
    | \s+(?!\S)               # white space; if a word follows, all but the last character
    | \s+                     # that last character, unless it is a space and begins the word
"""
FIND_WORDS = regex.compile(WORD, regex.VERBOSE).findall
ASCII_WORD = WORD.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")
FIND_ASCII_WORDS = re.compile(ASCII_WORD, re.VERBOSE | re.ASCII).findall
FIND_BOUNDARY = re.compile(r"\S[ \n]").search  # A word always ends between these two characters.


def split_words_simply(text):
    """Return the words of a text: "So,  I'm in" -> ["So", ",", " ", " I", "'m", " in"]."""
    return FIND_WORDS(text)


def split_words(text):
    """Yield the same words, but faster and without keeping all of them in memory."""
    return chain.from_iterable(map(split_piece, pieces_of_text(text)))


def pieces_of_text(text):
    """Yield a text in pieces of about 1,000 characters. A piece never ends inside a word."""
    start = 0
    while start < len(text):
        boundary = FIND_BOUNDARY(text, start + 1000)
        end = boundary.end() - 1 if boundary else len(text)
        yield text[start:end]
        start = end


def split_piece(piece):
    """Return the words of a piece.

    ASCII is left to `re`, which is faster than `regex`. Characters that are newer than Unicode 16
    are never letters, as in the reference tokenizers (tiktoken, tokenizers).
    """
    if piece.isascii():
        return FIND_ASCII_WORDS(piece)
    from model_files import unicode16  # This import is here because ASCII does not need it.

    if unicode16.has_newer_character(piece):
        return unicode16.compile_words(WORD)(piece)
    return FIND_WORDS(piece)


# ==== Merges ====================================================================================


def merge_simply(tokens, rank):
    """Return the tokens of a word after all merges: ["l", "o", "w"] -> ["l", "ow"] -> ["low"].

    Each step merges the pair with the lowest rank, and the leftmost one if it occurs twice.
    rank: {pair: its place in the list of merges}; in the example {("o", "w"): 0, ("l", "ow"): 1}.
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
    """Return the same as merge_simply, but in n log n steps for n tokens instead of n squared.

    All pairs are in a heap, which always gives the one with the lowest rank. Each merge adds only
    the two pairs that the new token forms with its neighbours. It also removes a token, so the
    tokens are a linked list: before[i] and after[i] are the indices of the neighbours of tokens[i].
    For " low", with the merges l-o and lo-w:

        tokens  " "  "l"  "o"  "w"      after  1 2 3 4
        tokens  " "  "lo"  -   "w"      after  1 3 - 4
        tokens  " "  "low" -    -       after  1 4 - -
    """
    n = len(tokens)
    tokens = [*tokens, None]  # None is tokens[n] and tokens[-1], the neighbour of both ends.
    before = list(range(-1, n))
    after = list(range(1, n + 1))
    # The number rank * n + i sorts like (rank, i), and takes a third of the memory.
    heap = [rank[pair] * n + i for i, pair in enumerate(pairwise(tokens)) if pair in rank]
    heapq.heapify(heap)
    while heap:
        lowest, i = divmod(heapq.heappop(heap), n)
        j = after[i]
        # Skip this pair if one of its tokens has been merged with another neighbour since.
        if rank.get((tokens[i], tokens[j])) != lowest:
            continue
        tokens[i] += tokens[j]
        tokens[j] = None
        after[i] = after[j]
        before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            pair = tokens[left], tokens[right]
            if pair in rank:
                heapq.heappush(heap, rank[pair] * n + left)
    return [token for token in tokens if token]


# ==== Text to ids and back ======================================================================


class Encoder:
    """Encode text and decode ids with a vocabulary. ValueError if a byte has no token.

    n_vocab: the number of ids. It can be larger than the number of tokens, since some models pad
    their embeddings to a round number. eot: the id of <|endoftext|>, or None.
    """

    def __init__(self, vocabulary, n_vocab=None):
        for byte, char in CHAR_OF_BYTE.items():
            if char not in vocabulary.ids:
                raise ValueError(f"{vocabulary.source}: byte {byte} has no token")
        self.vocabulary = vocabulary
        self.rank = dict(zip(vocabulary.merges, range(len(vocabulary.merges))))
        if len(self.rank) < len(vocabulary.merges):
            raise ValueError(f"{vocabulary.source}: a merge occurs twice")
        # Models may add tokens such as <|user|> to a vocabulary, and may have ids without a token.
        ids = vocabulary.ids | {text: token.id for text, token in vocabulary.added.items()}
        self.tokens = [""] * (1 + max(ids.values()))
        for token, id_ in ids.items():
            self.tokens[id_] = token
        self.n_vocab = n_vocab or len(self.tokens)
        self.eot = None
        if END_OF_TEXT in self.tokens[: self.n_vocab]:
            self.eot = self.tokens.index(END_OF_TEXT)
        self.ids_of_word = Cache(self.encode_word)
        self.bytes_of_id = Cache(self.decode_id)

    def encode(self, text, special_tokens=False):
        """Return the ids of a text: "Hello world" -> [15496, 995].

        <|endoftext|> is plain text unless special_tokens, as for encode_ordinary in OpenAI's
        tiktoken, so that nobody can end a text by writing this in it.
        """
        text = without_surrogates(text)
        special_tokens = special_tokens and self.eot is not None and END_OF_TEXT in text
        if self.vocabulary.is_plain() and not special_tokens:
            return self.encode_words(text)
        from model_files.added_tokens import encode  # GPT-2 itself does not need it.

        return encode(text, self, special_tokens)

    def encode_words(self, text):
        ids_of = self.ids_of_word.__getitem__  # Looking up a new word calls encode_word.
        return list(chain.from_iterable(map(ids_of, split_words(text))))

    def encode_word(self, word):
        tokens = [CHAR_OF_BYTE[byte] for byte in word.encode("utf-8", "surrogateescape")]
        return tuple(self.vocabulary.ids[token] for token in merge(tokens, self.rank))

    def encode_bytes(self, data):
        """Return the ids of bytes, valid UTF-8 or not. decode_bytes returns the same bytes."""
        return self.encode_words(data.decode("utf-8", "surrogateescape"))

    def decode(self, ids):
        """Return the text of ids: [15496, 995] -> "Hello world". Invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        """Return the bytes of ids; a padding id has none. ValueError if an id is out of range."""
        return b"".join(map(self.bytes_of_id.__getitem__, ids))

    def decode_id(self, id_):
        if not 0 <= id_ < self.n_vocab:
            raise ValueError(f"id {id_} is not in the vocabulary, which has {self.n_vocab} ids")
        token = self.tokens[id_] if id_ < len(self.tokens) else ""
        if any(char not in BYTE_OF_CHAR for char in token):  # Added tokens are plain text.
            return token.encode("utf-8", "surrogatepass")
        return bytes(BYTE_OF_CHAR[char] for char in token)

    def decode_stream(self, ids):
        """Yield the text of ids in pieces, each character as soon as its last byte is known.

        A token may end inside a character: "é" can be two tokens of one byte each.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id_ in ids:
            if text := decoder.decode(self.decode_bytes([id_])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text


class Cache(dict):
    """Keep the results of a function. A dict calls __missing__ only for a key that it lacks."""

    MAX_RESULTS = 1 << 16  # This many words and their ids take about 16 MB.

    def __init__(self, function):
        self.function = function

    def __missing__(self, argument):
        result = self.function(argument)
        if len(self) >= self.MAX_RESULTS:
            self.clear()
        if len(result) < 100:  # Longer words take much memory and rarely occur again.
            self[argument] = result
        return result


def without_surrogates(text):
    """Replace each pair of surrogates by its character, and each lone one by U+FFFD.

    UTF-16 writes a character such as 😀 as two surrogates, and UTF-8 cannot encode them one by one.
    Text from Windows or from json.loads may contain them.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def get_encoder(model_name, models_dir=None):
    """Return the Encoder of a model directory: get_encoder("models/124M"), or ("124M", "models").

    FileNotFoundError if it has no vocabulary, ValueError naming the file if one is damaged.
    """
    directory = os.path.join(models_dir, model_name) if models_dir else model_name
    return Encoder(read_vocabulary(directory))


# ==== Learning a vocabulary =====================================================================

# These limits bound memory and time for unusual texts, such as one without any spaces.
MAX_WORDS = 2**19  # If there are more different words, the rarest are dropped.
MAX_WORD = 64  # A word of more characters is counted in pieces of this length.
MAX_PIECES = 2**12  # At most this many such pieces are counted, in all texts together.


def learn_bpe(texts, vocab_size):
    """Learn merges from texts: ["low low lower"], 260 -> the merges l o, lo w, Ġ low.

    Return an Encoder whose tokens are <|endoftext|>, the 256 bytes, and one for each merge.
    Learning ends at vocab_size tokens, or when no pair of neighbours occurs twice. A merge never
    crosses the end of a word or of a text.
    """
    tokens = [END_OF_TEXT, *sorted(BYTE_OF_CHAR)]
    if vocab_size < len(tokens):
        raise ValueError(f"vocab_size {vocab_size} is less than 257 ({END_OF_TEXT} and 256 bytes)")
    frequency = count_words(texts)
    id_of_byte = [tokens.index(CHAR_OF_BYTE[byte]) for byte in range(256)]
    words = [([id_of_byte[byte] for byte in word.encode()], n) for word, n in frequency.items()]
    merges = learn_merges(words, tokens, vocab_size)
    ids = {token: id_ for id_, token in enumerate(tokens)}
    return Encoder(Vocabulary(ids, [(tokens[a], tokens[b]) for a, b in merges]))


def count_words(texts):
    """Return a Counter of the words in texts, within the limits above."""
    frequency, n_pieces = Counter(), 0
    for text in texts:
        for word, n in Counter(split_words(without_surrogates(text))).items():
            if len(word) <= MAX_WORD:
                frequency[word] += n
                continue
            end = min(len(word), (MAX_PIECES - n_pieces) * MAX_WORD)
            for i in range(0, end, MAX_WORD):
                frequency[word[i : i + MAX_WORD]] += n
                n_pieces += 1
        min_frequency = 1
        while len(frequency) > MAX_WORDS:
            min_frequency += 1
            frequency = Counter({word: n for word, n in frequency.items() if n >= min_frequency})
    return frequency


def learn_merges_simply(words, tokens, vocab_size):
    """Merge the most frequent pair of ids, again and again, and return these pairs in order.

    If several pairs are equally frequent, the one with the lowest ids is merged. words: [([id,
    ...], frequency), ...]; tokens: all tokens, in the order of their ids; each merge adds one.
    """
    merges = []
    while len(tokens) < vocab_size:
        count = count_pairs(words)
        if not count or max(count.values()) < 2:
            break
        pair = min(count, key=lambda pair: (-count[pair], pair))
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        words = [(replace(ids, pair, len(tokens) - 1), n) for ids, n in words]
    return merges


def count_pairs(words):
    """Count the pairs of neighbours: [([5, 6, 5, 6], 3)] -> {(5, 6): 6, (6, 5): 3}."""
    count = defaultdict(int)
    for ids, n in words:
        for pair in pairwise(ids):
            count[pair] += n
    return count


def replace(ids, pair, new_id):
    """Replace each occurrence of a pair: [5, 6, 7, 5, 6], (5, 6), 8 -> [8, 7, 8]."""
    replaced, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            replaced.append(new_id)
            i += 2
        else:
            replaced.append(ids[i])
            i += 1
    return replaced


def learn_merges(words, tokens, vocab_size):
    """Return the same as learn_merges_simply, but faster: change only the words that hold the pair.

    All pairs are in a heap, the most frequent first, each with the indices of its words. A merge
    can only lower the counts of existing pairs, since every pair that it creates holds its new
    token. So a count in the heap can only be too high. Then the pair goes back with its real count.
    """
    words = list(words)
    count = count_pairs(words)
    words_of = defaultdict(set)
    for w, (ids, _) in enumerate(words):
        for pair in pairwise(ids):
            words_of[pair].add(w)
    heap = [(-count[pair], pair, words_of[pair]) for pair in words_of]
    heapq.heapify(heap)
    merges = []
    while heap and len(tokens) < vocab_size:
        minus_count, pair, word_indices = heapq.heappop(heap)
        if -minus_count != count[pair]:
            heapq.heappush(heap, (-count[pair], pair, word_indices))
            continue
        if count[pair] < 2:
            break
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        new_id = len(tokens) - 1
        words_of_new = defaultdict(set)
        for w in word_indices:
            ids, n = words[w]
            replaced = replace(ids, pair, new_id)
            for old_pair in pairwise(ids):
                count[old_pair] -= n
            for new_pair in pairwise(replaced):
                count[new_pair] += n
                if new_id in new_pair:
                    words_of_new[new_pair].add(w)
            words[w] = replaced, n
        for new_pair in words_of_new:
            heapq.heappush(heap, (-count[new_pair], new_pair, words_of_new[new_pair]))
    return merges
