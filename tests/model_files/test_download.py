"""One file: resumed at the byte, proven whole, and nothing thrown away because of one answer."""

import os
import shutil
from types import SimpleNamespace

import pytest
from conftest import check_fetched

from model_files import download, fetch, proof
from model_files.parameters import flatten
from model_files.released import SIZES
from utils import load_encoder_hparams_and_params as load

WEIGHTS = "model.safetensors"


def bodies(servers):
    """(first byte, bytes sent) of each answer of the content host."""
    return [(first, sent) for path, first, sent, _ in servers.log if path.startswith("content/")]


def parts(place):
    return list(place.rglob("*.part"))


@pytest.fixture
def written(monkeypatch):
    """The names of the files of which an answer has been read."""
    names, write = [], download.write
    monkeypatch.setattr(
        download,
        "write",
        lambda answer, part, *rest: (
            names.append(part.name.rsplit(".", 2)[0]),
            write(answer, part, *rest),
        ),
    )
    return names


def test_resumes_where_it_broke_off(place, model, servers):
    servers.at = {WEIGHTS: [("break", 0.5), ("break", 0.5)]}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    size, sent = len(model[0][WEIGHTS]), [sent for _, sent in bodies(servers)]
    assert len(sent) == 3 and size <= sum(sent) < size + 3 * download.CHUNK


def test_what_ends_before_the_announced_length_is_kept_and_not_whole(tmp_path):
    """Whether or not the library that reads the answer counts its bytes."""
    answer = SimpleNamespace(url="http://host/x", iter_content=lambda n: iter([b"half"]))
    said = download.Answer(promise=None, version="v", start=0, size=8, commit="")
    with pytest.raises(download.Fault, match="broken off"):
        download.write(answer, tmp_path / "x.part", 0, said)
    assert (tmp_path / "x.part").read_bytes() == b"half"


def test_as_long_as_it_gets_further_it_goes_on(place, model, servers):
    servers.at = {WEIGHTS: [("break", 0.2)] * 2 * download.TRIES}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    starts = [first for first, _ in bodies(servers)]
    assert starts == sorted(starts) and len(starts) == 2 * download.TRIES + 1


def test_what_is_whole_but_for_its_name_is_not_fetched_again(place, model, servers, monkeypatch):
    replace, size = os.replace, len(model[0][WEIGHTS])

    def killed(source, target):
        if str(target).endswith(WEIGHTS):
            raise OSError("killed")
        replace(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", killed)
        with pytest.raises(OSError, match="killed"):
            load("owner/name", place)
    servers.log.clear()
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert bodies(servers) == [(size - 1, 1)]  # one byte shows that it is the same file


def test_resumes_in_another_run(place, model, servers):
    servers.at = {WEIGHTS: [("break", 0.9)] + [("reset", 0)] * download.TRIES}
    with pytest.raises(OSError, match="0.0 MB are kept in .* goes on from there") as error:
        load("owner/name", place)
    assert "\n" not in str(error.value)
    servers.at, servers.log[:] = {}, []
    servers.commit, commit = "e" * 40, servers.commit  # what main has come to in between
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    asked = [path for path, *_ in servers.log if "/resolve/" in path]
    assert asked and all(f"/resolve/{commit}/" in path for path in asked)
    ((first, _),) = bodies(servers)
    assert first > 0.8 * len(model[0][WEIGHTS])


def test_a_changed_file_starts_over(place, model, servers):
    weights = f"owner/name/{WEIGHTS}"
    genuine, servers.files[weights] = servers.files[weights], bytes(20000)
    servers.at = {WEIGHTS: [("break", 0.9)] + [("503", 0)] * download.TRIES}
    with pytest.raises(OSError):
        load("owner/name", place)
    servers.files[weights], servers.at = genuine, {}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


@pytest.mark.parametrize("kind", ["416", "other range", "no ranges", "gone", "404 bare", "expired"])
def test_one_odd_answer_throws_nothing_away(kind, place, model, servers):
    """Not even as the first of another run, nor if the rest is given only later."""
    servers.at = {WEIGHTS: [("break", 0.9)] + [("reset", 0)] * download.TRIES}
    with pytest.raises(OSError):
        load("owner/name", place)
    (part,) = parts(place)
    there = part.stat().st_size
    servers.at = {WEIGHTS: [(kind, 0)] + [("503", 0)] * download.TRIES}
    if kind == "no ranges":  # here the rest comes all the same, after what is skipped
        check_fetched(load("owner/name", place)[2], model, place / "owner--name")
        return
    with pytest.raises(OSError, match="503"):
        load("owner/name", place)
    assert parts(place) == [part] and part.stat().st_size >= there - 1
    servers.at = {}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_of_wrong_bytes_those_go_first_that_came_last(place, model, servers, capfd):
    servers.at = {WEIGHTS: [("break", 0.9), ("bytes", 0.95)]}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert "wrong bytes, thrown away: its sha256 hash is" in capfd.readouterr().err
    starts = [first for first, _ in bodies(servers)]
    assert starts == [0, starts[1], starts[1] - 1] and starts[1] > 0.8 * len(model[0][WEIGHTS])


def test_wrong_bytes_at_the_beginning_go_as_well(place, model, servers):
    servers.at = {WEIGHTS: [("break", 0.9)] + [("reset", 0)] * download.TRIES}
    with pytest.raises(OSError):
        load("owner/name", place)
    (part,) = parts(place)
    part.write_bytes(b"!" + part.read_bytes()[1:])
    servers.at, servers.log[:] = {}, []
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert len(bodies(servers)) == 3 and bodies(servers)[-1][0] == 0


def test_bytes_that_are_always_wrong_are_given_up(place, model, servers):
    servers.at = {WEIGHTS: [("bytes", 0.7)] * 3}
    with pytest.raises(OSError, match="model.safetensors: wrong bytes, thrown away"):
        load("owner/name", place)
    assert not list(place.rglob("model.safetensors*"))
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_a_size_is_what_has_been_released(place, model, servers, written, capfd):
    """What the hub itself vouches for is not even fetched where its hash is known, and differs."""
    name = f"{SIZES['124M'][0]}/{WEIGHTS}"
    servers.files[name] = servers.files[name][:-1] + b"!"
    check_fetched(load("124M", place)[2], model, place / "124M")
    said = capfd.readouterr().err
    assert f"no luck at {servers.hub}: model.safetensors: the hub has another file" in said
    assert "model.safetensors" not in written


def test_a_size_that_the_hub_did_not_promise_is_refused_at_once(place, model, servers, capfd):
    servers.at = {WEIGHTS: [("linked", 0)]}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    size = len(model[0][WEIGHTS])
    assert f"{size} bytes come instead of {size + 1}; 0.0 MB are there" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["chunked", "gzip", "no length"])
