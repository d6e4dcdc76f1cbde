"""Strict JSON, files that are whole or not there, locks between processes, hashes, disk space; what
may be printed: addresses without passwords, text without control characters."""

import codecs
import contextlib
import json
import os
import re
import stat
import sys
import time
from urllib.parse import unquote

LOCK_PAUSE = 0.5  # seconds between two attempts to get a lock
MAX_JSON = 12 << 20  # bytes; a vocabulary of 50,000 tokens has 1 MB, or 4 MB in tokenizer.json
MAX_SETTINGS = 1 << 20  # bytes of other files; the real ones have at most 80 KB
MAX_VALUES = 500_000  # in a file; each may take 260 bytes of memory. 50,000 tokens are 200,000
# What could move the cursor, change colours, begin a new line or reverse the order of characters.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Parts of an address: me:password@; me:pass/word@, which looks like a host with an odd port; the
# name of a parameter that holds a secret.
USER = re.compile(r"^(\s*[\w+.-]+://)[^/?#]*@|^\s*[^/\\?#@:]{2,}:[^/\\?#]*@")
BAD_PORT = re.compile(r"(?s)^(\s*[\w+.-]+://[^/?#:\[]*:)(?!\d*([/?#]|$)).*")
SECRET = re.compile(
    "(token|secret|passwd|password|pwd|credentials?|signature|authorization|jwt|accesskeyid)$"
    "|(^|[^a-z]|api|access|secret|private|auth|o)(key|sig|auth|pass)$",
    re.I,
)


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

    data = read_bytes(path, MAX_SETTINGS) if data is None else data
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"{path}: more than {MAX_VALUES} values")
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged JSON: {error}") from None
    return content


def open_regular(path):
    """Open a file for reading bytes. ValueError if it is a directory, a pipe or a device, some of
    which never end, or make their reader wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a regular file")
    return open(path, "rb")


def read_bytes(path, limit=MAX_JSON):
    """Return the bytes of a small text file, without the byte order mark of some editors."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: larger than {limit} bytes")
    return data.removeprefix(codecs.BOM_UTF8)


@contextlib.contextmanager
def write_atomic(path):
    """Open a binary file for writing, which replaces the one at path when it is whole.

    After an error nothing has changed. The mode of an existing file is kept; a symbolic link stays,
    and what it points to is replaced. A pipe or a device is written into, as by any program.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".gpt2-{os.urandom(8).hex()}.tmp")
    try:
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as file:
                yield file
            return
        with open(temporary, "xb") as file:
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the name and lose the bytes
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, str(path)) from None  # such as a full disk
        raise


def remove_temporary(directory):
    """Remove what write_atomic left in a directory when it was killed. Needs a lock on it."""
    for path in directory.glob(".gpt2-*.tmp"):
        if re.fullmatch(r"\.gpt2-[0-9a-f]{16}\.tmp", path.name):
            path.unlink(missing_ok=True)


def try_lock(path):
    """Return a file, open for reading and writing, that is locked until it is closed or the process
    ends. None if another process has locked it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a+b"))  # what is in it stays
        file.seek(0)
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
    """Let one process at a time work in a directory; the others wait. Afterwards, remove the
    directories that were made for that and are empty."""
    path = directory / "fetch.lock"
    made = [directory / "incomplete", *missing_directories(directory)]
    file = try_lock(path)
    if not file:
        say(f"waiting for another process, which downloads into {directory}")
    while not file:
        time.sleep(LOCK_PAUSE)
        file = try_lock(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            if not file.read(1):  # else it is the user's
                os.remove(path)
        file.close()
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def missing_directories(directory):
    """Return which of a directory and its parents do not exist, the innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def remove(path):
    """Remove a file, or a directory with all that is in it, as far as that is possible."""
    import shutil  # imports three libraries of compression

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def without_user(address):
    """Return an address without its user and password."""
    return BAD_PORT.sub(r"\1...", USER.sub(r"\1", address))


def without_credentials(address):
    """Return an address without its user, its password and parameters such as a token or a key.

    Only this is printed and kept. Names and paths stay as they are.
    """
    address = without_user(address)
    if "://" not in address:
        return address
    path, _, query = address.partition("#")[0].partition("?")
    fields = re.findall("[^&;]+[&;]?", query)
    kept = [field for field in fields if not SECRET.search(unquote(field.partition("=")[0]))]
    return f"{path}?{''.join(kept)}".rstrip("?&;")


def printable(text):
    """Return a text from elsewhere in one line, its control characters spelled as in Python."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(text):
    """Print a line to standard error. If that is a full disk, this and later lines are dropped."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")
