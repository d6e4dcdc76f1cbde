"""Test how texts are found, read in pieces, held out in part, separated, and turned into ids."""

import http.server
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, curve, model_options, run

from encoder import Encoder, learn_bpe
from model_files.added_tokens import AddedToken
from training import corpus


def read_all(path, **options):
    return "".join(pieces_of(path, **options))


def pieces_of(path, **options):
    """Return the pieces in which a whole file is read."""
    return list(corpus.read_texts([(path, 0, path.stat().st_size)], **options))


def test_pieces_of_a_text_have_the_same_ids_as_the_whole(tmp_path):
    rng = random.Random(1)
    words = ["\n", "\n\n", "a", " the", "é", " 字字", "  ", "'s", " 12", "!?", "\t", "word "]
    whole = "".join(rng.choice(words) for _ in range(900_000))
    path = tmp_path / "text"
    path.write_bytes(whole.encode())
    pieces = pieces_of(path)
    assert len(pieces) > 1 and "".join(pieces) == whole
    encoder = learn_bpe([whole[:20_000]], 300)
    assert [i for piece in pieces for i in encoder.encode(piece)] == encoder.encode(whole)


def test_a_text_in_which_no_word_ends_is_cut_into_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 50)
    monkeypatch.setattr(corpus, "MAX_REST", 100)
    path, end = tmp_path / "text", "<|endoftext|>"
    for text in "é字x" * 200, " " * 900, " \n" * 400, f"{'x' * 37}{end}" * 30, "<" * 700:
        for start in range(3):
            path.write_text(text[start:], encoding="utf-8", newline="")
            pieces = pieces_of(path)
            assert pieces.count(None) == text[start:].count(end)
            pieces = [end if piece is None else piece for piece in pieces]
            assert "".join(pieces) == text[start:]
            assert len(pieces) > 4 and max(len(piece.encode()) for piece in pieces) < 250


def test_only_a_very_long_word_is_cut_when_a_text_is_encoded(small, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 10)
    usual = "the theme of the thesis\n\n naïve  日本日本 " * 9
    assert [*corpus.bounded_pieces(usual)] == [usual]
    for text in "the" * 50, f"{usual}{'the' * 50}{usual}":
        pieces = [*corpus.bounded_pieces(text)]
        assert "".join(pieces) == text and len(pieces) >= 7
        assert max(map(len, pieces)) <= len(usual) + 20
        assert small.decode(corpus.encode_text(text, small)) == text
    assert [*corpus.bounded_pieces("")] == [""]


def test_a_line_that_is_too_long_is_refused_with_its_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_LINE", 30)
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "low"}\n' + '{"text": "' + "low " * 9 + '"}\n')
    for share in 1.0, 0.5:
        with pytest.raises(ValueError, match="text.jsonl: the line at byte .* has more than 30"):
            _, parts = corpus.split_files([path], share)
            list(corpus.read_texts(parts))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("text", ["low ", "lower", " ", "\n", "字"])
def test_memory_does_not_depend_on_the_text(text, tmp_path):
    """Ten times as much text takes at most a tenth more memory."""
    code = "import resource, sys, train; train.main(sys.argv[1:])\n"
    code += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = []
    for n in 400_000, 4_000_000:
        (tmp_path / "text").write_text((text * n)[:n], encoding="utf-8", newline="")
        few = "--vocab_size", "270", "--iterations", "1", "--val_fraction", "0", "--overwrite"
        args = tmp_path / "text", "--out", tmp_path / "out", *SMALL[:10], *few
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=100,
        )
        peaks.append(int(done.stdout.split("peak")[1]))
    assert peaks[1] < 1.1 * peaks[0] + 30_000, peaks