def test_an_answer_without_a_length_will_do_where_there_is_a_hash(
    kind, place, model, servers, monkeypatch
):
    servers.faults, needs = [(kind, 0)] * 40, []
    monkeypatch.setattr(download, "check_space", lambda directory, need: needs.append(need))
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert needs[-1] == 2 * len(model[0][WEIGHTS])  # the hub has said it, if not the host behind


@pytest.mark.parametrize("kind", ["page", "page as file"])
def test_a_web_page_is_never_a_file(kind, place, servers):
    servers.at = {"merges.txt": [(kind, 0)] * 40}
    with pytest.raises(OSError, match="merges.txt: a web page comes instead") as error:
        load("owner/name", place)
    assert "\n" not in str(error.value)
    assert not any(b"<html" in path.read_bytes() for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize("file", ["config.json", "vocab.json", "merges.txt", WEIGHTS])
@pytest.mark.parametrize(
    "kind",
    ["stripped empty", "stripped cut", "headless", "cut headers", "portal", "portal as file"],
)
def test_what_cannot_be_proven_whole_is_asked_for_again(kind, file, place, model, servers):
    """Whatever else comes in a 200, without the hub's headers or even with them."""
    servers.at = {file: [(kind, 0.6)] * 2}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert servers.at[file] == []


@pytest.mark.parametrize("kind", ["stripped cut", "headless", "portal"])
@pytest.mark.parametrize("file", ["config.json", "vocab.json", "merges.txt", WEIGHTS])
def test_a_plain_mirror_is_believed_where_the_content_proves_it(kind, file, place, model, servers):
    servers.plain = True
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    shutil.rmtree(place)
    servers.at = {file: [(kind, 0.6)] * 2}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    shutil.rmtree(place)
    servers.at = {file: [(kind, 0.6)] * 40}
    with pytest.raises(OSError, match=f"{file}: "):
        load("owner/name", place)
    servers.at = {}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_merges_are_whole_if_they_make_every_token(tmp_path):
    path = tmp_path / "merges.txt"
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "abb": 3, "<|end|>": 4}')
    path.write_text("#version: 0.2\na b\nab b\n")
    proof.prove(path, "merges.txt", None)
    for cut in "", "#version: 0.2\n", "#version: 0.2\na b\n":
        path.write_text(cut)
        with pytest.raises(ValueError, match="no merge makes the token 'ab"):
            proof.prove(path, "merges.txt", None)


