"""Test strict JSON, atomic files, locks, addresses and the progress bar."""

import errno
import io
import itertools
import json
import os
import re
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from model_files import files
from model_files.files import (
    open_regular,
    printable,
    read_json,
    remove_temporary,
    try_lock,
    write_atomic,
)


def test_json_is_read_from_a_file_or_from_bytes(tmp_path):
    path, content = tmp_path / "x", {"é": [1, 2.5, None, {"a": True}], "": {}}
    path.write_text(json.dumps(content))
    assert read_json(path) == content
    assert read_json(path, b' {"a": 1} ') == {"a": 1}


@pytest.mark.parametrize(
    "data, match",
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{} x", "Extra data"),
        (b"[]", "not an object"),
        (b'{"a": 0, "a": 0}', "a key occurs twice"),
        (b'{"b": {"a": 0, "a": 0}}', "a key occurs twice"),
        (b'{"a": NaN}', "NaN is n"),
        (b'{"a": -Infinity}', "-Infinity is n"),
        (b'{"\xff": 0}', "utf-8"),
        (b"[" * 100_000, ""),
        (b'{"a": ' + b"1" * 10_000 + b"}", ""),
    ],
)
def test_invalid_json_is_refused_in_one_line(data, match, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    for read in lambda: read_json(path), lambda: read_json(path, data):
        with pytest.raises(ValueError, match=f"x.json: damaged JSON: .*{match}") as error:
            read()
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_json_that_is_too_large_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_SETTINGS", 20)
    path = tmp_path / "x"
    path.write_bytes(b'{"a": "' + b"b" * 11 + b'"}')
    assert read_json(path) == {"a": "b" * 11}
    path.write_bytes(b'{"a": "' + b"b" * 12 + b'"}')
    with pytest.raises(ValueError, match="larger than 20 bytes"):
        read_json(path)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "x"
    with write_atomic(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_all_bytes_are_on_the_disk_before_a_file_gets_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace

    def watched(source, target):
        events.append(("replace", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: events.append(("fsync", os.fstat(file).st_size)))
    monkeypatch.setattr(os, "replace", watched)
    with write_atomic(tmp_path / "x") as file:
        file.write(b"new")
    assert events == [("fsync", 3), ("replace", str(tmp_path / "x"))]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """The disk is full, or Ctrl-C is pressed, while a file is written."""

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x"
    path.write_bytes(b"old")
    for error in KeyboardInterrupt, ValueError:
        with pytest.raises(error), write_atomic(path) as file:
            file.write(b"new")
            raise error
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*x") as failed, write_atomic(path) as file:
        file.write(b"new")
    assert failed.value.errno == errno.ENOSPC and failed.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_mode(tmp_path):
    path = tmp_path / "x"
    for mode in 0o600, 0o640, 0o444:
        path.touch()
        path.chmod(mode)
        expected = stat.S_IMODE(path.stat().st_mode)  # Windows has only two modes.
        with write_atomic(path) as file:
            assert os.fstat(file.fileno()).st_mode & 0o077 & ~mode == 0 or os.name == "nt"
            file.write(b"new")
        assert stat.S_IMODE(path.stat().st_mode) == expected and path.read_bytes() == b"new"
        path.chmod(0o600)
        path.unlink()
    with open(tmp_path / "usual", "wb"), write_atomic(path):
        pass
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a permission there")
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    target, link, chain = tmp_path / "a" / "target", tmp_path / "link", tmp_path / "chain"
    target.parent.mkdir()
    link.symlink_to("a/target")
    chain.symlink_to(link)
    for path in chain, link:  # At first the target does not exist.
        with write_atomic(path) as file:
            file.write(bytes(path))
        assert target.read_bytes() == bytes(path) and link.is_symlink() and chain.is_symlink()
        assert not target.is_symlink() and [*target.parent.iterdir()] == [target]
    link.unlink()
    link.symlink_to("chain")
    with pytest.raises(OSError, match="chain"), write_atomic(chain):
        pytest.fail("links in a circle have no target")
    assert {*tmp_path.iterdir()} == {target.parent, link, chain}


@pytest.mark.skipif(os.name == "nt", reason="special files")
def test_pipes_and_devices_are_written_to_directly(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(pipe.read_bytes)
        with write_atomic(pipe) as file:
            file.write(b"new")
        assert reader.result() == b"new" and stat.S_ISFIFO(pipe.stat().st_mode)
    before = os.stat(os.devnull)
    with write_atomic(os.devnull) as file:
        file.write(b"new")
    assert os.stat(os.devnull).st_mode == before.st_mode
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space"), write_atomic("/dev/full") as file:
            file.write(b"new" * 10000)
    with pytest.raises(OSError, match="Is a directory"), write_atomic(tmp_path):
        pytest.fail("a directory is not a file")


def test_files_of_the_user_with_similar_names_are_not_removed(tmp_path):
    names = "x.tmp", ".gpt2-0.tmp", ".gpt2-0123456789abcdeg.tmp", ".gpt2-0123456789abcdef.tmp.txt"
    for name in names:
        (tmp_path / name).write_text("mine")
    with write_atomic(tmp_path / "x"):
        pass
    (tmp_path / ".gpt2-0123456789abcdef.tmp").write_text("killed")
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("x", *names))
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}


@pytest.mark.skipif(os.name == "nt", reason="special files")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in tmp_path / "pipe", tmp_path / "link", tmp_path, os.devnull:
        with pytest.raises(ValueError, match=f"{path} is not a regular file"):
            open_regular(path)
    (tmp_path / "x").write_text("text")
    (tmp_path / "y").symlink_to("x")
    assert open_regular(tmp_path / "y").read() == b"text"


def test_control_characters_are_escaped():
    text = "a\x1b[2J\r\n\t\x07\x7f\x9b\u2028\u202e\u2066\udc80z"
    escaped = r"a\x1b[2J\r\n\t\x07\x7f\x9b\u2028\u202e\u2066\udc80z"
    assert printable(text) == escaped
    usual = "naïve ☃ 😀 日本\u3000\xa0\u200d\\x1b"
    assert printable(usual) == usual


def test_a_lock_keeps_the_content_of_its_file(tmp_path):
    (tmp_path / "lock").write_text("mine")
    with try_lock(tmp_path / "lock") as file:
        assert file.read() == b"mine"
        file.write(b"!")
    assert (tmp_path / "lock").read_text() == "mine!"


def test_a_lock_on_a_file_that_was_removed_does_not_count(tmp_path, monkeypatch):
    """Another process may have removed the file and created it again before it was locked."""
    fcntl, path = pytest.importorskip("fcntl"), tmp_path / "lock"
    flock = fcntl.flock

    def late(file, how):
        path.unlink()
        path.touch()
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert try_lock(path) is None
    monkeypatch.undo()
    with try_lock(path):
        assert try_lock(path) is None
    with try_lock(path):
        pass


@pytest.mark.parametrize(
    "address,kept",
    [
        ("https://me:pw@host/x.txt", "https://host/x.txt"),
        ("HTTPS://pw@host:81/@a/x.txt#pw", "HTTPS://host:81/@a/x.txt"),
        ("http://me:p@w@[::1]:81/x", "http://[::1]:81/x"),
        ("http://me:p/w@host/x", "http://me:..."),
        ("http://me:p?w@host/x", "http://me:..."),
        ("http://host/a//b@c?d=e@f", "http://host/a//b@c?d=e@f"),
        (
            "http://host/x?of=http://me:pw@a",
            "http://host/x?of=http://me:pw@a",
        ),  # This identifies a text.
        ("http://host/x?access_token=pw", "http://host/x"),
        ("http://host/x?a=1&X-Amz-Signature=pw&b=2", "http://host/x?a=1&b=2"),
        ("http://host/x?apiKey=pw;sig=pw;b=2", "http://host/x?b=2"),
        ("http://host/x?a=1&%73ig=pw&client-secret=pw&password=pw&auth=pw", "http://host/x?a=1"),
        ("http://host/x?AWSAccessKeyId=pw&X-Amz-Credential=pw&key=pw", "http://host/x"),
        # Parameters that identify a text stay, although they contain such a word:
        ("http://host/?keyword=a&author=b&design=c", "http://host/?keyword=a&author=b&design=c"),
        ("http://host/?monkey=a&passage=b&tokens=c", "http://host/?monkey=a&passage=b&tokens=c"),
        # These are not addresses:
        ("me:pw@host/x", "host/x"),
        ("owner/name@v1", "owner/name@v1"),
        ("mine@2", "mine@2"),
        ("./my#model?key=1", "./my#model?key=1"),
        ("C:\\models@2\\x", "C:\\models@2\\x"),
        ("C:/models@2/x", "C:/models@2/x"),
    ],
)
def test_credentials_are_removed_from_an_address(address, kept):
    assert files.without_credentials(address) == kept


@pytest.mark.parametrize("name", ["model.safetensors", "a.b/" + "long" * 9, "\x1b[2J.txt"])
@pytest.mark.parametrize("total", [9, 43_000, 548_105_171, 6_431_829_964, None])
def test_a_progress_bar_fits_into_80_columns(name, total, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with files.progress_bar(name, 0, total) as bar:
        options = bar.format_dict
    speeds = 20_000, 999_499, 123_456_789, 1_234_567_890
    for n, rate in (0, None), *itertools.product([1, 999_999, 9_999_999_999], speeds):
        state = {"n": min(n, total or n), "elapsed": 9, "rate": rate, "ncols": 80}
        line = bar.format_meter(**options | state)
        numbers = r"[\d.]+[kMG]?B/([\d.]+[kMG]?|\?)B, ([\d.]+[kMG]?|\?)B/s, [\d:?]+ left"
        match = re.fullmatch(rf"[^|]{{1,20}}: +\d+%\|(.+)\| {numbers}", line)
        assert match and len(match[1]) >= 10 and len(line) <= 80 and line.isprintable(), line


def test_a_progress_bar_is_not_shown_outside_of_a_terminal(capfd):
    with files.progress_bar("model.safetensors", 0, 100) as bar:
        bar.update(50)
    assert capfd.readouterr() == ("", "")
