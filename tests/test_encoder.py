"""Compare encoder.py with tiktoken and tokenizers (golden files) and with its simple versions."""

import json
import random
import shutil

import pytest
import regex
from conftest import GOLDEN

import encoder as bpe
from encoder import BYTE_OF_CHAR, CHAR_OF_BYTE, get_encoder, learn_bpe
from model_files import unicode16
from model_files.added_tokens import AddedToken
from model_files.vocabulary import save_vocabulary

WHITE_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2003\u200b\u2028\u2029\u202f\u205f\u3000"
PIECES = [
    "",
    " ",
    "Hello world",
    "Alan Turing theorized that computers would one day become",
    "I'm we've you'll he'd she's they're can't I'M 'tis ''s '",
    "3.14159 x2 2x  ½ ² Ⅷ ٣ 一二三 1,000,000",
    "naïve café Ünï İstanbul ǅ ﬁ e\u0301 \u0301",
    "日本語のテキスト、中文字符。한국어 عربى עברית हिन्दी ไทย",
    "😀 👩‍👩‍👧‍👦 🇫🇷 𝒳𝓎 \U0001f9ff\U00020000\U000e0001\U0010ffff",
    "\u0558\u088f\U000323b0\U00011de0\U0003d000x newer than Unicode 16",
    "<|endoftext|> <|endoftext|",
    "def f(x):\n\treturn x  # _private __init__\r\n\r\n    pass\n",
    "trailing spaces   ",
    "   leading,   inner    and \n \n\n newlines \n",
    "\x00\x01\x7f\x80\xad\xff\ufeff\ufffd\ufffe",
    "\ud800 lone \udfff\udc00 pair \ud83d\ude00",
    *(f"a{c}{c}b {c}c{c} " for c in WHITE_SPACE),
]


def random_text(rng):
    """Return a random mix of white space, PIECES, and characters of all kinds, even surrogates."""
    ranges = [(0, 128), (0, 0x250), (0, 0x3000), (0, 0x10000), (0xD7F0, 0xE010), (0, 0x110000)]
    parts = []
    for _ in range(rng.randrange(1, 12)):
        low, high = rng.choice(ranges)
        chars = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(8)))
        space = rng.choice(WHITE_SPACE) * rng.randrange(4)
        parts.append(rng.choice([chars, space, rng.choice(PIECES)[: rng.randrange(30)]]))
    return "".join(parts)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "encoder.json").read_text(encoding="utf-8"))


# The byte alphabet


def test_each_byte_has_a_visible_character():
    assert sorted(CHAR_OF_BYTE) == list(range(256))
    assert all(BYTE_OF_CHAR[char] == byte for byte, char in CHAR_OF_BYTE.items())
    assert "".join(CHAR_OF_BYTE[byte] for byte in b" low\n") == "ĠlowĊ"
    assert "".join(CHAR_OF_BYTE[byte] for byte in "é".encode()) == "Ã©"
    assert all(char.isprintable() and not char.isspace() for char in BYTE_OF_CHAR)


# Words


@pytest.mark.parametrize("split", [bpe.split_words_simply, bpe.split_words])
def test_a_text_is_split_into_words(split):
    assert list(split("So,  I'm in")) == ["So", ",", " ", " I", "'m", " in"]
    assert list(split("")) == []


def test_splitting_a_text_by_pieces_gives_the_same_words():
    rng = random.Random(2)
    texts = ["".join(random_text(rng) for _ in range(60)) for _ in range(30)]
    texts += ["".join(map(chr, rng.choices(range(128), k=3000))) for _ in range(10)]
    texts += ["x" * n + space * 5 + "y" for n in range(996, 1002) for space in WHITE_SPACE]
    n_newer = 0
    for text in map(bpe.without_surrogates, texts):
        assert list(bpe.split_words(text)) == unicode16.compile_words(bpe.WORD)(text)
        assigned = "".join(char for char in text if not unicode16.has_newer_character(char))
        assert list(bpe.split_words(assigned)) == bpe.split_words_simply(assigned)
        n_newer += len(text) - len(assigned)
    assert n_newer > 100


