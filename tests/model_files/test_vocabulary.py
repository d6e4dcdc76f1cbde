"""Files of a vocabulary are read as they were meant, or refused by name; saved ones are whole."""

import gc
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN

from encoder import Encoder, learn_bpe
from model_files.added_tokens import AddedToken
from model_files.vocabulary import (
    BYTE_OF_CHAR,
    CHAR_OF_BYTE,
    check_vocabulary,
    read_vocabulary,
    save_vocabulary,
)


@pytest.fixture(scope="module")
def vocabulary(small):
    return small.vocabulary


def test_each_byte_has_a_visible_character():
    assert sorted(CHAR_OF_BYTE) == list(range(256))
    assert all(BYTE_OF_CHAR[char] == byte for byte, char in CHAR_OF_BYTE.items())
    assert "".join(CHAR_OF_BYTE[byte] for byte in b" low\n") == "ĠlowĊ"
    assert "".join(CHAR_OF_BYTE[byte] for byte in "é".encode()) == "Ã©"
    assert all(char.isprintable() and not char.isspace() for char in BYTE_OF_CHAR)


def test_the_released_vocabulary_passes_the_check(shared, monkeypatch):
    """The shortcut for these very files must not hide a fault that the check would find."""
    monkeypatch.setattr("model_files.vocabulary.check_vocabulary", None)  # not called
    check_vocabulary(*read_vocabulary(shared / "gpt2-vocab")[:2])


def test_the_shortcut_is_for_the_released_files_alone(shared, tmp_path):
    for name in "vocab.json", "merges.txt":
        (tmp_path / name).write_bytes((shared / "gpt2-vocab" / name).read_bytes())
    with open(tmp_path / "merges.txt", "a", encoding="utf-8") as file:
        file.write("t hq\n")
    with pytest.raises(ValueError, match="merges.txt: a merge leads nowhere: 'hq'"):
        read_vocabulary(tmp_path)


def test_save_and_read(vocabulary, tmp_path):
    directory = tmp_path / "new"
    save_vocabulary(vocabulary, directory)
    assert sorted(os.listdir(directory)) == ["merges.txt", "vocab.json"]
    lines = (directory / "merges.txt").read_bytes().decode().split("\n")
    assert lines[0] == "#version: 0.2" and lines[-1] == ""
    assert [tuple(line.split(" ")) for line in lines[1:-1]] == vocabulary.merges
    found = read_vocabulary(str(directory))
    assert found[:2] == vocabulary[:2] and found.added == {"<|endoftext|>": AddedToken(0)}
    assert found.files == {path.name: path.read_bytes() for path in directory.iterdir()}
    (directory / "vocab.json").rename(directory / "encoder.json")
    (directory / "merges.txt").rename(directory / "vocab.bpe")
    assert read_vocabulary(directory) == found


def test_a_first_merge_may_begin_with_a_hash(tmp_path):
    vocabulary = learn_bpe(["# ## ### ####"] * 9, 259).vocabulary
    assert vocabulary.merges[0] == ("#", "#")
    save_vocabulary(vocabulary, tmp_path)
    version, _, merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").partition("\n")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")  # a version may be missing
    assert version == "#version: 0.2" and read_vocabulary(tmp_path).merges == vocabulary.merges


def test_what_was_read_is_saved_as_it_was_and_what_was_there_goes(vocabulary, tmp_path):
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<|user|>:", "padding": 1}')
    (tmp_path / "vocab.json").write_text("of another model")
    found, saved = read_vocabulary(tmp_path), tmp_path / "saved"
    save_vocabulary(found, saved)
    assert sorted(os.listdir(saved)) == ["tokenizer.json", "tokenizer_config.json"]
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert read_vocabulary(saved) == found
    save_vocabulary(vocabulary, saved)  # into the same directory
    assert sorted(os.listdir(saved)) == ["merges.txt", "vocab.json"]
    assert read_vocabulary(saved).ids == vocabulary.ids


def test_a_token_is_in_memory_once(vocabulary, tmp_path):
    save_vocabulary(vocabulary, tmp_path)
    ids, merges, *_ = read_vocabulary(tmp_path)
    spelled = {token: token for token in ids}
    assert merges and all(spelled[token] is token for pair in merges for token in pair)


def test_save_fails_whole(vocabulary, tmp_path, monkeypatch):
    (tmp_path / "vocab.json").write_text("old")

    def refuse(source, target):
        assert json.loads(Path(source).read_text()) == vocabulary.ids
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError):
        save_vocabulary(vocabulary, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]
    assert (tmp_path / "vocab.json").read_text() == "old"


