"""Read JSON strictly; write files atomically; lock directories; check hashes and disk space; print
addresses without passwords, and text without control characters."""

import codecs
import contextlib
import json
import os
import re
import stat
import sys
import time
from pathlib import Path
from urllib.parse import unquote

LOCK_PAUSE = 0.5  # seconds between two attempts to get a lock
MAX_JSON = 12 << 20  # bytes; a vocabulary of 50,000 tokens has 1 MB, or 4 MB in tokenizer.json
MAX_SETTINGS = 1 << 20  # bytes of any other JSON file; real ones have at most 80 kB
MAX_VALUES = 500_000  # values in a JSON file; each takes up to 260 bytes of memory
# Characters that could move the cursor, change colours, begin a new line or reverse the text order.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Parts of an address: me:password@; me:pass/word@, which looks like a host with an odd port; and
# the name of a parameter that holds a secret.
USER = re.compile(r"^(\s*[\w+.-]+://)[^/?#]*@|^\s*[^/\\?#@:]{2,}:[^/\\?#]*@")
BAD_PORT = re.compile(r"(?s)^(\s*[\w+.-]+://[^/?#:\[]*:)(?!\d*([/?#]|$)).*")
SECRET = re.compile(
    "(token|secret|passwd|password|pwd|credentials?|signature|authorization|jwt|accesskeyid)$"
    "|(^|[^a-z]|api|access|secret|private|auth|o)(key|sig|auth|pass)$",
    re.I,
)


def read_json(path, data=None):
    """Return the dict in a JSON file, or in data, the bytes of that file if they are known already.

    ValueError naming the file if it is not JSON, has the same key twice, or a number such as NaN.
    """

    def unique(pairs):
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ValueError("a key occurs twice")
        return content

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
        raise ValueError(f"{path}: damaged JSON: {describe(data, error)}") from None
    return content


def open_regular(path):
    """Open a file for reading bytes. ValueError if it is a directory, a pipe or a device: reading
    one of those may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a regular file")
    return open(path, "rb")


def describe(data, fault="damaged or cut off: download it again"):
    """Return what the bytes of a file are that cannot be read. fault: what they are otherwise."""
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file itself: run git lfs pull"
    if data.lstrip().startswith(b"<"):
        return "a web page, not the file: download it again"
    return fault


def read_bytes(path, limit=MAX_JSON):
    """Return the bytes of a small text file, without the byte order mark that some editors add."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: larger than {limit} bytes")
    return data.removeprefix(codecs.BOM_UTF8)


@contextlib.contextmanager
def write_atomic(path):
    """Open a binary file for writing. When it is complete, it replaces the one at path.

    After an error the old file is unchanged. A new file keeps the mode of the old one. A symbolic
    link stays, and its target is replaced. A pipe or a device is written to directly.
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
            os.fsync(file.fileno())  # Otherwise a power cut may lose the bytes.
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, str(path)) from None  # such as a full disk
        raise


def remove_temporary(directory):
    """Remove the files that a killed write_atomic left in a directory, which must be locked."""
    for path in directory.glob(".gpt2-*.tmp"):
        if re.fullmatch(r"\.gpt2-[0-9a-f]{16}\.tmp", path.name):
            path.unlink(missing_ok=True)


def try_lock(path):
    """Open and lock a file, and return it; None if another process has locked it. The lock lasts
    until the file is closed or the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a+b"))  # This keeps its content.
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
        except OSError:  # Some network disks have no locks.
            pass
        # The last process with the lock may have removed the file after it was opened here.
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            stack.pop_all()
            return file
    return None


@contextlib.contextmanager
def lock(directory):
    """Let one process at a time work in a directory; the others wait. At the end, remove the
    directories that were created here and are empty."""
    path = directory / "fetch.lock"
    made = [directory / "incomplete", *missing_directories(directory)]
    file = try_lock(path)
    if not file:
        say(f"waiting for another process that is downloading to {directory}")
    while not file:
        time.sleep(LOCK_PAUSE)
        file = try_lock(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove a file that is open.
            if not file.read(1):  # A file with content belongs to the user.
                os.remove(path)
        file.close()
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def missing_directories(directory):
    """Return those of a directory and its parents that do not exist, the innermost first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def remove(path):
    """Remove a file, or a directory and everything in it. Errors in a directory are ignored."""
    import shutil  # It imports three compression libraries.

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_space(directory, n_bytes):
    """Raise OSError unless the disk of a directory has room for n_bytes."""
    import shutil

    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        sizes = f"{n_bytes // 10**6} MB are needed, {free // 10**6} MB are free"
        raise OSError(f"{directory}: the disk is too full ({sizes}); free some space")


def digest_of(path, like):
    """Return the hash of a file, of the same kind as another hash: MD5, git's SHA-1 or SHA-256."""
    import hashlib  # It loads OpenSSL, 3 MB.

    hasher = hashlib.new({32: "md5", 40: "sha1", 64: "sha256"}[len(like)], usedforsecurity=False)
    if len(like) == 40:
        hasher.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def hugging_face_path(variable, name):
    """Return the path in an environment variable, by default name in Hugging Face's folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    path = os.environ.get(variable) or f"{home}/{name}"
    return Path(os.path.expandvars(os.path.expanduser(path)))


def without_user(address):
    """Return an address without its user and password."""
    return BAD_PORT.sub(r"\1...", USER.sub(r"\1", address))


def without_credentials(address):
    """Return an address without its user, its password and parameters such as a token or a key.

    Only this part of an address is printed or stored. Names and paths are returned unchanged.
    """
    address = without_user(address)
    if "://" not in address:
        return address
    path, _, query = address.partition("#")[0].partition("?")
    fields = re.findall("[^&;]+[&;]?", query)
    kept = [field for field in fields if not SECRET.search(unquote(field.partition("=")[0]))]
    return f"{path}?{''.join(kept)}".rstrip("?&;")


def printable(text):
    """Return a text as one line, with control characters as Python's escapes, such as \\x1b."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(text):
    """Print a line to standard error. If that fails (a full disk), print no more lines there."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")


def progress_bar(name, begun, total):
    """Return a tqdm bar for a download. It fits into 80 columns and is shown only in a terminal."""
    from tqdm import tqdm

    numbers = "{n_fmt}B/{total_fmt}B, {rate_noinv_fmt}, {remaining} left"
    options = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
    options["bar_format"] = "{desc}: {percentage:3.0f}%|{bar}| " + numbers
    return tqdm(desc=printable(Path(name).stem)[:20], initial=begun, total=total, **options)