def test_characters_newer_than_unicode_16_are_neither_letters_nor_digits():
    is_letter_or_digit = regex.compile(r"[\p{L}\p{N}]").match  # This depends on regex's version.
    for char in map(chr, range(0x33480)):
        if unicode16.has_newer_character(char) and is_letter_or_digit(char):
            assert list(bpe.split_words(f"a{char}1{char}b")) == ["a", char, "1", char, "b"]


def test_a_long_text_is_split_only_as_far_as_words_are_taken():
    words = bpe.split_words("low and slow " * 10**6)
    assert iter(words) is words and [next(words) for _ in range(3)] == ["low", " and", " slow"]


# Merges


@pytest.mark.parametrize("merge", [bpe.merge_simply, bpe.merge])
def test_worked_merges(merge):
    merges = "l o, o w, lo w, ab c, b c, a b, x x, xx x".split(", ")
    rank = {tuple(pair.split(" ")): i for i, pair in enumerate(merges)}
    for word, tokens in (
        ("", ""),
        ("l", "l"),
        ("zq", "z q"),
        ("low", "low"),  # "l o" comes before "o w".
        ("slows", "s low s"),
        ("ow", "ow"),
        ("abc", "a bc"),  # "b c" comes before "a b", so "ab c" never occurs.
        ("abab", "ab ab"),
        ("xx", "xx"),
        ("xxx", "xxx"),  # The leftmost two are merged first, then the third is added.
        ("xxxx", "xx xx"),
        ("xxxxx", "xx xxx"),
    ):
        assert merge(list(word), rank) == tokens.split()


def test_fast_merging_gives_the_same_tokens(small):
    rng = random.Random(3)
    for _ in range(300):
        word = rng.choice(["thesis", " naïve", "日本😀"]).encode()
        tokens = [bpe.CHAR_OF_BYTE[b] for b in rng.choices(word, k=rng.randrange(1, 60))]
        assert bpe.merge(list(tokens), small.rank) == bpe.merge_simply(tokens, small.rank)
    for _ in range(300):  # These ranks could not come from learning.
        parts = ["a", "b", "aa", "ab", "ba", "aab", "bb", "aaa", "abab"]
        pairs = [(x, y) for x in parts for y in parts]
        rank = {pair: i for i, pair in enumerate(rng.sample(pairs, rng.randrange(1, 12)))}
        tokens = rng.choices("ab", k=rng.randrange(1, 30))
        assert bpe.merge(list(tokens), rank) == bpe.merge_simply(tokens, rank)


def test_the_number_of_lookups_is_proportional_to_the_length_of_the_word():
    class CountingDict(dict):
        n_lookups = 0

        def __contains__(self, pair):
            CountingDict.n_lookups += 1
            return super().__contains__(pair)

        def get(self, pair):
            CountingDict.n_lookups += 1
            return super().get(pair)

    rank = {("a" * 2**i, "a" * 2**i): i for i in range(8)}
    assert set(bpe.merge(["a"] * 2**15, CountingDict(rank))) == {"a" * 256}
    assert CountingDict.n_lookups < 8 * 2**15


# Text to ids and back


@pytest.mark.parametrize("name", ["gpt2-vocab", "models/shakespeare-hf"])
def test_ids_are_those_of_the_reference(golden, name, shared):
    encoder = get_encoder(shared / name)
    reference = golden["gpt2" if name == "gpt2-vocab" else "shakespeare-hf"]
    for text, ids in zip(golden["texts"], reference, strict=True):
        assert encoder.encode(text) == ids
        assert encoder.decode(ids) == bpe.without_surrogates(text)


def test_the_released_vocabulary(shared):
    encoder = get_encoder(shared / "gpt2-vocab")
    assert (encoder.n_vocab, encoder.eot) == (50257, 50256)
    ranks = [encoder.rank[pair] for pair in (("Ġ", "l"), ("o", "w"), ("Ġl", "ow"))]
    assert ranks == sorted(ranks) and encoder.encode(" low") == [1877]
    assert encoder.encode("Hello my name is") == [15496, 616, 1438, 318]
    assert encoder.encode("Hello world") == [15496, 995]


