"""Text files to ids: read in pieces, cut into two parts, set apart, spelled in several ways."""

import random

import numpy as np
import pytest

import corpus
from encoder import Encoder, learn_bpe
from model_files.added_tokens import AddedToken


def read_all(path, *options):
    return "".join(corpus.read_text(path, 0, path.stat().st_size, *options))


def test_text_comes_in_pieces_that_encode_as_the_whole(tmp_path):
    rng = random.Random(1)
    words = ["\n", "\n\n", "a", " the", "é", " 字字", "  ", "'s", " 12", "!?", "\t", "word "]
    whole = "".join(rng.choice(words) for _ in range(900_000))
    path = tmp_path / "text"
    path.write_bytes(whole.encode())
    pieces = list(corpus.read_text(path, 0, path.stat().st_size))
    assert len(pieces) > 1 and "".join(pieces) == whole
    encoder = learn_bpe([whole[:20_000]], 300)
    assert [i for piece in pieces for i in encoder.encode(piece)] == encoder.encode(whole)


def test_small_pieces_cut_no_character_and_no_word(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 5)
    path, text = tmp_path / "text", "é 字字字字 low\n\nlower  字x\n" * 3 + "y" * 20
    path.write_text(text, encoding="utf-8", newline="")
    pieces = list(corpus.read_text(path, 0, path.stat().st_size))
    assert "".join(pieces) == text and len(pieces) > 9
    encoder = learn_bpe([text], 280)
    assert [i for piece in pieces for i in encoder.encode(piece)] == encoder.encode(text)
    middle = text.encode().index(b"low")
    assert "".join(corpus.read_text(path, middle, middle + 3)) == "low"


def test_the_tail_is_held_out_and_no_character_is_cut(tmp_path):
    for name, content in ("a", "é" * 50), ("b", "字" * 11), ("c", "x" * 40):
        (tmp_path / name).write_text(content, encoding="utf-8")
    paths = [tmp_path / name for name in "abc"]
    for share in 0.1, 0.25, 0.27, 0.4, 0.9, 1.0:
        parts = corpus.split_files(paths, share)
        texts = ["".join("".join(corpus.read_text(*part)) for part in half) for half in parts]
        assert texts[0] + texts[1] == "é" * 50 + "字" * 11 + "x" * 40
        assert abs(len(texts[1].encode()) - share * 173) <= 3


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "full").write_text("text")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty: the file is empty"):
        corpus.split_files([tmp_path / "full", tmp_path / "empty"], 0.1)


def test_files_are_set_apart_and_counted(tmp_path):
    (tmp_path / "a").write_text("low low", encoding="utf-8")
    (tmp_path / "b").write_text("lower é", encoding="utf-8")
    encoder = learn_bpe(["low lower"], 260)
    parts = corpus.split_files([tmp_path / "a", tmp_path / "b"], 1.0)[1]
    with open(tmp_path / "ids", "wb") as file:
        file.write(b"\1\2")  # it is appended to what is there
        n_ids = corpus.write_ids(file, parts, encoder)
    ids = np.fromfile(tmp_path / "ids", corpus.id_type(encoder))[1:].tolist()
    assert ids == encoder.encode("low low") + [encoder.eot] + encoder.encode("lower é")
    assert n_ids == len(ids)
    vocabulary = encoder.vocabulary  # without <|endoftext|>, nothing stands between the two
    plain = {token: i - 1 for token, i in vocabulary.ids.items() if i}
    encoder = Encoder(vocabulary._replace(ids=plain))
    ids = np.concatenate(list(corpus.encode_parts(parts, encoder))).tolist()
    assert ids == encoder.encode("low low") + encoder.encode("lower é")


@pytest.mark.parametrize("n_vocab, size", [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_they_fit(n_vocab, size, small):
    ids = {**small.vocabulary.ids, **{f"x{i}": i for i in range(280, n_vocab)}}
    encoder = Encoder(small.vocabulary._replace(ids=ids))
    assert np.dtype(corpus.id_type(encoder)).itemsize == size
    assert np.array([n_vocab - 1], corpus.id_type(encoder))[0] == n_vocab - 1


def test_segmentations_spell_one_text_in_several_ways(text):
    text = text.read_text(encoding="utf-8")
    encoder = learn_bpe([text], 300)
    found = list(corpus.segmentations(encoder, 0.5, np.random.default_rng(0)))
    ids = [tuple(part.encode(text)) for part in found]
    assert len(set(ids)) == len(found) == corpus.COPIES
    assert found[-1] is encoder
    assert len(ids[0]) > len(ids[-1]) == min(map(len, ids))
    assert {encoder.decode(each) for each in ids} == {text}
    assert list(corpus.segmentations(encoder, 0, np.random.default_rng(0))) == [encoder]


def test_fewer_and_fewer_merges_are_left_out():
    encoder = learn_bpe([a + b for a in "abcdefgh" for b in "ijklmnop"] * 2, 999)
    n_merges = len(encoder.vocabulary.merges)
    assert n_merges == 64
    encoder, shares = Encoder(encoder.vocabulary._replace(added={"<x>": AddedToken(321)})), 0
    for seed in range(100):
        parts = list(corpus.segmentations(encoder, 0.5, np.random.default_rng(seed)))
        assert {part.encode("<x>")[0] for part in parts} == {321}
        shares += np.array([1 - len(part.vocabulary.merges) / n_merges for part in parts])
    expected = [0.5 * (1 - i / (corpus.COPIES - 1)) for i in range(corpus.COPIES)]
    np.testing.assert_allclose(shares / 100, expected, rtol=0, atol=0.03)


def test_lowercase_and_stopwords(tmp_path):
    path = tmp_path / "text"
    path.write_text("The King and THE queen, theory of the.", encoding="utf-8")
    assert read_all(path, True, ["the", "of"]) == "king and queen, theory ."
    assert read_all(path, True) == "the king and the queen, theory of the."
    assert read_all(path, False, ["the", "of"]) == "King and queen, theory ."


def test_a_byte_order_mark_is_no_part_of_a_text_but_at_its_start(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffone \ufefftwo".encode())
    assert read_all(path) == "one \ufefftwo"
    size = path.stat().st_size
    assert "".join(corpus.read_text(path, 7, size)) == "\ufefftwo"  # not at byte 0
    path.write_bytes("\ufeff".encode())
    assert read_all(path) == ""


def test_stopwords_after_a_byte_order_mark(tmp_path):
    (tmp_path / "words").write_bytes("\ufeffthe of".encode())
    assert corpus.read_stopwords(tmp_path / "words") == ["the", "of"]
    assert list(corpus.read_stopwords(None)) == []


@pytest.mark.parametrize("block", [corpus.BLOCK, 64])
def test_what_is_not_utf_8_is_refused_with_its_place(block, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", block)
    path = tmp_path / "binary"
    path.write_bytes(b"text " * 100 + b"\xff\xfe" + b"text " * 100)
    with pytest.raises(ValueError, match="binary: byte 500 is not UTF-8: convert the file"):
        read_all(path)
    with pytest.raises(ValueError, match="binary: not UTF-8"):
        corpus.read_stopwords(path)
