"""Byte-level byte-pair encoding: text to ids and back, and learning a vocabulary from text.

    " low" -> " ", "l", "o", "w" -> " l", "o", "w" -> " l", "ow" -> " low" -> [1877]

That is what the released models make of it; other models have learned other merges.

1. The text is split into words. The space before a word belongs to the word.
2. At first each byte of a word is a token, so every text can be encoded.
3. Two neighbours are merged into one token if they are in the list of merges. The pair that stands
   first in the list is merged first.
4. Each token has a number, its id.

A vocabulary is learned by counting: the most frequent pair of neighbours in a text becomes the
first merge, the pair that is most frequent after that the second, and so on.

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

# A token is spelled with one visible character for each of its bytes, in files and below: " low" is
# "Ġlow", and "é", which has two bytes in UTF-8, is "Ã©". The printable characters of Latin-1 stand
# for themselves (0xAD is an invisible hyphen); the other bytes get the characters from 256 on.
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
    | \s+(?!\S)               # white space; if a word follows, without its own last character
    | \s+                     # that last character, if it is not a space (a line break, a tab)
"""
FIND_WORDS = regex.compile(WORD, regex.VERBOSE).findall
ASCII_WORD = WORD.replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9")
FIND_ASCII_WORDS = re.compile(ASCII_WORD, re.VERBOSE | re.ASCII).findall
FIND_BOUNDARY = re.compile(r"\S[ \n]").search  # a word always ends before this white space


def split_words_simply(text):
    """Return the words of a text: "So,  I'm in" -> ["So", ",", " ", " I", "'m", " in"]."""
    return FIND_WORDS(text)


def split_words(text):
    """Return an iterator of the same words, in memory that does not grow with the text, and in half
    the time: `re` is faster than `regex`, and can split ASCII."""
    return chain.from_iterable(map(split_piece, pieces_of_text(text)))


def pieces_of_text(text):
    """Yield pieces of about 1,000 characters, which end where a word ends."""
    start = 0
    while start < len(text):
        boundary = FIND_BOUNDARY(text, start + 1000)
        end = boundary.end() - 1 if boundary else len(text)
        yield text[start:end]
        start = end


def split_piece(piece):
    """Return the words of a piece. The reference tokenizers know the letters of Unicode 16. Newer
    ones, which `regex` may know, are not letters here either."""
    if piece.isascii():
        return FIND_ASCII_WORDS(piece)
    from model_files import unicode16  # few texts need it

    if unicode16.has_newer_character(piece):
        return unicode16.compile_words(WORD)(piece)
    return FIND_WORDS(piece)


# ==== Merges ====================================================================================


def merge_simply(tokens, rank):
    """Merge the tokens of a word: always the pair of lowest rank, of equals the leftmost.

    tokens: [token, ...]; rank: {(token, token): place in the list of merges}. Returns new tokens.
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
    """Return the same, in n log n steps for n tokens instead of n squared.

    The ranks of all pairs wait in a heap, and a merge only adds those of the two pairs that it has
    made. The tokens are a linked list, since each merge takes one out: before[i] and after[i] are
    the places of i's neighbours. For " low", with the merges l-o and lo-w:

        tokens  " "  "l"  "o"  "w"      after  1 2 3 4
        tokens  " "  "lo"  -   "w"      after  1 3 - 4
        tokens  " "  "low" -    -       after  1 4 - -
    """
    n = len(tokens)
    tokens = [*tokens, None]  # tokens[n] is also tokens[-1], so None is the neighbour of both ends
    before = list(range(-1, n))
    after = list(range(1, n + 1))
    # One number, rank * n + place, sorts like (rank, place) and takes a third of the memory.
    heap = [rank[pair] * n + i for i, pair in enumerate(pairwise(tokens)) if pair in rank]
    heapq.heapify(heap)
    while heap:
        lowest, i = divmod(heapq.heappop(heap), n)
        j = after[i]
        # One of the two tokens may have been merged with another neighbour in the meantime.
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

    n_vocab: the number of ids, which is larger than the number of tokens if the embeddings of a
    model are padded to a round number. eot: the id of <|endoftext|>, or None.
    """

    def __init__(self, vocabulary, n_vocab=None):
        for byte, char in CHAR_OF_BYTE.items():
            if char not in vocabulary.ids:
                raise ValueError(f"{vocabulary.source}: byte {byte} has no token")
        self.vocabulary = vocabulary
        self.rank = dict(zip(vocabulary.merges, range(len(vocabulary.merges))))
        if len(self.rank) < len(vocabulary.merges):
            raise ValueError(f"{vocabulary.source}: a merge occurs twice")
        self.tokens = sorted(vocabulary.ids, key=vocabulary.ids.get)  # by id
        # Models may add tokens such as <|user|> to a vocabulary.
        self.tokens += [text for text in vocabulary.added if text not in vocabulary.ids]
        self.n_vocab = n_vocab or len(self.tokens)
        self.eot = None
        if END_OF_TEXT in self.tokens[: self.n_vocab]:
            self.eot = self.tokens.index(END_OF_TEXT)
        self.ids_of_word = Cache(self.encode_word)
        self.bytes_of_id = Cache(self.decode_id)

    def encode(self, text):
        """Return the ids of a text: "Hello world" -> [15496, 995].

        <|endoftext|> is plain text here, as for encode_ordinary in OpenAI's tiktoken.
        """
        text = without_surrogates(text)
        if self.vocabulary.is_plain():
            return self.encode_words(text)
        from model_files.added_tokens import encode  # other models add tokens such as <|user|>

        return encode(text, self)

    def encode_words(self, text):
        ids_of = self.ids_of_word.__getitem__  # dict[word], which computes what it lacks
        return list(chain.from_iterable(map(ids_of, split_words(text))))

    def encode_word(self, word):
        tokens = [CHAR_OF_BYTE[byte] for byte in word.encode("utf-8", "surrogateescape")]
        return tuple(self.vocabulary.ids[token] for token in merge(tokens, self.rank))

    def encode_bytes(self, data):
        """Return the ids of any bytes; decode_bytes returns the same bytes, valid UTF-8 or not."""
        return self.encode_words(data.decode("utf-8", "surrogateescape"))

    def decode(self, ids):
        """Return the text of ids: [15496, 995] -> "Hello world". Invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        """Return the bytes of ids; an id that only pads has none. ValueError for other ids."""
        return b"".join(map(self.bytes_of_id.__getitem__, ids))

    def decode_id(self, id_):
        if not 0 <= id_ < self.n_vocab:
            raise ValueError(f"id {id_} is not in the vocabulary, which has {self.n_vocab} ids")
        token = self.tokens[id_] if id_ < len(self.tokens) else ""
        if any(char not in BYTE_OF_CHAR for char in token):  # an added token, spelled as it is
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
    """The results of a function. A dict calls __missing__ only for an argument that is new."""

    MAX_RESULTS = 1 << 16  # about 16 MB of words and their ids

    def __init__(self, function):
        self.function = function

    def __missing__(self, argument):
        result = self.function(argument)
        if len(self) >= self.MAX_RESULTS:
            self.clear()
        if len(result) < 100:  # a long word hardly occurs again, and takes much memory
            self[argument] = result
        return result


def without_surrogates(text):
    """Return a text without surrogates, the two halves in which UTF-16 writes a rare character, and
    which json.loads and Windows may leave in a text. Two become their character, one U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def get_encoder(model_name, models_dir=None):
    """Return the Encoder of a model directory, given as one path or as "124M", "models".

    FileNotFoundError if it holds no vocabulary, ValueError naming the file if one is damaged.
    """
    directory = os.path.join(models_dir, model_name) if models_dir else model_name
    return Encoder(read_vocabulary(directory))


