"""encoder.py against tiktoken and tokenizers (golden files), itself, and damaged files."""

import gc
import json
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import encoder as room
from encoder import Encoder, decode_stream, get_encoder, learn_bpe, save_encoder

GOLDEN = Path(__file__).parent / "golden"
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


def shared(name):
    """A folder of the shared data, or a skipped test."""
    root = os.environ.get("GPT2_SHARED", Path(__file__).parents[2] / "shared")
    if not (path := Path(root) / name).exists():
        pytest.skip(f"no {path} (GPT2_SHARED says where the shared data lies)")
    return path


def random_text(rng):
    """Letters, white space, control characters, every plane, surrogates, pieces of PIECES."""
    ranges = [(0, 128), (0, 0x250), (0, 0x3000), (0, 0x10000), (0xD7F0, 0xE010), (0, 0x110000)]
    parts = []
    for _ in range(rng.randrange(1, 12)):
        low, high = rng.choice(ranges)
        some = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(8)))
        space = rng.choice(WHITE_SPACE) * rng.randrange(4)
        parts.append(rng.choice([some, space, rng.choice(PIECES)[: rng.randrange(30)]]))
    return "".join(parts)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "encoder.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def small():
    return learn_bpe(["the theme of the thesis, naïve naïve 日本日本 😀😀  \n\n"] * 2, 280)


@pytest.mark.parametrize("name", ["gpt2", "shakespeare-hf"])
def test_ids_are_those_of_the_reference(golden, name):
    encoder = get_encoder(shared("gpt2-vocab" if name == "gpt2" else "models/shakespeare-hf"))
    for text, ids in zip(golden["texts"], golden[name], strict=True):
        assert encoder.encode(text) == ids
        assert encoder.decode(ids) == room.without_surrogates(text)


def test_released_vocabulary(golden):
    encoder = get_encoder(shared("gpt2-vocab"))
    assert (encoder.n_vocab, encoder.eot) == (50257, 50256)
    ranks = [encoder.rank[pair] for pair in (("Ġ", "l"), ("o", "w"), ("Ġl", "ow"))]
    assert ranks == sorted(ranks) and encoder.encode(" low") == [1877]
    assert encoder.encode("Hello my name is") == [15496, 616, 1438, 318]
    # The shortcut for these very files must not hide a fault that the check would find.
    room.check_vocabulary(encoder.encoder, encoder.merges, {})


def test_learned_vocabulary_is_that_of_tokenizers(golden):
    for case in golden["learned"]:
        learned = learn_bpe(iter(case["chunks"]), case["vocab_size"])
        assert [" ".join(pair) for pair in learned.merges] == case["merges"]
        assert learned.encoder == {token: id_ for id_, token in enumerate(case["vocab"])}
        assert learned.eot == 0 and learned.n_vocab <= case["vocab_size"]
        ids = [learned.encode(text) for text in PIECES[:10]]
        assert ids == case["ids"]


def test_worked_examples():
    assert learn_bpe(["low low lower"], 260).merges == [("l", "o"), ("lo", "w"), ("Ġ", "low")]
    words = [word for part in room.split_words("So,  I'm in") for word in part]
    assert words == ["So", ",", " ", " I", "'m", " in"]


def test_learning_takes_the_end_of_a_chunk_for_the_end_of_a_word():
    assert learn_bpe(["abab"], 258).merges == [("a", "b")]
    assert learn_bpe(["a", "b", "a", "b"], 258).merges == []


def test_bytes_without_merges():
    plain = learn_bpe(["some text"], 257)
    assert (plain.merges, plain.n_vocab, plain.eot) == ([], 257, 0)
    data = bytes(range(256))
    assert sorted(plain.encode_bytes(data)) == list(range(1, 257))
    assert plain.decode_bytes(plain.encode_bytes(data)) == data
    with pytest.raises(ValueError, match="vocab_size 256 is less than 257"):
        learn_bpe(["some text"], 256)