def test_ids_of_added_tokens_are_those_of_transformers(golden, tmp_path):
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tmp_path / "tokenizer.json")
    encoder = get_encoder(tmp_path)
    assert (encoder.n_vocab, encoder.eot) == (302, 0)
    for case in golden["added"]:
        assert encoder.encode(case["text"]) == case["ids"]
        assert encoder.decode(case["ids"]) == case["text"]


def test_get_encoder_takes_a_path_or_a_name_and_its_directory(small, tmp_path):
    save_vocabulary(small.vocabulary, tmp_path / "124M")
    for encoder in (
        get_encoder("124M", str(tmp_path)),  # picoGPT calls it like this.
        get_encoder(model_name="124M", models_dir=str(tmp_path)),
        get_encoder(str(tmp_path / "124M")),
        get_encoder(tmp_path / "124M"),
    ):
        assert encoder.vocabulary.ids == small.vocabulary.ids
        assert encoder.decode(encoder.encode("the thesis")) == "the thesis"
    with pytest.raises(FileNotFoundError, match="355M"):
        get_encoder("355M", str(tmp_path))


def test_the_longest_of_several_added_tokens_is_found():
    vocabulary = learn_bpe([], 257).vocabulary
    added = {"<x y>": AddedToken(257), "<日>": AddedToken(258), "<日>z": AddedToken(259)}
    encoder = bpe.Encoder(vocabulary._replace(added=added))
    assert encoder.n_vocab == 260
    padded = bpe.Encoder(vocabulary._replace(added=added), n_vocab=263)
    assert padded.decode([258, 260, 262]) == "<日>"  # The padding ids 260 to 262 have no text.
    assert encoder.encode("<日><x y><日>z") == [258, 257, 259]
    assert encoder.decode(encoder.encode("a<x y>é<日>")) == "a<x y>é<日>"


def test_white_space_that_an_added_token_takes_is_not_encoded_again():
    added = {"<x>": AddedToken(257, rstrip=True), "  ": AddedToken(258)}
    encoder = bpe.Encoder(learn_bpe([], 257).vocabulary._replace(added=added))
    a = encoder.vocabulary.ids["a"]
    assert encoder.encode("  <x>    a  <x>\n") == [258, 257, a, 258, 257]
    separator = encoder.vocabulary.ids[CHAR_OF_BYTE[0x1C]]  # Only Python calls it white space.
    assert encoder.encode("<x>\u2003\x85\x1ca") == [257, separator, a]


def test_an_added_token_whose_id_the_model_does_not_have_is_refused():
    vocabulary = learn_bpe([], 257).vocabulary
    ids = {token: id_ - 1 for token, id_ in vocabulary.ids.items() if id_}
    added = {"<x>": AddedToken(256), "<y>": AddedToken(257), "<|endoftext|>": AddedToken(258)}
    encoder = bpe.Encoder(vocabulary._replace(ids=ids, added=added), n_vocab=257)
    assert encoder.encode("a<x>") == [ids["a"], 256] and encoder.eot is None
    with pytest.raises(ValueError, match="'<y>' is id 257: the model has 257 ids"):
        encoder.encode("a<y>")


def test_a_byte_without_a_token_and_a_merge_that_occurs_twice_are_refused(small):
    vocabulary = small.vocabulary._replace(source="here/vocab.json")
    ids = {token: id_ for token, id_ in vocabulary.ids.items() if token != "!"}
    with pytest.raises(ValueError, match="here/vocab.json: byte 33 has no token"):
        bpe.Encoder(vocabulary._replace(ids=ids))
    twice = [*vocabulary.merges, vocabulary.merges[0]]
    with pytest.raises(ValueError, match="here/vocab.json: a merge occurs twice"):
        bpe.Encoder(vocabulary._replace(merges=twice))


def test_a_vocabulary_may_list_its_tokens_in_any_order(small):
    vocabulary = small.vocabulary
    backwards = bpe.Encoder(vocabulary._replace(ids=dict(reversed(vocabulary.ids.items()))))
    ids = small.encode("low and slow, low again")
    assert backwards.encode("low and slow, low again") == ids and len(ids) > 3
    assert backwards.decode(ids) == "low and slow, low again" and backwards.eot == small.eot


