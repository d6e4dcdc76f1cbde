"""Strict JSON, files that are whole or not there, locks between processes."""

import codecs
import contextlib
import json
import os

MAX_JSON = 16 << 20  # bytes; the real ones have 14 KB (a header) and 1 MB (a vocabulary)


def read_json(path, data=None):
    """-> the dict in a JSON file (or in data, read from it); strict: no duplicate keys, no NaN."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    data = read_bytes(path) if data is None else data
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged JSON: {error}") from None
    return content


def read_bytes(path):
    """The bytes of a small file of text, without the byte order mark that some editors write."""
    with open(path, "rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"{path}: larger than {MAX_JSON} bytes")
    return data.removeprefix(codecs.BOM_UTF8)


@contextlib.contextmanager
def write_atomic(path):
    """A binary file that appears under its name when it is whole, or not at all."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the name and lose the bytes
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno and not error.filename:  # a full disk
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def try_lock(path):
    """-> the locked file, or None if another process has locked it. The lock ends with the process,
    even by kill -9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return None
        except OSError:  # a network disk without locks
            pass
        # Who held the lock before may have removed the file that has been opened here.
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            stack.pop_all()
            return file
    return None
