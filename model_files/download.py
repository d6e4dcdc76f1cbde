"""Fetch one file: gone on with where it broke off, and verified before it gets its name.

Until then it is target.<hash of what tells the file's version>.part beside it, so that bytes of two
versions never meet, and a run after kill -9 knows what it has.
"""

import base64
import contextlib
import email.utils
import hashlib
import itertools
import os
import random
import re
import shutil
import sys
import time

import requests
from tqdm import tqdm

CONNECT, SILENCE = 10, 30  # seconds until a server that does not answer, or stalls, is given up
TRIES, WAIT, MAX_WAIT = 6, 1.0, 120.0  # tries without progress; seconds before the second, at most
CHUNK = 1 << 17  # bytes
MAX_UNSIZED = 16 << 20  # bytes of a file whose length nobody says


class Fault(Exception):
    """One request has failed; wait: seconds the server asks for; tries: how many it counts as."""

    def __init__(self, reason, wait=0.0, tries=1):
        super().__init__(reason)
        self.wait, self.tries = wait, tries


class Missing(Fault):
    """The server says that there is no such file."""


def download(url, target, sha256=None, token=""):
    """Fetch one file, verified -> the commit that the hub names. Goes on from what is there.

    A try that gets further than all before it starts their count anew, so that a bad connection
    finishes in the end, and a server that only ever sends the beginning is given up.
    """
    tries, furthest, commit = 0, bytes_there(target), ""
    while not target.exists():
        try:
            commit = receive(url, target, sha256, token)
        except (requests.RequestException, ValueError, Fault) as error:  # ValueError: no address
            fault = error if isinstance(error, Fault) else describe(error)
            there = bytes_there(target)
            tries = fault.tries + (0 if there > furthest else tries)
            furthest = max(furthest, there)
            wait = max(fault.wait, WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1))
            line = f"{target.name}: {fault}; {there / 1e6:.1f} MB are there"
            if tries >= TRIES or wait > MAX_WAIT:
                raise type(fault)(line, tries=TRIES) from None
            announce(f"{line}, again in {wait:.0f} s")
            time.sleep(wait)
    return commit


def bytes_there(target):
    return sum(part.stat().st_size for part in parts_of(target))


def parts_of(target):
    return list(target.parent.glob(f"{target.name}.{'[0-9a-f]' * 16}.part"))


def describe(error):
    """requests' exception -> Fault; theirs run over several lines."""
    if isinstance(error, ValueError):  # no address at all
        return Fault(str(error), tries=TRIES)
    if "timed out" in str(error):
        seconds = CONNECT if isinstance(error, requests.ConnectTimeout) else SILENCE
        return Fault(f"silent for {seconds} s", tries=2 if seconds == CONNECT else 1)
    unreached = "NewConnection" in str(error) or "NameResolution" in str(error)
    return Fault(
        "cannot be reached" if unreached else f"broken off ({type(error).__name__})",
        tries=2 if unreached else 1,
    )