def test_the_hash_is_that_of_whoever_knows():
    """A content host's ETag has the length of a SHA-256, and is none."""
    sha256, git, other = "a" * 64, "b" * 40, "c" * 64

    def promise(*headers):
        answers = [SimpleNamespace(headers=h, status_code=200) for h in headers]
        return proof.promise_of(answers, "")

    commit = {"X-Repo-Commit": "d" * 40}
    assert promise(commit | {"X-Linked-Etag": f'"{sha256}"'}, {"ETag": f'"{other}"'}) == (
        "sha256",
        sha256,
    )
    assert promise(commit, commit | {"ETag": f'W/"{git}"'}) == ("git", git)
    assert promise({"ETag": f'"{other}"'}) is promise({"ETag": f'"{git}"'}) is None
    assert promise({"Content-MD5": "AAAA"}) == ("md5", "000000")
    assert proof.promise_of([], sha256) == ("sha256", sha256)


@pytest.mark.parametrize("file", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_the_store_is_checked_by_md5_and_crc(file, place, model, servers):
    """The store's own MD5 first; where it vouches for damaged bytes, the index's CRC-32C."""
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    servers.at = {file: [("bytes", 0.4)] * 3}
    with pytest.raises(OSError, match=f"{file}: wrong bytes.*md5"):
        load("124M", place)
    data = servers.files[f"124M/{file}"]
    servers.files[f"124M/{file}"] = data[:700] + bytes([data[700] ^ 4]) + data[701:]
    with pytest.raises(OSError, match="CRC-32C"):
        load("124M", place)
    servers.files[f"124M/{file}"] = data
    check_fetched(load("124M", place)[2], model, place / "124M")


@pytest.mark.parametrize("kind", ["portal", "stripped empty", "headless", "page as file"])
@pytest.mark.parametrize("file", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_what_is_not_the_stores_is_asked_for_again(kind, file, place, model, servers):
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    servers.at = {file: [(kind, 0)] * 2}
    check_fetched(load("124M", place)[2], model, place / "124M")


def test_the_store_vouches_for_the_whole_of_what_comes_in_parts(place, servers):
    servers.files = {k: v for k, v in servers.files.items() if k.startswith("124M")}
    file = "model.ckpt.data-00000-of-00001"
    servers.at = {file: [("break", 0.5)] + [("bytes", 0.9)] * 3}
    with pytest.raises(OSError, match="data-00000-of-00001: wrong bytes.*md5"):
        load("124M", place)


def test_disk_space_is_checked_first(place, servers, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="MB more are needed, and 0.0 MB are free"):
        load("124M", place)
    assert len(servers.log) == 2 and not parts(place)


def test_disk_space_is_checked_again_for_what_is_written(place, model, servers, monkeypatch):
    needs = []
    monkeypatch.setattr(fetch, "check_space", lambda directory, need: needs.append(need))
    load("124M", place)
    assert needs == [sum(x.nbytes for x in flatten(model[1]).values())]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(place, model, servers, monkeypatch):
    room, opened = 5000, open

    class Full:
        """A file on a disk that has room for some bytes more."""

        def __init__(self, *args):
            self.file = opened(*args)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            nonlocal room
            room -= len(data)
            if room < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

    with monkeypatch.context() as context:
        context.setattr(download, "open", Full, raising=False)
        with pytest.raises(OSError, match="No space left on device; 0.0 MB are kept in .* goes on"):
            load("owner/name", place)
    assert parts(place)
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_of_the_same_bytes_is_taken_and_another_is_not(
    links, place, model, servers, tmp_path, written, monkeypatch
):
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    files, hub = model[0], tmp_path / "hf_home" / "hub" / "models--owner--name"
    there = hub / "snapshots" / servers.commit
    there.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(servers.commit)
    (there / WEIGHTS).write_bytes(files[WEIGHTS])
    (there / "vocab.json").write_bytes(files["vocab.json"][:-1] + b" ")
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert written == ["config.json", "vocab.json", "merges.txt"]
    assert (there / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert (place / "owner--name" / "vocab.json").read_bytes() == files["vocab.json"]


def no_link(source, target):
    raise OSError("another disk")


def test_weights_of_an_attempt_before_are_not_fetched_again(place, model, servers, written):
    """A model that is refused only when all of it is there; its repository is then mended."""
    right = servers.files["owner/name/config.json"]
    servers.files["owner/name/config.json"] = right.replace(b'"n_layer": 2', b'"n_layer": 3')
    with pytest.raises(ValueError, match="tensor h.2.* is missing"):
        load("owner/name", place)
    servers.files["owner/name/config.json"], servers.commit = right, "e" * 40
    assert written.count(WEIGHTS) == 1
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert written.count(WEIGHTS) == 1 and written.count("config.json") == 2