def test_bytes_survive(small):
    rng = random.Random(1)
    for _ in range(300):
        data = rng.randbytes(rng.randrange(40))
        ids = small.encode_bytes(data)
        assert small.decode_bytes(ids) == data
        shown = data.decode(errors="replace")
        assert small.decode(ids) == "".join(decode_stream(small, ids)) == shown
        text = random_text(rng)
        clean = room.without_surrogates(text)
        assert small.decode(small.encode(text)) == clean
        assert small.encode_bytes(clean.encode()) == small.encode(clean)


def test_stream_gives_a_character_with_its_last_byte():
    plain = learn_bpe([], 257)
    seen, shown = b"", ""
    ids = plain.encode("aé日😀z")

    def feed():
        nonlocal seen
        for id_ in ids:
            assert shown == seen.decode(errors="ignore")
            seen += plain.decode_bytes([id_])
            yield id_

    for text in decode_stream(plain, feed()):
        assert text
        shown += text
    assert shown == "aé日😀z"
    cut = list(decode_stream(plain, ids[:-2]))  # ends inside of 😀
    assert cut == ["a", "é", "日", "\ufffd"]


def test_unknown_id(small):
    for id_ in small.n_vocab, -1:
        with pytest.raises(ValueError, match=f"id {id_} is not in the vocabulary"):
            small.decode([id_])


def test_words_do_not_depend_on_where_the_text_is_cut():
    rng = random.Random(2)
    texts = ["".join(random_text(rng) for _ in range(60)) for _ in range(30)]
    texts += ["".join(map(chr, rng.choices(range(128), k=3000))) for _ in range(10)]
    texts += ["x" * n + space * 5 + "y" for n in range(996, 1002) for space in WHITE_SPACE]
    for text in map(room.without_surrogates, texts):
        words = [word for part in room.split_words(text) for word in part]
        assert words == room.FIND_WORDS_EXACTLY(text)


def test_merging_takes_the_lowest_rank_then_the_leftmost(small):
    def merge_slowly(tokens):
        while True:
            pairs = list(zip(tokens, tokens[1:], strict=False))
            found = [(small.rank[pair], i) for i, pair in enumerate(pairs) if pair in small.rank]
            if not found:
                return tokens
            i = min(found)[1]
            tokens = [*tokens[:i], tokens[i] + tokens[i + 1], *tokens[i + 2 :]]

    rng = random.Random(3)
    for _ in range(300):
        word = rng.choice(["thesis", " naïve", "日本😀"]).encode()
        tokens = [room.CHAR_OF_BYTE[b] for b in rng.choices(word, k=rng.randrange(1, 60))]
        assert room.merge(list(tokens), small.rank) == merge_slowly(tokens)


def test_work_grows_in_step_with_the_word():
    class Counting(dict):
        looks = 0

        def __contains__(self, pair):
            Counting.looks += 1
            return super().__contains__(pair)

        def get(self, pair):
            Counting.looks += 1
            return super().get(pair)

    rank = {("a" * 2**i, "a" * 2**i): i for i in range(8)}
    assert set(room.merge(["a"] * 2**15, Counting(rank))) == {"a" * 256}
    assert Counting.looks < 8 * 2**15


def test_memory_of_words_is_bounded(small, monkeypatch):
    small.encode("y" * 1000 + " zz")
    assert "y" * 1000 not in small.ids_of_word and " zz" in small.ids_of_word
    small.ids_of_word.clear()
    monkeypatch.setattr(room, "CACHE_SIZE", 100)
    for number in range(1000):
        small.encode(str(number))
        assert len(small.ids_of_word) <= 100