def test_a_vocabulary_without_merges_encodes_bytes():
    plain = learn_bpe(["some text"], 257)
    assert (plain.vocabulary.merges, plain.n_vocab, plain.eot) == ([], 257, 0)
    data = bytes(range(256))
    assert sorted(plain.encode_bytes(data)) == list(range(1, 257))
    assert plain.decode_bytes(plain.encode_bytes(data)) == data
    with pytest.raises(ValueError, match="vocab_size 256 is less than 257"):
        learn_bpe(["some text"], 256)


def test_any_bytes_and_any_text_are_decoded_as_they_were_encoded(small):
    rng = random.Random(1)
    for _ in range(300):
        data = rng.randbytes(rng.randrange(40))
        ids = small.encode_bytes(data)
        assert small.decode_bytes(ids) == data
        shown = data.decode(errors="replace")
        assert small.decode(ids) == "".join(small.decode_stream(ids)) == shown
        text = random_text(rng)
        clean = bpe.without_surrogates(text)
        assert small.decode(small.encode(text)) == clean
        assert small.encode_bytes(clean.encode()) == small.encode(clean)


def test_a_stream_yields_each_character_at_its_last_byte():
    plain = learn_bpe([], 257)
    fed, shown = b"", ""
    ids = plain.encode("aé日😀z")

    def feed():
        nonlocal fed
        for id_ in ids:
            assert shown == fed.decode(errors="ignore")
            fed += plain.decode_bytes([id_])
            yield id_

    for text in plain.decode_stream(feed()):
        assert text
        shown += text
    assert shown == "aé日😀z"
    cut_off = list(plain.decode_stream(ids[:-2]))  # These ids end inside the character 😀.
    assert cut_off == ["a", "é", "日", "\ufffd"]


def test_an_unknown_id_is_refused(small):
    for id_ in small.n_vocab, -1:
        with pytest.raises(ValueError, match=f"id {id_} is not in the vocabulary"):
            small.decode([id_])


def test_a_token_that_is_not_spelled_in_bytes_stands_for_itself(small):
    # Some tokenizers leave such a token in the ids without listing it as an added token.
    ids = {**small.vocabulary.ids, "日 本": small.n_vocab}
    encoder = bpe.Encoder(small.vocabulary._replace(ids=ids))
    assert encoder.decode([small.n_vocab, *small.encode("日")]) == "日 本日"


def test_the_cache_of_words_is_bounded(small, monkeypatch):
    small.encode("y" * 1000 + " zz")
    assert "y" * 1000 not in small.ids_of_word and " zz" in small.ids_of_word
    small.ids_of_word.clear()
    monkeypatch.setattr(bpe.Cache, "MAX_RESULTS", 100)
    for number in range(1000):
        small.encode(str(number))
        assert len(small.ids_of_word) <= 100


# Learning a vocabulary


def test_a_learned_vocabulary_equals_that_of_tokenizers(golden):
    for case in golden["learned"]:
        learned = learn_bpe(iter(case["chunks"]), case["vocab_size"])
        assert [" ".join(pair) for pair in learned.vocabulary.merges] == case["merges"]
        assert learned.vocabulary.ids == {token: id_ for id_, token in enumerate(case["vocab"])}
        assert learned.eot == 0 and learned.n_vocab <= case["vocab_size"]
        ids = [learned.encode(text) for text in PIECES[:10]]
        assert ids == case["ids"]


def test_a_worked_vocabulary():
    merges = learn_bpe(["low low lower"], 260).vocabulary.merges
    assert merges == [("l", "o"), ("lo", "w"), ("Ġ", "low")]


def test_learning_treats_surrogates_as_encoding_does():
    learned, expected = (learn_bpe([text] * 2, 300).vocabulary for text in ("\ud83d\ude00", "😀"))
    assert learned == expected and len(learned.merges) == 3


def test_no_merge_crosses_the_end_of_a_text():
    assert learn_bpe(["abab"], 258).vocabulary.merges == [("a", "b")]
    assert learn_bpe(["a", "b", "a", "b"], 258).vocabulary.merges == []