def receive(url, target, sha256, token):
    """One request for what is not there yet; target appears once it is whole and verified."""
    parts = parts_of(target)
    # One byte more than is missing: so a whole part gets a proper answer, too.
    have = max(parts[0].stat().st_size - 1, 0) if len(parts) == 1 else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    if token:
        headers["Authorization"] = f"Bearer {token}"  # requests drops it when another host is next
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT, SILENCE)) as response:
        if response.status_code == 416:  # it is shorter now
            for old in parts:
                os.remove(old)
        check_status(response)
        answers = [*response.history, response]  # the hub says what a file is, then where it is
        validator = sha256 or named(answers, "X-Linked-Etag", "ETag", "Last-Modified")
        part = target.with_name(
            f"{target.name}.{hashlib.sha256(validator.encode()).hexdigest()[:16]}.part"
        )
        start, size = 0, whole_number(response.headers.get("Content-Length"))
        if response.status_code == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", named(answers, "Content-Range"))
            if not found or int(found[1]) != have or parts != [part] or not validator:
                for old in parts:
                    os.remove(old)
                raise Fault("it has changed, or the answer is another part: starting over")
            start, size = have, int(found[2])
        linked = whole_number(named(answers, "X-Linked-Size"))
        if linked not in (None, size):
            raise Fault(f"{size} bytes come instead of {linked}")
        check_space(target.parent, 2 * (size or 0) - start)  # the model is written beside it
        chunks = response.iter_content(CHUNK)
        first = next(chunks, b"")
        if not start and first.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise Fault("a web page comes instead of it")
        for old in parts:
            if old != part:
                os.remove(old)
        algorithm, expected = digest(answers, sha256)
        hasher = hashlib.new(algorithm, b"blob %d\0" % (size or 0) if algorithm == "sha1" else b"")
        with (
            open(part, "r+b" if start else "wb") as file,
            tqdm(
                total=size,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=target.name,
                leave=False,
                disable=None if (size or 0) > 1 << 20 else True,
            ) as bar,
        ):
            while file.tell() < start:
                hasher.update(file.read(min(CHUNK, start - file.tell())))
            file.truncate()
            for chunk in itertools.chain([first], chunks):
                if file.tell() + len(chunk) > (MAX_UNSIZED if size is None else size):
                    raise Fault(f"more than the {size} bytes announced")
                file.write(chunk)
                hasher.update(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            if size is not None and file.tell() < size:
                raise Fault("broken off")
    if expected and hasher.hexdigest() != expected:
        os.remove(part)
        raise Fault(
            f"wrong bytes, thrown away: their {algorithm} is {hasher.hexdigest()}", tries=TRIES // 2
        )
    os.replace(part, target)
    return named(answers, "X-Repo-Commit")


def check_status(response):
    """Fault unless the answer carries a file; tells what is worth another try."""
    status, reason = response.status_code, f"{response.status_code} {response.reason}"
    if status == 404:
        raise Missing(f"{reason} at {response.url}", tries=TRIES)
    if status in (401, 403):
        raise Fault(f"{reason} at {response.url}: not there, or private (HF_TOKEN)", tries=TRIES)
    if status in (408, 416, 429) or status >= 500:
        wait = retry_after(response.headers.get("Retry-After", ""))
        raise Fault(reason + f", not before {wait:.0f} s have passed" * (wait > 0), wait)
    if status not in (200, 206):
        raise Fault(f"{reason} at {response.url}", tries=TRIES)


def retry_after(text):
    """Seconds to wait, from a header that gives seconds or a date."""
    if whole_number(text) is not None:
        return whole_number(text)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def whole_number(text):
    return int(text) if text and re.fullmatch("[0-9]{1,15}", text) else None


def named(answers, *names):
    """-> the first of these headers that any answer has, from the first answer that has it."""
    return next((a.headers[name] for name in names for a in answers if name in a.headers), "")


def digest(answers, sha256):
    """-> algorithm and the hexadecimal digest that the bytes must have, "" if nobody says."""
    tag = named(answers, "X-Linked-Etag", "ETag").removeprefix("W/").strip('"').lower()
    if sha256 or re.fullmatch("[0-9a-f]{64}", tag):  # the hub's tag of a large file
        return "sha256", sha256 or tag
    if named(answers, "X-Repo-Commit") and re.fullmatch("[0-9a-f]{40}", tag):  # of a small one
        return "sha1", tag  # as git computes it
    # Of a whole file that comes in part, the store gives the MD5 under another name.
    name = "Content-MD5" if answers[-1].status_code == 200 else "x-ms-blob-content-md5"
    with contextlib.suppress(ValueError):
        return "md5", base64.b64decode(named(answers[-1:], name), validate=True).hex()
    return "md5", ""


def check_space(directory, need):
    free = shutil.disk_usage(directory).free
    if free < need:
        raise OSError(f"{need / 1e9:.2f} GB more are needed, and {free / 1e9:.2f} GB are free")


def announce(line):
    tqdm.write(line, file=sys.stderr)
