"""Fetch one file: gone on with where it broke off, and proven whole before it gets its name.

Until then it is target.<hash of its version>.part beside it, so that bytes of two versions never
meet, and a run after kill -9 knows what it has. What a version is: the digest that the file must
have, else ETag or Last-Modified, and the length.

    on the disk           the answer                      what happens
    the file              is not asked for                nothing
    nothing               200                             a part is written from its first byte
    a part                206, from where it ends         it is written on
    a part                200, the same version           what is there is skipped, the rest written
    a part                200, another version            a second part is written from its start
    a part                416; 206 of another version,    asked again without a range; the part
                          or from another byte            stays
    a copy elsewhere      its digest is the copy's        the copy is taken, nothing is read
    anything              a fault, or broken off          the part stays; asked again after a while
    a part, all of it     and it is proven whole          the file; all other parts go
    a part, all of it     and it is another's bytes       what this answer brought goes; if that was
                                                          all, or for the second time: all of it
"""

import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import sys
import time
from typing import NamedTuple

from tqdm import tqdm

from model_files.proof import Promise, promise_of, prove
from model_files.transport import Fault, Refused, ask, check_status, describe

TRIES, WAIT, MAX_WAIT = 6, 1.0, 310.0  # tries without progress; seconds before the second, at most
CHUNK = 1 << 17  # bytes
PAGE = "a web page comes instead of it: does this network want a log-in?"
MAX_UNSIZED = 16 << 20  # bytes of a file whose length nobody says, but for weights


class Elsewhere(Fault):
    """The answer does not go on from where the part on the disk ends."""


class Foreign(Fault):
    """All bytes are there, and they are not the file's."""


class Bare(Fault):
    """The answer says nothing by which the file could be proven whole."""


class Answer(NamedTuple):
    """What an answer says of the file. start: its first byte; size: the whole file's, or None."""

    promise: Promise | None
    version: str
    start: int
    size: int | None
    commit: str


def download(url, target, sha256="", authorization="", plain=False, copies=()):
    """Fetch one file, proven whole -> the commit that the hub names, "" if nothing was asked.

    sha256: what is pinned; plain: the server has files and no more, so that without a hash their
    content is the proof, None: who knows; copies: files that may be the same. Faults end in one
    Fault; a try that gets further than all before it starts their count anew, so that a bad
    connection finishes in the end, and a server that only ever sends the beginning is given up.
    """
    tries, furthest, commit, go_on, doubted = 0, bytes_there(target), "", True, False
    while not target.exists():
        try:
            commit = receive(
                url, target, sha256, authorization, plain, copies, go_on=go_on, doubted=doubted
            )
        except Refused as refused:
            tries += refused.tries
            if tries >= TRIES:
                line = f"{target.name}: {refused}"
                raise Refused(line, refused.status, refused.code) from None
        except Fault as fault:
            go_on, doubted = not isinstance(fault, Elsewhere), doubted or isinstance(fault, Foreign)
            there = bytes_there(target)
            tries = fault.tries + (0 if there > furthest else tries)
            furthest = max(furthest, there)
            pause = max(fault.wait, WAIT * 2 ** min(tries - 1, 9) * random.uniform(0.5, 1))
            line = f"{target.name}: {fault}"
            if tries >= TRIES or pause > MAX_WAIT:
                raise type(fault)(line, fault.wait, fault.tries) from None
            announce(f"{line}; {there / 1e6:.1f} MB are there, again in {pause:.0f} s")
            time.sleep(pause)
    return commit


def bytes_there(target):
    return sum(part.stat().st_size for part in parts_of(target))


def parts_of(target):
    return list(target.parent.glob(f"{target.name}.{'[0-9a-f]' * 16}.part"))


def receive(url, target, sha256, authorization, plain, copies, go_on, doubted):
    """One request for what is not there yet -> the commit; the target appears once it is whole."""
    old = max(parts_of(target), key=lambda part: part.stat().st_mtime_ns, default=None)
    # One byte more than is missing: so a whole part gets a proper answer, too.
    have = max(old.stat().st_size - 1, 0) if old and go_on else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with ask(url, headers, authorization) as answers:
        said = read_answer(answers, sha256, plain)
        if copy := find_copy(copies, target, said):
            take(copy, target)
            return said.commit
        part, begin = find_part(target, said, old, have)
        # The model is written beside it, so there has to be room for two.
        check_space(target.parent, 2 * (said.size or 0) - begin)
        write(answers[-1], part, begin, said)
    finish(part, target, said.promise, begin, doubted)
    return said.commit


def find_part(target, said, old, have):
    """-> the part that an answer belongs to, the byte from which on it is written."""
    tag = hashlib.sha256(said.version.encode()).hexdigest()[:16]
    part = target.with_name(f"{target.name}.{tag}.part")
    if said.start and (part != old or said.start != have):
        raise Elsewhere("it has changed, or the answer is another part")
    if said.start or not said.version or not part.exists():
        return part, said.start
    there = part.stat().st_size
    return part, there if said.size is None or there <= said.size else 0


