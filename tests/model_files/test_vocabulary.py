"""Vocabulary files are read as their writer meant them, or refused. Saved files are complete."""

import gc
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN, OPENAI
from damage import run_all

from encoder import Encoder, learn_bpe
from model_files.added_tokens import AddedToken
from model_files.files import MAX_JSON
from model_files.vocabulary import read_tokenizer, read_vocabulary, save_vocabulary


@pytest.fixture(scope="module")
def vocabulary(small):
    return small.vocabulary


def test_a_saved_vocabulary_is_read_again(vocabulary, tmp_path):
    directory = tmp_path / "new"
    save_vocabulary(vocabulary, directory)
    assert sorted(os.listdir(directory)) == ["merges.txt", "vocab.json"]
    lines = (directory / "merges.txt").read_bytes().decode().split("\n")
    assert lines[0] == "#version: 0.2" and lines[-1] == ""
    assert [tuple(line.split(" ")) for line in lines[1:-1]] == vocabulary.merges
    loaded = read_vocabulary(str(directory))
    assert loaded[:2] == vocabulary[:2] and loaded.added == {}
    assert loaded.files == {path.name: path.read_bytes() for path in directory.iterdir()}
    (directory / "vocab.json").rename(directory / "encoder.json")
    (directory / "merges.txt").rename(directory / "vocab.bpe")
    assert read_vocabulary(directory)[:-1] == loaded[:-1]  # The source, which comes last, differs.


def test_the_first_merge_may_begin_with_a_hash(tmp_path):
    vocabulary = learn_bpe(["# ## ### ####"] * 9, 259).vocabulary
    assert vocabulary.merges[0] == ("#", "#")
    save_vocabulary(vocabulary, tmp_path)
    version, _, merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").partition("\n")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")  # The version may be missing.
    assert version == "#version: 0.2" and read_vocabulary(tmp_path).merges == vocabulary.merges


def test_files_are_saved_unchanged_and_not_beside_those_of_another(vocabulary, tmp_path):
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<|user|>:", "padding": 1}')
    (tmp_path / "vocab.json").write_text("of another model")
    loaded, saved = read_vocabulary(tmp_path), tmp_path / "saved"
    save_vocabulary(loaded, saved)
    assert sorted(os.listdir(saved)) == ["tokenizer.json", "tokenizer_config.json"]
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert read_vocabulary(saved)[:-1] == loaded[:-1]
    with pytest.raises(ValueError, match="tokenizer.json belongs to another vocabulary: move it"):
        save_vocabulary(vocabulary, saved)
    (saved / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer_config.json belongs to another vocabulary"):
        save_vocabulary(vocabulary, saved)
    assert os.listdir(saved) == ["tokenizer_config.json"]  # Nothing was written.
    (saved / "tokenizer_config.json").unlink()
    save_vocabulary(vocabulary, saved)
    assert read_vocabulary(saved).ids == vocabulary.ids


def test_merges_share_the_tokens_of_the_ids_in_memory(vocabulary, tmp_path):
    save_vocabulary(vocabulary, tmp_path)
    ids, merges, *_ = read_vocabulary(tmp_path)
    same = {token: token for token in ids}
    assert merges and all(same[token] is token for pair in merges for token in pair)


def test_a_save_that_fails_leaves_the_old_file(vocabulary, tmp_path, monkeypatch):
    (tmp_path / "vocab.json").write_text("old")

    def refuse(source, target):
        assert json.loads(Path(source).read_text()) == vocabulary.ids
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        save_vocabulary(vocabulary, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]
    assert (tmp_path / "vocab.json").read_text() == "old"


@pytest.mark.parametrize("type_of_a_merge", [str, list])
def test_a_tokenizer_json_is_read(tmp_path, type_of_a_merge):
    file = json.loads((GOLDEN / "encoder_tokenizer.json").read_text(encoding="utf-8"))
    pairs = [m.split(" ") if isinstance(m, str) else m for m in file["model"]["merges"]]
    merge = " ".join if type_of_a_merge is str else list
    file["model"]["merges"] = [merge(pair) for pair in pairs]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    loaded = read_vocabulary(tmp_path)
    assert loaded.ids == file["model"]["vocab"] and loaded.merges == [tuple(p) for p in pairs]
    assert sorted(loaded.added) == ["<|endoftext|>", "<|user|>", "<|user|>:"]
    golden = json.loads((GOLDEN / "encoder.json").read_text(encoding="utf-8"))
    for case in golden["added"]:
        assert Encoder(loaded).encode(case["text"]) == case["ids"]


def test_added_tokens_may_be_listed_in_any_order(tmp_path):
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tmp_path / "tokenizer.json")
    decoder = {"303": {"content": "<b>"}, "302": {"content": "<a>"}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    added = read_vocabulary(tmp_path).added
    assert (added["<a>"].id, added["<b>"].id) == (302, 303)


def test_a_tokenizer_json_takes_precedence_over_vocab_json(vocabulary, tmp_path):
    save_vocabulary(vocabulary, tmp_path)
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tmp_path / "tokenizer.json")
    assert len(read_vocabulary(tmp_path).ids) == 300 != len(vocabulary.ids)