def test_save_and_read(small, tmp_path):
    save_encoder(small, tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["merges.txt", "vocab.json"]
    lines = (tmp_path / "new" / "merges.txt").read_bytes().decode().split("\n")
    assert lines[0] == "#version: 0.2" and lines[-1] == ""
    assert [tuple(line.split(" ")) for line in lines[1:-1]] == small.merges
    again = get_encoder(str(tmp_path / "new"))
    assert (again.encoder, again.merges, again.added) == (small.encoder, small.merges, {})
    (tmp_path / "new" / "vocab.json").rename(tmp_path / "new" / "encoder.json")
    (tmp_path / "new" / "merges.txt").rename(tmp_path / "new" / "vocab.bpe")
    assert get_encoder(tmp_path / "new").encoder == small.encoder


def test_save_without_merges_and_with_added_tokens(tmp_path):
    plain = learn_bpe([], 257)
    added = {"<x y>": 257, "<é>": 258, "<é>z": 259}
    save_encoder(Encoder(plain.encoder, [], added), tmp_path)
    again = get_encoder(tmp_path)
    assert again.merges == [] and again.added == added and again.n_vocab == 260
    assert again.encode("<é><x y><é>z") == [258, 257, 259]
    assert again.decode(again.encode("a<x y>é<é>")) == "a<x y>é<é>"
    save_encoder(plain, tmp_path)
    assert get_encoder(tmp_path).added == {}


def test_save_fails_whole(small, tmp_path, monkeypatch):
    (tmp_path / "vocab.json").write_text("old")

    def refuse(source, target):
        assert json.loads(Path(source).read_text()) == small.encoder
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        save_encoder(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]
    assert (tmp_path / "vocab.json").read_text() == "old"


@pytest.mark.parametrize("spelled", [str, list])
def test_tokenizer_json(golden, tmp_path, spelled):
    file = json.loads((GOLDEN / "encoder_tokenizer.json").read_text(encoding="utf-8"))
    pairs = [m.split(" ") if isinstance(m, str) else m for m in file["model"]["merges"]]
    file["model"]["merges"] = pairs if spelled is list else [" ".join(pair) for pair in pairs]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    encoder = get_encoder(tmp_path)
    assert (encoder.n_vocab, encoder.eot) == (302, 0)
    assert sorted(encoder.added) == ["<|user|>", "<|user|>:"]
    for case in golden["added"]:
        assert encoder.encode(case["text"]) == case["ids"]
        assert encoder.decode(case["ids"]) == case["text"]


def change(file, content):
    return lambda directory: (directory / file).write_bytes(content(directory))


def vocabulary(edit):
    def content(directory):
        parsed = json.loads((directory / "vocab.json").read_bytes())
        edit(parsed)
        return json.dumps(parsed).encode()

    return change("vocab.json", content)


def tokenizer(edit):
    def apply(directory):
        file = json.loads((GOLDEN / "encoder_tokenizer.json").read_text(encoding="utf-8"))
        edit(file)
        for path in directory.iterdir():
            path.unlink()
        (directory / "tokenizer.json").write_text(json.dumps(file))

    return apply


def raw(file, data):
    return change(file, lambda directory: data)


def added_line(line):
    return change("merges.txt", lambda directory: (directory / "merges.txt").read_bytes() + line)


FAULTS = {
    "not JSON": (raw("vocab.json", b"{"), "vocab.json: damaged JSON"),
    "not UTF-8": (raw("vocab.json", b'{"\xff": 0}'), "vocab.json: damaged JSON"),
    "a list": (raw("vocab.json", b"[]"), "vocab.json: damaged JSON: not an object"),
    "deep": (raw("vocab.json", b"[" * 100_000), "vocab.json: damaged JSON"),
    "a long number": (raw("vocab.json", b'{"a": ' + b"1" * 10_000 + b"}"), "vocab.json"),
    "twice": (raw("vocab.json", b'{"a": 0, "a": 0}'), "vocab.json: .*a key occurs twice"),
    "NaN": (vocabulary(lambda v: v.update(x=float("nan"))), "NaN is no JSON"),
    "true": (vocabulary(lambda v: v.update({"!": True})), "an id is not an integer"),
    "text for an id": (vocabulary(lambda v: v.update(x="280")), "an id is not an integer"),
    "a list for an id": (vocabulary(lambda v: v.update(x=[])), "an id is not an integer"),
    "hole": (vocabulary(lambda v: v.update(x=10**9)), "are not 0 to 279, each once"),
    "same id": (vocabulary(lambda v: v.update(x=5)), "are not 0 to 279, each once"),
    "negative id": (vocabulary(lambda v: v.update(x=-1)), "are not 0 to 279, each once"),
    "no byte": (vocabulary(lambda v: v.update(xx=v.pop("!"))), "vocab.json.*byte 33 has no token"),
    "empty": (raw("vocab.json", b"{}"), "vocab.json.*byte 33 has no token"),
    "merges not UTF-8": (raw("merges.txt", b"\xff \xff\n"), "merges.txt: 'utf-8' codec"),
    "three tokens": (added_line(b"t h e\n"), "merges.txt: not two tokens a line"),
    "no such token": (added_line(b"t hq\n"), "merges.txt: a merge leads nowhere: 'hq'"),
    "no such result": (added_line(b"q z\n"), "merges.txt: a merge leads nowhere: 'qz'"),
    "merge twice": (
        change("merges.txt", lambda directory: b"t h\nt h\n"),
        "merges.txt: a merge is there twice",
    ),
    "added tokens": (raw("added_tokens.json", b"7"), "added_tokens.json: damaged JSON"),
    "added id": (raw("added_tokens.json", b'{"<x>": 7}'), "are not 0 to 280, each once"),
    "no model": (tokenizer(lambda t: t.pop("model")), "tokenizer.json: not a byte-level BPE"),
    "no merges": (tokenizer(lambda t: t["model"].pop("merges")), "tokenizer.json: not a byte"),
    "unigram": (tokenizer(lambda t: t["model"].update(vocab=[["a", 0.5]])), "is not an integer"),
    "odd merge": (tokenizer(lambda t: t["model"]["merges"].append(["t"])), "tokenizer.json: not a"),
    "odd part": (tokenizer(lambda t: t["model"]["merges"].append(["t", [1]])), "leads nowhere"),
    "odd added": (tokenizer(lambda t: t["added_tokens"].append("x")), "tokenizer.json: not a byte"),
    "empty added": (
        tokenizer(lambda t: t["added_tokens"].append({"content": "", "id": 302})),
        "tokenizer.json: an added token is empty",
    ),
    "other cut": (tokenizer(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})), "otherwise"),
    "prefix": (tokenizer(lambda t: t["pre_tokenizer"].update(add_prefix_space=True)), "otherwise"),
    "normalizer": (tokenizer(lambda t: t.update(normalizer={"type": "NFC"})), "otherwise"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_named(fault, tmp_path, small):
    save_encoder(small, tmp_path)
    damage, message = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        get_encoder(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert gc.isenabled()


def test_mutated_files_load_or_are_named(small, tmp_path):
    rng = random.Random(4)
    save_encoder(small, tmp_path / "pair")
    (tmp_path / "one").mkdir()
    file = (GOLDEN / "encoder_tokenizer.json").read_bytes()
    (tmp_path / "one" / "tokenizer.json").write_bytes(file)
    paths = [*(tmp_path / "pair").iterdir(), tmp_path / "one" / "tokenizer.json"]
    refused = 0
    for _ in range(200):
        path = rng.choice(paths)
        good = path.read_bytes()
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(bad))
            new = rng.choice([b"", b'"', b"9", b"{", rng.randbytes(1)])
            bad[at : at + rng.choice([0, 1, 1, 9])] = new
        path.write_bytes(bad)
        try:
            encoder = get_encoder(path.parent)
            assert encoder.decode(encoder.encode("the thesis 日本")) == "the thesis 日本"
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        path.write_bytes(good)
    assert 50 < refused < 200


def test_nothing_there(tmp_path, small):
    with pytest.raises(FileNotFoundError, match="no vocab.json with merges.txt"):
        get_encoder(tmp_path)
    save_encoder(small, tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=str(tmp_path.name)):
        get_encoder(tmp_path)