def test_small_pieces_cut_no_character_and_no_word(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 5)
    path, text = tmp_path / "text", "é 字字字字 low\n\nlower  字x\n" * 3 + "y" * 20
    path.write_text(text, encoding="utf-8", newline="")
    pieces = pieces_of(path)
    assert "".join(pieces) == text and len(pieces) > 9
    encoder = learn_bpe([text], 280)
    assert [i for piece in pieces for i in encoder.encode(piece)] == encoder.encode(text)
    middle = text.encode().index(b"low")
    assert "".join(corpus.read_texts([(path, middle, middle + 3)])) == "low"


@pytest.mark.parametrize("n", [0, 1, 990, 999, 5000])
def test_a_block_is_cut_where_its_last_word_ends_even_far_from_its_end(n, tmp_path, monkeypatch):
    text = b"low low " + b"x" * n
    monkeypatch.setattr(corpus, "BLOCK", len(text))
    path = tmp_path / "text"
    path.write_bytes(text + b"  y")
    with open(path, "rb") as file:
        assert next(corpus.read_blocks(file, len(text) + 3)) == b"low low"


def test_the_end_is_held_out_and_no_character_is_cut(tmp_path):
    for name, content in ("a", "é" * 50), ("b", "字" * 11), ("c", "x" * 40):
        (tmp_path / name).write_text(content, encoding="utf-8")
    paths = [tmp_path / name for name in "abc"]
    for share in 0.1, 0.25, 0.27, 0.4, 0.9, 1.0:
        parts = corpus.split_files(paths, share)
        texts = ["".join(filter(None, corpus.read_texts(half))) for half in parts]
        assert texts[0] + texts[1] == "é" * 50 + "字" * 11 + "x" * 40
        assert abs(len(texts[1].encode()) - share * 173) <= 3


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty: the file is empty"):
        corpus.split_files([tmp_path / "empty"], 0.1)


def test_files_are_separated_and_their_ids_are_counted(tmp_path):
    (tmp_path / "a").write_text("low low", encoding="utf-8")
    (tmp_path / "b").write_text("lower é", encoding="utf-8")
    encoder = learn_bpe(["low lower"], 260)
    parts = corpus.split_files([tmp_path / "a", tmp_path / "b"], 1.0)[1]
    with open(tmp_path / "ids", "wb") as file:
        file.write(b"\1\2")  # write_ids must append to this
        n_ids = corpus.write_ids(file, parts, encoder)
    ids = np.fromfile(tmp_path / "ids", corpus.id_type(encoder))[1:].tolist()
    assert ids == encoder.encode("low low") + [encoder.eot] + encoder.encode("lower é")
    assert n_ids == len(ids)
    vocabulary = encoder.vocabulary  # without <|endoftext|>, nothing separates the files
    plain = {token: i - 1 for token, i in vocabulary.ids.items() if i}
    encoder = Encoder(vocabulary._replace(ids=plain))
    ids = np.concatenate(list(corpus.encode_parts(parts, encoder))).tolist()
    assert ids == encoder.encode("low low") + encoder.encode("lower é")