@pytest.mark.parametrize("spelled", [str, list])
def test_tokenizer_json(tmp_path, spelled):
    file = json.loads((GOLDEN / "encoder_tokenizer.json").read_text(encoding="utf-8"))
    pairs = [m.split(" ") if isinstance(m, str) else m for m in file["model"]["merges"]]
    file["model"]["merges"] = pairs if spelled is list else [" ".join(pair) for pair in pairs]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    found = read_vocabulary(tmp_path)
    assert found.ids == file["model"]["vocab"] and found.merges == [tuple(p) for p in pairs]
    assert sorted(found.added) == ["<|endoftext|>", "<|user|>", "<|user|>:"]
    golden = json.loads((GOLDEN / "encoder.json").read_text(encoding="utf-8"))
    for case in golden["added"]:
        assert Encoder(found).encode(case["text"]) == case["ids"]


def test_tokenizer_json_has_the_say_over_vocab_json(vocabulary, tmp_path):
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


FAULTS = {
    "not JSON": (raw("vocab.json", b"{"), "vocab.json: damaged JSON"),
    "not UTF-8": (raw("vocab.json", b'{"\xff": 0}'), "vocab.json: damaged JSON"),
    "a list": (raw("vocab.json", b"[]"), "vocab.json: damaged JSON: not an object"),
    "deep": (raw("vocab.json", b"[" * 100_000), "vocab.json: damaged JSON"),
    "a long number": (raw("vocab.json", b'{"a": ' + b"1" * 10_000 + b"}"), "vocab.json"),
    "twice": (raw("vocab.json", b'{"a": 0, "a": 0}'), "vocab.json: .*a key occurs twice"),
    "NaN": (vocab(lambda v: v.update(x=float("nan"))), "NaN is no JSON"),
    "true": (vocab(lambda v: v.update({"!": True})), "an id is not an integer"),
    "text for an id": (vocab(lambda v: v.update(x="280")), "an id is not an integer"),
    "a list for an id": (vocab(lambda v: v.update(x=[])), "an id is not an integer"),
    "hole": (vocab(lambda v: v.update(x=10**9)), "are not 0 to 279, each once"),
    "same id": (vocab(lambda v: v.update(x=5)), "are not 0 to 279, each once"),
    "negative id": (vocab(lambda v: v.update(x=-1)), "are not 0 to 279, each once"),
    "no byte": (vocab(lambda v: v.update(xx=v.pop("!"))), "vocab.json.*byte 33 has no token"),
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
    "added id": (raw("added_tokens.json", b'{"<x>": 7}'), "'<x>' has the id 7, but gets 280"),
    "no model": (tokenizer(lambda t: t.pop("model")), "tokenizer.json: not a byte-level BPE"),
    "no merges": (tokenizer(lambda t: t["model"].pop("merges")), "tokenizer.json: not a byte"),
    "unigram": (tokenizer(lambda t: t["model"].update(vocab=[["a", 0.5]])), "is not an integer"),
    "odd merge": (tokenizer(lambda t: t["model"]["merges"].append(["t"])), "tokenizer.json: not a"),
    "odd part": (tokenizer(lambda t: t["model"]["merges"].append(["t", [1]])), "leads nowhere"),
    "odd added": (
        tokenizer(lambda t: t["added_tokens"].append("x")),
        "tokenizer.json: damaged added",
    ),
    "empty added": (
        tokenizer(lambda t: t["added_tokens"].append({"content": "", "id": 302})),
        "tokenizer.json: damaged added token",
    ),
    "other cut": (
        tokenizer(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})),
        "pre_tokenizer is not GPT-2's",
    ),
    "normalizer": (tokenizer(lambda t: t.update(normalizer={"type": "NFC"})), "normalizer is not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_named(fault, tmp_path, vocabulary):
    save_vocabulary(vocabulary, tmp_path)
    damage, message = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        read_vocabulary(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert gc.isenabled()


def test_mutated_files_load_or_are_named(vocabulary, tmp_path):
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


def test_nothing_there(tmp_path, vocabulary):
    with pytest.raises(FileNotFoundError, match="no vocab.json with merges.txt"):
        read_vocabulary(tmp_path)
    save_vocabulary(vocabulary, tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=str(tmp_path.name)):
        read_vocabulary(tmp_path)