def change(file, content):
    return lambda directory: (directory / file).write_bytes(content(directory))


def vocab(edit):
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


def first_merge(directory):
    return (directory / "merges.txt").read_bytes().splitlines(keepends=True)[1]


FAULTS = {  # {fault: (a function that damages a directory, a pattern of the error)}
    "not JSON": (raw("vocab.json", b"{"), "vocab.json: damaged JSON"),
    "not UTF-8": (raw("vocab.json", b'{"\xff": 0}'), "vocab.json: damaged JSON"),
    "a list as the file": (raw("vocab.json", b"[]"), "vocab.json: damaged JSON: not an object"),
    "deeply nested": (raw("vocab.json", b"[" * 100_000), "vocab.json: damaged JSON"),
    "a long number": (raw("vocab.json", b'{"a": ' + b"1" * 10_000 + b"}"), "vocab.json"),
    "a key twice": (raw("vocab.json", b'{"a": 0, "a": 0}'), "vocab.json: .*a key occurs twice"),
    "NaN": (vocab(lambda v: v.update(x=float("nan"))), "NaN is n"),
    "true": (vocab(lambda v: v.update({"!": True})), "an id is not an integer"),
    "text for an id": (vocab(lambda v: v.update(x="280")), "an id is not an integer"),
    "a list for an id": (vocab(lambda v: v.update(x=[])), "an id is not an integer"),
    "an id far away": (vocab(lambda v: v.update(x=10**9)), "an id is not between 0 and 500000"),
    "same id": (vocab(lambda v: v.update(x=5)), "280 tokens have 279 ids: two share one"),
    "negative id": (vocab(lambda v: v.update(x=-1)), "an id is not between 0 and 500000"),
    "missing byte": (vocab(lambda v: v.update(xx=v.pop("!"))), "vocab.json.*byte 33 has no token"),
    "no tokens": (raw("vocab.json", b"{}"), "merges.txt: a merge has .*, which is not a token"),
    "merges not UTF-8": (raw("merges.txt", b"\xff \xff\n"), "merges.txt: 'utf-8' codec"),
    "three tokens": (added_line(b"t h e\n"), "merges.txt: a line does not hold two tokens"),
    "no such token": (added_line(b"t hq\n"), "merges.txt: a merge has 'hq', which is not a token"),
    "no such result": (added_line(b"q z\n"), "merges.txt: a merge makes 'qz', .* not a token"),
    "merge twice": (
        change("merges.txt", lambda directory: first_merge(directory) * 2),
        "merges.txt: a merge occurs twice",
    ),
    "too many merges": (raw("merges.txt", b"! !\n" * 500_001), "500001 merges, more than 500000"),
    "many tokens in a line": (raw("merges.txt", b"! " * 9999), "does not hold two tokens"),
    "too many tokens": (raw("vocab.json", b"[" + b"0," * 500_000), "more than 500000 values"),
    "a long token of a merge": (added_line(b"t " + b"h" * 9999 + b"\n"), "merge has '?h{38,40}, "),
    "added tokens without end": (
        raw("added_tokens.json", b'{"%s": 280}' % (b"<" * 199_988)),
        "have 200001 characters, more than 200000",
    ),
    "added tokens": (raw("added_tokens.json", b"7"), "added_tokens.json: damaged JSON"),
    "added id": (raw("added_tokens.json", b'{"<x>": 7}'), "the id 7, but should have 280"),
    "large added id": (raw("added_tokens.json", b'{"<x>": 1%s}' % (b"0" * 12)), "should have 280"),
    "large id in settings": (
        raw("tokenizer_config.json", b'{"added_tokens_decoder": {"9999999": {"content": "<x>"}}}'),
        "'<x>' has the id 9999999, but should have 280",
    ),
    "no model": (tokenizer(lambda t: t.pop("model")), "tokenizer.json: not a byte-level BPE"),
    "no merges": (tokenizer(lambda t: t["model"].pop("merges")), "tokenizer.json: not a byte"),
    "unigram": (tokenizer(lambda t: t["model"].update(vocab=[["a", 0.5]])), "not a byte-level BPE"),
    "pairs": (tokenizer(lambda t: t.update(model={"vocab": [[1, 0]], "merges": []})), "not a byte"),
    "a merge of one": (tokenizer(lambda t: t["model"]["merges"].append(["t"])), "not a byte-level"),
    "list in a merge": (tokenizer(lambda t: t["model"]["merges"].append(["t", [1]])), "not a byte"),
    "an added token as text": (tokenizer(lambda t: t["added_tokens"].append("x")), "damaged added"),
    "an empty added token": (
        tokenizer(lambda t: t["added_tokens"].append({"content": "", "id": 302})),
        "tokenizer.json: damaged added token",
    ),
    "another pre-tokenizer": (
        tokenizer(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})),
        "pre_tokenizer is not GPT-2's",
    ),
    "a normalizer": (
        tokenizer(lambda t: t.update(normalizer={"type": "NFC"})),
        "normalizer is not",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused_by_name(fault, tmp_path, vocabulary):
    save_vocabulary(vocabulary, tmp_path)
    damage, message = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        Encoder(read_vocabulary(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert gc.isenabled()


def test_deeply_nested_post_processors_are_refused():
    """Newer versions of Python read JSON that is nested deeper than function calls can be."""
    post = {"type": "ByteLevel"}
    for _ in range(5000):
        post = {"type": "Sequence", "processors": [post]}
    file = {"model": {"vocab": {"a": 0}, "merges": []}, "post_processor": post}
    with pytest.raises(ValueError, match="x: not a byte-level BPE vocabulary .RecursionError"):
        read_tokenizer("x", file)


def test_mutated_files_are_read_or_refused_by_name(vocabulary, tmp_path):
    rng = random.Random(4)
    save_vocabulary(vocabulary, tmp_path / "pair")
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
            encoder = Encoder(read_vocabulary(path.parent))
            assert encoder.decode(encoder.encode("the thesis 日本")) == "the thesis 日本"
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        path.write_bytes(good)
    assert 50 < refused < 200


@pytest.mark.skipif(os.name == "nt", reason="memory is not measured there")
def test_the_largest_possible_vocabulary_takes_less_than_300_MB(tmp_path):
    """It has as many keys as are allowed, and then a text of four bytes per character."""
    directory = shutil.copytree(OPENAI, tmp_path / "model")
    keys = b"{" + b"".join(b'"%x":1000,' % i for i in range(499_000)) + b'"x":"\xf0\x9f\x98\x80'
    (directory / "encoder.json").write_bytes(keys + b"x" * (MAX_JSON - len(keys) - 2) + b'"}')
    results, peak = run_all([directory])
    assert "an id is not an integer" in results[0][2]
    assert peak < 300


def test_a_missing_end_of_text_is_an_added_token_as_in_transformers(vocabulary, tmp_path):
    ids = {token: id_ - 1 for token, id_ in vocabulary.ids.items() if id_ > 0}
    save_vocabulary(vocabulary._replace(ids=ids), tmp_path)
    loaded = read_vocabulary(tmp_path)
    assert loaded.added == {"<|endoftext|>": AddedToken(len(ids))}
    for n_vocab, eot in (len(ids), None), (len(ids) + 9, len(ids)):
        assert Encoder(loaded, n_vocab).eot == eot


def test_a_directory_without_a_vocabulary_is_refused(tmp_path, vocabulary):
    with pytest.raises(FileNotFoundError, match="no vocab.json with merges.txt"):
        read_vocabulary(tmp_path)
    save_vocabulary(vocabulary, tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=str(tmp_path.name)):
        read_vocabulary(tmp_path)
