"""JSON is strict, and a file is whole or not there."""

import errno
import json
import os

import pytest

from model_files import files
from model_files.files import read_json, try_lock, write_atomic


def test_json_is_read_from_a_file_or_from_bytes(tmp_path):
    path, content = tmp_path / "x", {"é": [1, 2.5, None, {"a": True}], "": {}}
    path.write_text(json.dumps(content))
    assert read_json(path) == content
    assert read_json(path, b' {"a": 1} ') == {"a": 1}  # what has been read from it


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
    monkeypatch.setattr(files, "MAX_JSON", 20)
    path = tmp_path / "x"
    path.write_bytes(b'{"a": "' + b"b" * 11 + b'"}')
    assert read_json(path) == {"a": "b" * 11}
    path.write_bytes(b'{"a": "' + b"b" * 12 + b'"}')
    with pytest.raises(ValueError, match="larger than 20 bytes"):
        read_json(path)


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
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
    """A disk that is full, or Ctrl-C, while a file is written."""

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


def test_a_lock_is_on_the_file_that_has_the_name(tmp_path, monkeypatch):
    """Its last holder may have removed that file, and another process have made a new one."""
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
