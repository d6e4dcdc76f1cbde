"""Where a text comes from: each kind, in process and as the commands take it."""

import http.server
import json
import os
import threading
from pathlib import Path

import pytest
from conftest import SMALL, curve, model_options, run, run_train

import texts
from model_files.directory import load_model


def found(tmp_path, *names):
    paths = texts.find_texts(names, tmp_path / "models", tmp_path / "kept")
    return [Path(path).relative_to(tmp_path).as_posix() for path in paths]


def test_a_file_is_itself_and_a_directory_its_texts_in_order(tmp_path):
    notes = tmp_path / "notes"
    for name in "b.txt", "a/z.md", "a/B.TXT", "c.py", "d.txt/e.md", "empty.md":
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text("" if name == "empty.md" else name)
    (tmp_path / "alone.py").write_text("text")
    assert found(tmp_path, tmp_path / "alone.py", notes) == [
        *("alone.py", "notes/a/B.TXT", "notes/a/z.md", "notes/b.txt", "notes/d.txt/e.md")
    ]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none: no \.txt and no \.md below it"):
        found(tmp_path, tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe")
def test_a_pipe_is_kept(tmp_path):
    def write(path, data):
        threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()

    os.mkfifo(tmp_path / "pipe")
    for data in b"text " * 50_000, b"":
        write(tmp_path / "pipe", data)
        if data:
            assert found(tmp_path, tmp_path / "pipe") == ["kept/piped-text-0"]
            assert (tmp_path / "kept" / "piped-text-0").read_bytes() == data
        else:
            with pytest.raises(ValueError, match="pipe is empty"):
                found(tmp_path, tmp_path / "pipe")
    os.mkfifo(tmp_path / "other")
    for name in "pipe", "other":
        write(tmp_path / name, name.encode())
    kept = found(tmp_path, tmp_path / "pipe", tmp_path / "other")
    assert [(tmp_path / path).read_text() for path in kept] == ["pipe", "other"]


@pytest.fixture
def server():
    """-> {path: bytes} that an address serves, the requests it got, the address"""
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
    paths = found(tmp_path, *names)
    assert paths == found(tmp_path, *names) and asked == ["/a/input.txt", "/b/input.txt?x=1"]
    assert [(tmp_path / path).read_bytes() for path in paths] == [b"one", b"two"]
    assert all(path.startswith("models/texts/") and path.endswith("input.txt") for path in paths)
    (path,) = found(tmp_path, names[0].replace("http", "HTTP"))
    assert (tmp_path / path).read_bytes() == b"one"
    files["/"] = b"three"  # no name at all
    assert (tmp_path / found(tmp_path, address + "/")[0]).read_bytes() == b"three"
    with pytest.raises(OSError, match="/none.txt could not be fetched: .*404"):
        found(tmp_path, f"{address}/none.txt")


# As the commands take them


def test_one_text_is_the_same_to_train_on_however_it_comes(text, server, tmp_path):
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


def test_a_pipe_from_the_shell_is_a_text(text, tmp_path):
    content = text.read_bytes()
    done = run("train.py", "/dev/stdin", "--out", tmp_path / "out", *SMALL, stdin=content)
    assert done.returncode == 0 or not Path("/dev/stdin").exists(), done.stderr
    done = run("train.py", "-", "--out", tmp_path / "none", *SMALL)
    assert done.returncode == 1 and not (tmp_path / "none").exists()
    assert done.stderr == b"train.py: error: standard input is empty\n"


def test_an_address_that_fails_is_one_line_and_leaves_no_run(server, tmp_path, models_dir):
    address = f"{server[-1]}/none.txt"
    done = run("train.py", address, "--out", tmp_path / "out", *SMALL, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"404" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run("evaluate.py", address, *model_options(models_dir))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"404" in done.stderr


# --tokenizer


def test_a_fresh_model_may_have_the_vocabulary_of_another(unbroken, text, tmp_path):
    shape = "--n_layer", "2", "--n_embd", "24", "--n_head", "3", "--n_ctx", "12", "--iterations"
    out = tmp_path / "out"
    done = run_train(text, "--out", out, "--tokenizer", unbroken[0], *shape, "4")
    assert done.returncode == 0, done.stderr
    vocabulary, hparams, _ = load_model(out)
    assert vocabulary == load_model(unbroken[0])[0]
    assert (hparams["n_layer"], hparams["n_embd"], hparams["n_ctx"]) == (2, 24, 12)
    assert hparams["n_vocab"] == len(vocabulary.ids)
    for option in ["--vocab_size", "300"], ["--init_from", unbroken[0]]:
        done = run_train(text, "--out", out, "--tokenizer", unbroken[0], *option)
        assert done.returncode == 2 and "comes from the model that" in done.stderr