@pytest.mark.parametrize("n_vocab, size", [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_if_they_fit(n_vocab, size, small):
    ids = {**small.vocabulary.ids, **{f"x{i}": i for i in range(280, n_vocab)}}
    encoder = Encoder(small.vocabulary._replace(ids=ids))
    assert np.dtype(corpus.id_type(encoder)).itemsize == size
    assert np.array([n_vocab - 1], corpus.id_type(encoder))[0] == n_vocab - 1
    added = {"<x>": AddedToken(n_vocab)}  # one id more: an added token, or padding
    for other in (
        Encoder(encoder.vocabulary._replace(added=added)),
        Encoder(encoder.vocabulary, n_vocab + 1),
    ):
        assert np.array([n_vocab], corpus.id_type(other))[0] == n_vocab


def test_segmentations_split_a_text_into_tokens_in_several_ways(text):
    text = text.read_text(encoding="utf-8")
    encoder = learn_bpe([text], 300)
    encoders = list(corpus.segmentations(encoder, 0.5, np.random.default_rng(0)))
    ids = [tuple(part.encode(text)) for part in encoders]
    assert len(set(ids)) == len(encoders) == corpus.COPIES
    assert encoders[-1] is encoder
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
    words = ["the", "of"]
    assert read_all(path, lowercase=True, stopwords=words) == "king and queen, theory ."
    assert read_all(path, lowercase=True) == "the king and the queen, theory of the."
    assert read_all(path, stopwords=words) == "King and queen, theory ."


def test_a_byte_order_mark_is_skipped_only_at_the_start_of_a_file(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffone \ufefftwo".encode())
    for fraction, expected in (0, ("one \ufefftwo", "")), (1, ("", "one \ufefftwo")):
        parts = corpus.split_files([path], fraction)
        assert tuple("".join(corpus.read_texts(part)) for part in parts) == expected
    path.write_bytes("\ufeff".encode())
    assert corpus.split_files([path], 0.5) == ([], [])


def test_stopwords_after_a_byte_order_mark(tmp_path):
    (tmp_path / "words").write_bytes("\ufeffthe of".encode())
    assert corpus.read_stopwords(tmp_path / "words") == ["the", "of"]


@pytest.mark.parametrize("block", [corpus.BLOCK, 64])
def test_invalid_utf_8_is_refused_with_its_offset(block, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", block)
    path = tmp_path / "binary"
    path.write_bytes(b"text " * 100 + b"\xff\xfe" + b"text " * 100)
    with pytest.raises(ValueError, match="binary: byte 500 is not UTF-8: convert the file"):
        read_all(path)
    with pytest.raises(ValueError, match="binary: not UTF-8"):
        corpus.read_stopwords(path)


# Where a text ends

STORIES = (
    "<|endoftext|>é low\n<|endoftext|>\nslow lower<|endoftext|>\r\n\n<|endoftext|><|endoftext|> x"
)


def with_ends(encoder, *texts):
    """Return the expected ids of these texts, with <|endoftext|> between them."""
    ids = []
    for text in texts:
        ids += [encoder.eot, *encoder.encode(text)]
    return ids[1:]


def ids_of(paths, encoder, **text_options):
    parts = corpus.split_files(paths, 1.0)[1]
    return np.concatenate(list(corpus.encode_parts(parts, encoder, **text_options))).tolist()


@pytest.mark.parametrize("block", [corpus.BLOCK, *range(1, 40)])
def test_endoftext_and_a_line_break_after_it_are_a_boundary(block, small, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", block)
    path = tmp_path / "stories"
    path.write_bytes(STORIES.encode())
    texts = ["", "é low\n", "slow lower", "\n", "", " x"]
    assert ids_of([path], small) == with_ends(small, *texts)
    literal = ids_of([path], small, literal_endoftext=True)
    assert literal == small.encode(STORIES.replace("\r\n", "\n"))
    assert small.eot not in small.encode(STORIES)
    path.write_bytes(STORIES.replace("low", "LOW").encode())
    options = {"lowercase": True, "stopwords": ["endoftext"]}
    assert ids_of([path], small, **options) == with_ends(small, *texts)


def test_text_that_resembles_endoftext_stays_text(small, tmp_path):
    text = "<|ENDOFTEXT|> <| endoftext|> <|endoftext|"
    (tmp_path / "text").write_text(text)
    ids = ids_of([tmp_path / "text"], small, lowercase=True)
    assert ids == small.encode(text.lower()) and small.eot not in ids


def test_no_boundary_and_no_character_is_cut(tmp_path):
    path, content = tmp_path / "stories", STORIES.encode()
    path.write_bytes(content)
    for offset in range(len(content) + 1):
        parts = corpus.split_files([path], 1 - offset / len(content))
        texts = [list(corpus.read_texts(half)) for half in parts]
        joined = ["|" if text is None else text for half in texts for text in half]
        assert "".join(joined) == corpus.BOUNDARY.sub("|", STORIES)
        middle = parts[1][0][1] if parts[1] else len(content)
        assert abs(middle - offset) < 15


def test_a_line_of_jsonl_is_a_text(small, tmp_path):
    path, texts = (
        tmp_path / "stories.JSONL",
        ["low", "é\n", "slow\u2028 x", "", "two<|endoftext|>\n3"],
    )
    rows = [json.dumps({"text": text, "n": 1}) for text in texts]
    path.write_bytes(("\ufeff" + "\n\r\n".join(rows)).encode())
    # An empty text does not count, so no boundary ends it.
    expected = with_ends(small, "low", "é\n", "slow\u2028 x", "two", "3")
    assert ids_of([path], small) == expected
    for offset in range(path.stat().st_size + 1):
        parts = corpus.split_files([path], 1 - offset / path.stat().st_size)
        halves = [list(corpus.read_texts(part)) for part in parts]
        words = [text for half in halves for text in half if text]
        assert words == ["low", "é\n", "slow\u2028 x", "two", "3"]
        assert not halves[1] or halves[1][0] in ["low", "é\n", "slow\u2028 x", "two"]


@pytest.mark.parametrize(
    "line, fault",
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"text"', "is not an object with a string"),
        ('{"text": 3}', "is not an object with a string"),
        ("{}", "is not an object with a string"),
    ],
)
def test_a_line_of_jsonl_without_a_text_is_refused_with_its_offset(line, fault, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "low"}\n' + line, newline="")
    with pytest.raises(ValueError, match=f"bad.jsonl: the line at byte 16 {fault}"):
        read_all(path)


def test_one_boundary_separates_two_files_whatever_the_first_ends_with(small, tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c.jsonl", "d")]
    for path, text in zip(paths, ["low<|endoftext|>\n", "slow", '{"text": "x"}\n\n', "low"]):
        path.write_text(text, newline="")
    assert ids_of(paths, small) == with_ends(small, "low", "slow", "x", "low")
    assert ids_of(paths[:1], small) == [*small.encode("low"), small.eot]


def test_a_byte_order_mark_is_not_part_of_a_text(small, tmp_path):
    (tmp_path / "a").write_bytes("\ufefflow".encode())
    (tmp_path / "b").write_bytes("x\ufefflow".encode())
    assert ids_of([tmp_path / "a"], small) == small.encode("low")
    assert ids_of([tmp_path / "b"], small) == small.encode("x\ufefflow")
    for share in 0, 0.2, 0.5, 0.9, 1:
        parts = corpus.split_files([tmp_path / "a"], share)
        assert "".join("".join(corpus.read_texts(half)) for half in parts) == "low"


# Where a text comes from


def find_texts(tmp_path, *names):
    """Return the paths of these texts, relative to tmp_path."""
    paths = corpus.find_texts(names, tmp_path / "models", tmp_path / "kept")
    return [Path(path).relative_to(tmp_path).as_posix() for path in paths]


def test_a_directory_stands_for_its_texts_in_order(tmp_path):
    notes = tmp_path / "notes"
    for name in "b.txt", "a/z.md", "a/B.TXT", "c.py", "d.txt/e.md", "empty.md":
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text("" if name == "empty.md" else name)
    (tmp_path / "alone.py").write_text("text")
    assert find_texts(tmp_path, tmp_path / "alone.py", notes) == [
        *("alone.py", "notes/a/B.TXT", "notes/a/z.md", "notes/b.txt", "notes/d.txt/e.md")
    ]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none: there is no \.txt and no \.md file below it"):
        find_texts(tmp_path, tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe")
def test_a_pipe_is_copied_to_a_file(tmp_path):
    def write(path, data):
        threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()

    os.mkfifo(tmp_path / "pipe")
    for data in b"text " * 50_000, b"":
        write(tmp_path / "pipe", data)
        if data:
            assert find_texts(tmp_path, tmp_path / "pipe") == ["kept/piped-text-0"]
            assert (tmp_path / "kept" / "piped-text-0").read_bytes() == data
        else:
            with pytest.raises(ValueError, match="pipe is empty"):
                find_texts(tmp_path, tmp_path / "pipe")
    os.mkfifo(tmp_path / "other")
    for name in "pipe", "other":
        write(tmp_path / name, name.encode())
    kept = find_texts(tmp_path, tmp_path / "pipe", tmp_path / "other")
    assert [(tmp_path / path).read_text() for path in kept] == ["pipe", "other"]


@pytest.fixture
def server():
    """Yield {path: bytes} that a server serves, the requests it has got, and its address."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield files, asked, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched_once_and_kept(server, tmp_path):
    files, asked, address = server
    files["/a/input.txt"], files["/b/input.txt?x=1"] = b"one", b"two"
    names = [f"{address}/a/input.txt", f"{address}/b/input.txt?x=1"]
    paths = find_texts(tmp_path, *names)
    assert paths == find_texts(tmp_path, *names) and asked == ["/a/input.txt", "/b/input.txt?x=1"]
    assert [(tmp_path / path).read_bytes() for path in paths] == [b"one", b"two"]
    assert all(path.startswith("models/texts/") and path.endswith("input.txt") for path in paths)
    (path,) = find_texts(tmp_path, names[0].replace("http", "HTTP"))
    assert (tmp_path / path).read_bytes() == b"one"
    files["/"] = b"three"  # an address without a file name
    assert (tmp_path / find_texts(tmp_path, address + "/")[0]).read_bytes() == b"three"
    with pytest.raises(OSError, match="/none.txt: .*404"):
        find_texts(tmp_path, f"{address}/none.txt")


# In the commands


def test_a_file_a_directory_an_address_and_a_pipe_give_the_same_run(text, server, tmp_path):
    files, asked, address = server
    content = text.read_bytes()
    files["/king.txt"] = content
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "king.md").write_bytes(b"\xef\xbb\xbf" + content)
    lines = [json.dumps({"text": content.decode(), "by": "me"})]
    (tmp_path / "king.jsonl").write_text("\n".join(lines) + "\n")
    curves = []
    for name, stdin in (
        (text, b""),
        (tmp_path / "notes", b""),
        (f"{address}/king.txt", b""),
        ("-", content),
    ):
        out = tmp_path / f"out{len(curves)}"
        options = "--val_fraction", "0", "--models_dir", tmp_path / "models"
        done = run("train.py", name, "--out", out, *SMALL, *options, stdin=stdin)
        assert (done.returncode, done.stderr.count(b"error")) == (0, 0), done.stderr
        assert not (out / "training").exists()
        curves.append(curve(out))
    assert len(curves[0]) == 6 and all(each == curves[0] for each in curves)
    assert asked == ["/king.txt"]
    figures = [
        run("evaluate.py", name, "--model_size", tmp_path / "out0", *options[2:], stdin=content)
        for name in (text, tmp_path / "notes", f"{address}/king.txt", "-", tmp_path / "king.jsonl")
    ]
    assert figures[0].stdout and {each.stdout for each in figures} == {figures[0].stdout}
    assert asked == ["/king.txt"]


def test_standard_input_may_be_a_text(text, tmp_path):
    content = text.read_bytes()
    done = run("train.py", "/dev/stdin", "--out", tmp_path / "out", *SMALL, stdin=content)
    assert done.returncode == 0 or not Path("/dev/stdin").exists(), done.stderr
    done = run("train.py", "-", "--out", tmp_path / "none", *SMALL)
    assert done.returncode == 1 and not (tmp_path / "none").exists()
    assert done.stderr == b"train.py: error: standard input is empty\n"


def test_an_address_that_fails_prints_one_line_and_leaves_no_files(server, tmp_path, models_dir):
    address = f"{server[-1]}/none.txt"
    done = run("train.py", address, "--out", tmp_path / "out", *SMALL, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"404" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run("evaluate.py", address, *model_options(models_dir))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"404" in done.stderr