def test_the_steps_of_learning():
    assert bpe.count_pairs([([5, 6, 5, 6], 3), ([5, 6], 1), ([7], 9)]) == {(5, 6): 7, (6, 5): 3}
    assert bpe.replace([5, 6, 7, 5, 6], (5, 6), 8) == [8, 7, 8]
    assert bpe.replace([5, 5, 5], (5, 5), 8) == [8, 5] and bpe.replace([], (5, 5), 8) == []


@pytest.mark.parametrize("learn", [bpe.learn_merges_simply, bpe.learn_merges])
def test_worked_learning(learn):
    tokens = ["a", "b", "c"]
    words = [([0, 1, 2], 3), ([1, 2], 2), ([0, 1], 3), ([2, 2, 2, 2], 1)]
    # At first "a b" occurs 6 times. Then "c c" and "ab c" occur 3 times each, and "b c" twice.
    assert learn(words, tokens, 99) == [(0, 1), (2, 2), (3, 2), (1, 2)]
    assert tokens == ["a", "b", "c", "ab", "cc", "abc", "bc"]
    tokens = ["a", "b", "c"]
    assert learn(words, tokens, 4) == [(0, 1)] and tokens == ["a", "b", "c", "ab"]
    assert learn([], ["a"], 9) == learn([([0, 0], 1)], ["a"], 9) == []


@pytest.mark.parametrize("start", ["a b", "a b c", "a b aa ab"])
def test_fast_learning_gives_the_same_merges(start):
    """Two merges can make the same token only if "aa" is a token from the start."""
    rng, n_repeated = random.Random(0), 0
    for _ in range(500):
        tokens = start.split()
        words = [
            (rng.choices(range(len(tokens)), k=rng.randrange(1, 12)), rng.randrange(1, 4))
            for _ in range(rng.randrange(1, 9))
        ]
        simple, fast, size = list(tokens), list(tokens), rng.choice([5, 9, 99])
        merges = bpe.learn_merges_simply(words, simple, size)
        assert (bpe.learn_merges(words, fast, size), fast) == (merges, simple), words
        n_repeated += len(set(simple)) < len(simple)
    assert (n_repeated > 0) == ("aa" in start)


def test_many_and_long_words_are_counted_within_bounds(monkeypatch):
    assert bpe.count_words(["low low lower", " low"]) == {"low": 1, " low": 2, " lower": 1}
    monkeypatch.setattr(bpe, "MAX_WORD", 4)
    monkeypatch.setattr(bpe, "MAX_PIECES", 3)
    frequency = bpe.count_words(["abcdefghij abcd", "aaaaaaaaaaaa", " of"])
    # " abcd" would be the fourth piece, but only three are counted.
    assert frequency == {"abcd": 1, "efgh": 1, "ij": 1, " of": 1}
    monkeypatch.setattr(bpe, "MAX_WORDS", 3)
    assert bpe.count_words(["a b b c c d", " b"]) == {" b": 3, " c": 2}
    many = [" ".join(f"{i:04}" for i in range(n, n + 50)) for n in range(0, 1000, 50)]
    assert len(bpe.count_words(many)) <= 3


def test_learning_from_one_very_long_word_is_fast():
    learned = bpe.learn_bpe(["".join(random.Random(0).choices("abcdef", k=1_000_000))], 270)
    assert len(learned.vocabulary.merges) == 13


def test_the_end_of_text_is_a_token_on_request():
    encoder = learn_bpe(["low lower"], 260)
    text = "<|endoftext|>low<|endoftext|><|endoftext|> lower<|endoftex"
    parts = [encoder.eot, "low", encoder.eot, encoder.eot, " lower<|endoftex"]
    expected = [[x] if x == encoder.eot else encoder.encode(x) for x in parts]
    assert encoder.encode(text, special_tokens=True) == sum(expected, [])
    assert encoder.decode(sum(expected, [])) == text
    assert encoder.eot not in encoder.encode(text)
    assert encoder.encode("low", special_tokens=True) == encoder.encode("low")