# ==== Learning a vocabulary =====================================================================

# These keep memory and time within bounds for texts of other kinds than English.
MAX_WORDS = 2**19  # different words
MAX_WORD = 64  # characters of a word
MAX_PIECES = 2**12  # pieces of longer words


def learn_bpe(texts, vocab_size):
    """Return an Encoder of <|endoftext|>, the 256 bytes and merges learned from texts.

    Learning ends at vocab_size tokens, or when no pair of neighbours occurs twice. No merge crosses
    the end of a word or of a text. ["low low lower"], 260 -> the merges l o, lo w, Ġ low.
    """
    tokens = [END_OF_TEXT, *sorted(BYTE_OF_CHAR)]
    if vocab_size < len(tokens):
        raise ValueError(f"vocab_size {vocab_size} is less than 257: {END_OF_TEXT} and 256 bytes")
    frequency = count_words(texts)
    id_of_byte = [tokens.index(CHAR_OF_BYTE[byte]) for byte in range(256)]
    words = [([id_of_byte[byte] for byte in word.encode()], n) for word, n in frequency.items()]
    merges = learn_merges(words, tokens, vocab_size)
    ids = {token: id_ for id_, token in enumerate(tokens)}
    return Encoder(Vocabulary(ids, [(tokens[a], tokens[b]) for a, b in merges]))


def count_words(texts):
    """Return a Counter of the words in texts. Very long ones count as words of MAX_WORD characters,
    and only the first of them; of very many different words, the rarest are left out."""
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
        least = 1
        while len(frequency) > MAX_WORDS:
            least += 1
            frequency = Counter({word: n for word, n in frequency.items() if n >= least})
    return frequency


def learn_merges_simply(words, tokens, vocab_size):
    """Return the merges: always the most frequent pair, of equals the one with the lower ids.

    words: [([id, ...], frequency), ...]; tokens: all tokens by id, to which the new ones are added.
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
    """Return how often two ids are neighbours: [([5, 6, 5, 6], 3)] -> {(5, 6): 6, (6, 5): 3}."""
    count = defaultdict(int)
    for ids, n in words:
        for pair in pairwise(ids):
            count[pair] += n
    return count


def replace(ids, pair, new):
    """Replace each occurrence of a pair: [5, 6, 7, 5, 6], (5, 6), 8 -> [8, 7, 8]."""
    replaced, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            replaced.append(new)
            i += 2
        else:
            replaced.append(ids[i])
            i += 1
    return replaced


def learn_merges(words, tokens, vocab_size):
    """Return the same, faster: a merge changes only the words that hold its pair.

    All pairs wait in a heap, the most frequent first, each with the indices of its words. A merge
    can only lower the counts of existing pairs, since every pair that it creates holds its new
    token. So a pair from the heap whose count has changed goes back with its new count.
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
        minus_count, pair, its_words = heapq.heappop(heap)
        if -minus_count != count[pair]:
            heapq.heappush(heap, (-count[pair], pair, its_words))
            continue
        if count[pair] < 2:
            break
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        new = len(tokens) - 1
        words_of_new = defaultdict(set)
        for w in its_words:
            ids, n = words[w]
            replaced = replace(ids, pair, new)
            for old_pair in pairwise(ids):
                count[old_pair] -= n
            for new_pair in pairwise(replaced):
                count[new_pair] += n
                if new in new_pair:
                    words_of_new[new_pair].add(w)
            words[w] = replaced, n
        for new_pair in words_of_new:
            heapq.heappush(heap, (-count[new_pair], new_pair, words_of_new[new_pair]))
    return merges
