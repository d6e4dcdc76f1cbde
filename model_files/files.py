"""Strict JSON, files that are whole or not there, locks between processes, hashes, disk space."""

import codecs
import contextlib
import json
import os
import sys
import time

LOCK_PAUSE = 0.5  # seconds between two attempts to get a lock
MAX_JSON = 16 << 20  # bytes; the real ones have 14 KB (a header) and 1 MB (a vocabulary)


def read_json(path, data=None):
    """Return the dict in a JSON file (or in data, which was read from it).

    ValueError naming the file if it is not JSON, holds a key twice, or a number such as NaN.
    """

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    data = read_bytes(path) if data is None else data
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged JSON: {error}") from None
    return content


def read_bytes(path):
    """Return the bytes of a small text file, without the byte order mark of some editors."""
    with open(path, "rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"{path}: larger than {MAX_JSON} bytes")
    return data.removeprefix(codecs.BOM_UTF8)


@contextlib.contextmanager
def write_atomic(path):
    """Open a new binary file that gets its name when it is whole, and is removed after an error."""
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
    """Return a file that is locked until it is closed or the process ends.

    None if another process has locked it.
    """
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


@contextlib.contextmanager
def lock(directory):
    """Let one process at a time work in a directory; the others wait. Remove it if it is empty."""
    path = directory / "fetch.lock"
    file = try_lock(path)
    if not file:
        print(f"waiting for another process, which downloads into {directory}", file=sys.stderr)
    while not file:
        time.sleep(LOCK_PAUSE)
        file = try_lock(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            os.remove(path)
        file.close()
        for empty in (directory / "incomplete", directory, directory.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def remove(path):
    """Remove a file, or a directory with all that is in it, as far as that is possible."""
    import shutil  # imports three libraries of compression

    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size_of(path):
    """Return the number of bytes in a file, 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


def check_space(directory, n_bytes):
    """Raise OSError unless the disk of a directory has room for so many bytes."""
    import shutil

    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        needed = f"{n_bytes // 10**6} MB are needed, and {free // 10**6} MB are free"
        raise OSError(f"{directory}: the disk is too full: {needed}")


def digest_of(path, like):
    """Return the hash of a file, of the same kind as another one: MD5, git's SHA-1 or SHA-256."""
    import hashlib  # OpenSSL, 3 MB of memory

    hasher = hashlib.new({32: "md5", 40: "sha1", 64: "sha256"}[len(like)], usedforsecurity=False)
    if len(like) == 40:
        hasher.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def printable(text):
    """Return a text from elsewhere as one short line without control characters."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:500]