def finish(part, target, promise, begin, doubted):
    """A part that has all its bytes -> the target, if it is proven whole, else Foreign.

    Then what came last, from byte begin on, goes; if all was doubted before, so does all of it.
    """
    try:
        prove(part, target.name, promise)
    except ValueError as error:
        if begin and not doubted:
            os.truncate(part, begin)
        else:
            os.remove(part)
        fault = str(error).replace(f"{part}: ", "")
        raise Foreign(f"wrong bytes, thrown away: {fault}", tries=2) from None
    os.replace(part, target)
    for other in parts_of(target):
        os.remove(other)


def read_answer(answers, sha256, plain):
    """-> Answer; Fault if it carries no file, or says nothing by which it can be proven whole."""
    if answers[-1].status_code == 416:
        raise Elsewhere("416: there are fewer bytes than have been fetched")
    check_status(answers, plain)
    last = answers[-1].headers
    promise, start, told = promise_of(answers, sha256), 0, promise_of(answers, "")
    if sha256 and told and told.algorithm == "sha256" and told != promise:
        raise Fault("the hub has another file than the one that was released", tries=3)
    if not promise and not plain:
        page = "html" in last.get("Content-Type", "")
        tries = 3 if plain is None else 1  # a mirror that knows no hub says so twice
        raise Bare(PAGE if page else "the answer is not the hub's", tries=tries)
    size = whole_number(last.get("Content-Length"))
    if last.get("Content-Encoding", "identity") != "identity":  # of other bytes than the file's
        size = None
    if answers[-1].status_code == 206:
        found = re.fullmatch(r"bytes (\d{1,15})-\d+/(\d{1,15})", last.get("Content-Range", ""))
        if not found or "Content-Encoding" in last:
            raise Elsewhere("a part that does not say of what")
        start, size = int(found[1]), int(found[2])
    linked = whole_number(named(answers, "X-Linked-Size"))
    if None not in (linked, size) and linked != size:
        raise Fault(f"{size} bytes come instead of {linked}")
    size = linked if size is None else size
    tag = last.get("ETag") or last.get("Last-Modified")
    version = promise.digest if promise else f"{tag} {size}" if tag else ""
    return Answer(promise, version, start, size, named(answers, "X-Repo-Commit"))


def named(answers, name):
    return next((a.headers[name] for a in answers if name in a.headers), "")


def whole_number(text):
    return int(text) if text and re.fullmatch("[0-9]{1,15}", text) else None


def find_copy(copies, target, said):
    """-> a file elsewhere that has the promised digest, or None."""
    for copy in copies:
        with contextlib.suppress(OSError, ValueError):
            if said.promise and said.size in (None, copy.stat().st_size):
                prove(copy, target.name, said.promise)
                return copy
    return None


def take(copy, target):
    """A whole file of somebody else's under the target's name, without its bytes if possible."""
    try:
        os.link(os.path.realpath(copy), target)
    except OSError:
        check_space(target.parent, copy.stat().st_size)
        new = target.with_name(f"{target.name}.copy")
        shutil.copyfile(copy, new)
        os.replace(new, target)


def write(answer, part, begin, said):
    """The answer's bytes into the part from byte begin on; Fault if they end before the file's."""
    skip, chunks = begin - said.start, answer.iter_content(CHUNK)
    weights = ".safetensors." in part.name or ".data-" in part.name
    limit = said.size if said.size is not None else 1 << 40 if weights else MAX_UNSIZED
    first = read_chunk(chunks, answer.url)
    if not said.start and first.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Fault(PAGE)
    with (
        open(part, "r+b" if begin else "wb") as file,
        tqdm(
            total=said.size,
            initial=begin,
            unit="B",
            unit_scale=True,
            desc=part.name.rsplit(".", 2)[0],
            leave=False,
            disable=None if (said.size or 0) > 1 << 20 else True,
        ) as bar,
    ):
        file.seek(begin)
        file.truncate()
        for chunk in itertools.chain([first], iter(lambda: read_chunk(chunks, answer.url), b"")):
            rest = chunk[skip:]
            skip -= len(chunk) - len(rest)
            if file.tell() + len(rest) > limit:
                raise Fault(f"more than the {limit} bytes announced")
            file.write(rest)
            bar.update(len(rest))
        file.flush()
        os.fsync(file.fileno())
        if said.size is not None and file.tell() < said.size:
            raise Fault("broken off")


def read_chunk(chunks, url):
    try:
        return next(chunks, b"")
    except (OSError, ValueError) as error:
        raise describe(error, url) from None


def check_space(directory, need):
    free = shutil.disk_usage(directory).free
    if free < need:
        raise OSError(f"{need / 1e6:.1f} MB more are needed, and {free / 1e6:.1f} MB are free")


def announce(line):
    tqdm.write(line, file=sys.stderr)
