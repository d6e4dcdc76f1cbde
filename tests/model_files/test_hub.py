"""Fetching: each promise of hub.py, against a stand-in for the hub with a network's faults.

FETCH_SCHEDULES and FETCH_KILLS in the environment set how many random faults and kills are tried.
"""

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import stand_in
from conftest import OPENAI, ROOT

import utils
from model_files import directory as model_directory
from model_files import files as disk
from model_files import hub
from model_files.directory import flatten, holds_model, load_model, save_model
from model_files.safetensors import write_safetensors
from training import corpus
from utils import load_encoder_hparams_and_params as load

SCHEDULES = int(os.environ.get("FETCH_SCHEDULES", 25))
SEED = int(os.environ.get("FETCH_SEED", 7))
KILLS = int(os.environ.get("FETCH_KILLS", 3))
WEIGHTS, BUNDLE, PAIR = hub.WEIGHTS, hub.BUNDLE, ("vocab.json", "merges.txt")
GPT2 = hub.SIZES["124M"][0]


def size_of(path):
    """The number of bytes in a file, 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="session")
def running():
    servers = stand_in.Servers()
    yield servers
    servers.close()


@pytest.fixture
def servers(running):
    running.reset()
    return running


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """{name: bytes} as the hub has it, with bare names, mask buffers and data at an odd byte; and
    the parameters."""
    vocabulary, hparams, params = load_model(OPENAI)
    directory = tmp_path_factory.mktemp("hub")
    save_model(directory, hparams, params, vocabulary)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    tensors = flatten(params)
    for i in range(hparams["n_layer"]):
        tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
    header, data = {}, b""
    for name, x in tensors.items():
        offsets = len(data), len(data) + x.nbytes
        header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": offsets}
        data += x.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4 + 3)
    files[WEIGHTS] = len(text).to_bytes(8, "little") + text + data
    return files, params


@pytest.fixture
def place(servers, model, monkeypatch, tmp_path):
    """models_dir; the servers have 124M and owner/name, and nobody waits for long."""
    files, _ = model
    openai = {path.name: path.read_bytes() for path in OPENAI.iterdir()}
    for prefix, these in ((GPT2, files), ("owner/name", files), ("124M", openai)):
        servers.files |= {f"{prefix}/{name}": data for name, data in these.items()}
    pins = {f"124M/{x}": hashlib.sha256(files[x]).hexdigest() for x in (*PAIR, WEIGHTS)}
    monkeypatch.setattr(hub, "SHA256", pins)
    config = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 257}
    monkeypatch.setitem(hub.CONFIG, "124M", config | {"eos_token_id": 256})
    for module, name, value in (
        *((hub, "PAUSE", 0.001), (hub, "CHUNK", 1 << 10), (hub, "TIMEOUT", (1, 1))),
        (disk, "LOCK_PAUSE", 0.01),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow, and no test cuts the power
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", servers.hub)
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    return tmp_path / "models"


def check(name, place, model):
    """Load a model: its parameters are exact and mapped, and nothing else is left in its place."""
    expected, found = flatten(model[1]), flatten(load(name, place)[2])
    assert expected.keys() == found.keys()
    for tensor, x in expected.items():
        assert np.array_equal(x, found[tensor]), tensor
        assert found[tensor].flags.aligned and not found[tensor].flags.owndata, tensor
    left = {path.name for path in (place / name.replace("/", "--")).iterdir()}
    assert left - {"source.json"} == {"config.json", *PAIR, WEIGHTS}


def fails(name, place):
    """Return the one line that is said when a model cannot be fetched."""
    with pytest.raises((OSError, ValueError)) as error:
        load(name, place)
    line = str(error.value)
    assert "\n" not in line and line.isprintable() and "Signature" not in line, line
    assert not holds_model(place / name.replace("/", "--"))
    return line


def contents(servers):
    """(first byte, bytes sent) of each answer of the content host."""
    return [(first, sent) for path, first, sent, _ in servers.log if path.startswith("xet")]


def interrupt(place, servers, name="owner/name"):
    """Let the download of the weights break off for good; return what is there of them."""
    servers.at = {WEIGHTS: [("break", 0.9)] + [("reset", 0)] * hub.ATTEMPTS}
    assert "what has arrived is kept in" in fails(name, place)
    servers.at, servers.log[:] = {}, []
    (part,) = place.rglob("*.part")
    return part


# What is fetched, and how it is installed


@pytest.mark.parametrize("name", ["124M", "owner/name", "owner/name@v1"])
def test_a_model_of_four_files_takes_five_requests(name, place, model, servers, capfd):
    check(name, place, model)
    paths = [path for path, *_ in servers.log]
    # Each file comes by a redirect. The config of a released size stands in hub.py.
    assert len(paths) == 1 + 2 * (3 if name == "124M" else 4)
    revision = {"124M": hub.SIZES["124M"][1], "owner/name": "main", "owner/name@v1": "v1"}[name]
    assert paths[0].endswith(f"/revision/{revision}")
    assert all(servers.commit in path or path.startswith("xet") for path in paths[1:])
    check(name, place, model)
    assert len(servers.log) == len(paths)
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"downloading {name} to {place}") and err.count("\n") == 1
    source = place / name.replace("/", "--") / "source.json"
    assert name == "124M" or json.loads(source.read_text())["commit"] == servers.commit


def test_six_files_of_model_files_run_in_a_fetch(place, servers):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import utils; "
    code += f"utils.load_encoder_hparams_and_params('owner/name', {str(place)!r}); "
    code += "print(*(name for name in sys.modules if name.startswith('model_files')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.removeprefix("model_files.") for name in run.stdout.split()}
    expected = {"model_files", "hub", "files", "vocabulary", "directory", "safetensors"}
    assert names - {"parameters", "added_tokens"} == expected


def test_unknown_names_reach_no_server(place, servers):
    for name in ("125M", "gpt2", "124m"):
        assert "known sizes are 124M, 355M, 774M, 1558M" in fails(name, place)
    for name in ("../124M", "a/../b", "a/b/c", "~", "..", "C:x", "/nosuch", "owner/name@../x", ""):
        fails(name, place / "x")
    assert servers.log == [] and not place.exists()


def tokenizer(model, **others):
    ids = json.loads(model[0]["vocab.json"])
    return json.dumps({"model": {"type": "BPE", "vocab": ids, "merges": []}, **others}).encode()


def test_what_a_repository_has_beside_the_weights_comes_along(place, model, servers):
    extra = dict.fromkeys(["generation_config.json", *hub.FILES], b'{"eos_token_id": 255}')
    extra |= {"tokenizer.json": tokenizer(model), "added_tokens.json": b"{}"}
    extra |= {name: model[0][name] for name in PAIR}
    for repo in "owner/name", GPT2:
        servers.files |= {f"{repo}/{name}": data for name, data in extra.items()}
    load("owner/name", place)
    for name, data in extra.items():
        assert (place / "owner--name" / name).read_bytes() == data
    check("124M", place, model)


def test_shards_and_a_tokenizer_json_alone(place, model, servers, monkeypatch):
    """A fine-tune as transformers 5 saves a large one. It is widened one tensor at a time."""
    for name in (*PAIR, WEIGHTS):
        del servers.files[f"owner/name/{name}"]
    servers.files["owner/name/tokenizer.json"] = tokenizer(model)
    tensors, weight_map, stored = list(flatten(model[1]).items()), {}, []
    for i in range(2):
        some = {f"transformer.{name}": x.astype(np.float16) for name, x in tensors[i::2]}
        write_safetensors(place.parent / "shard", some)
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        servers.files[f"owner/name/{shard}"] = (place.parent / "shard").read_bytes()
        weight_map |= dict.fromkeys(some, shard)
    servers.files[f"owner/name/{hub.INDEX}"] = json.dumps({"weight_map": weight_map}).encode()
    write_weights = model_directory.write_weights

    def watched(path, tensors):
        stored.extend(x.dtype for x in tensors.values())
        write_weights(path, tensors)

    monkeypatch.setattr(model_directory, "write_weights", watched)
    encoder, hparams, found = load("owner/name", place)
    assert set(stored) == {np.dtype(np.float16)} and [encoder.eot] == hparams["eos_token_ids"]
    for name, x in flatten(found).items():
        assert np.array_equal(x, dict(tensors)[name].astype(np.float16)), name
        assert x.flags.aligned and not x.flags.owndata
    del servers.files[f"owner/name/{shard}"]
    assert f"owner/name has no {shard}" in fails("owner/name@v1", place)


def test_only_the_vocabulary_is_fetched_where_no_more_is_asked_for(
    place, model, servers, monkeypatch
):
    for name in "owner/name", "124M":
        servers.log.clear()
        encoder = utils.load_encoder(name, place)
        assert encoder.encode("t") and not contents(servers)
        asked = len(servers.log)
        with monkeypatch.context() as context:
            context.setenv("HF_HUB_OFFLINE", "1")
            assert utils.load_encoder(name, place).vocabulary.ids == encoder.vocabulary.ids
        assert len(servers.log) == asked
        check(name, place, model)  # the whole model can still come
    with pytest.raises(OSError, match="^owner/none could not be downloaded"):
        utils.load_encoder("owner/none", place)
    assert not (place / "owner--none").exists()


def test_the_store_is_the_second_source(place, model, servers, capfd):
    servers.at = {"list": [("503", 0)] * hub.ATTEMPTS}
    check("124M", place, model)
    assert f"{servers.hub}: list of files: 503" in capfd.readouterr().err
    shutil.rmtree(place)
    servers.log.clear()
    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    assert utils.load_encoder("124M", place).n_vocab
    assert not any("ckpt" in path for path, *_ in servers.log)
    servers.at = {BUNDLE: [("", 0), ("break", 0.7)] + [("reset", 0)] * hub.ATTEMPTS}
    assert BUNDLE in fails("124M", place)
    there = [size_of(part) for part in place.rglob("*.part")]
    servers.at, servers.log[:] = {}, []
    check("124M", place, model)
    assert [first for path, first, *_ in servers.log if BUNDLE in path] == [0, *there]


def test_an_installation_from_the_store_that_was_killed_is_resumed(
    place, model, servers, monkeypatch
):
    def killed(path, tensors):
        raise OSError("killed")

    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    with monkeypatch.context() as context:
        context.setattr(model_directory, "write_weights", killed)
        assert "killed; what has arrived is kept in" in fails("124M", place)
    check("124M", place, model)
    assert json.loads((place / "124M" / "source.json").read_text())["repository"] == hub.STORE


@pytest.mark.parametrize("file", ["model.ckpt.index", BUNDLE])
def test_the_store_is_believed_by_its_md5(file, place, model, servers, monkeypatch):
    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    servers.at = {file: [("", 0)] + [("bytes", 0.4)] * hub.ATTEMPTS}
    assert f"{file}: the bytes do not have the hash of this file" in fails("124M", place)
    servers.at = {file: [("503", 0), ("", 0), ("bytes", 0.4)]}
    check("124M", place, model)
    shutil.rmtree(place)
    monkeypatch.setattr("stand_in.base64.b64encode", lambda data: b"AAAA")
    assert "model.ckpt.index comes without its length or Content-MD5" in fails("124M", place)


@pytest.mark.parametrize("file", [WEIGHTS, "vocab.json", "config.json"])
def test_a_released_size_is_what_was_released(file, place, model, servers):
    """Whatever a hub says: the bytes must have the hashes in hub.py, and the config is there."""
    name = f"{GPT2}/{file}"
    servers.files[name] = servers.files[name].replace(b'"n_head": 2', b'"n_head": 4') + b" "
    check("124M", place, model)
    assert load("124M", place)[1]["n_head"] == 2
    assert any("ckpt" in path for path, *_ in servers.log) == (file != "config.json")


def test_the_released_sizes_are_known():
    for name, (repo, commit) in hub.SIZES.items():
        assert re.fullmatch("openai-community/gpt2(-medium|-large|-xl)?", repo)
        pins = [commit, *(hub.SHA256[f"{name}/{file}"] for file in (*PAIR, WEIGHTS))]
        assert [len(pin) for pin in pins] == [40, 64, 64, 64]
        assert hub.CONFIG[name]["n_embd"] == 64 * hub.CONFIG[name]["n_head"]


def test_what_is_there_is_only_read(place, servers):
    load("124M", place)
    before = {path: path.stat().st_mtime_ns for path in [place / "124M", *place.rglob("*")]}
    load("124M", place)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    shutil.copytree(OPENAI, place / "355M")  # a directory as OpenAI's is used as it is
    servers.log.clear()
    load("355M", place)
    assert not servers.log and len(list((place / "355M").iterdir())) == 6


@pytest.mark.parametrize("name", ["124M", "owner/name"])
def test_nothing_of_a_run_that_was_killed_gets_into_the_model(name, place, model, servers):
    directory = place / name.replace("/", "--")
    stage = directory / "incomplete"
    (stage / "hub").mkdir(parents=True)  # as an older version of this program has left it
    (directory / "source.json").write_text('{"repository": "owner/name", "commit": "another"}')
    (directory / f".gpt2-{'0' * 16}.tmp").write_bytes(b"half a file")
    for left in "tokenizer.json", "added_tokens.json", "vocab.json", "config.json":
        for where in stage, directory:
            (where / left).write_bytes(b'{"from": "another commit"}')
    check(name, place, model)
    stage.mkdir()  # killed just before its end
    (directory / "fetch.lock").touch()
    check(name, place, model)


MINE = b'{"of the": "user"}'


@pytest.mark.parametrize("name", ["124M", "owner/name"])
def test_no_file_of_the_user_is_replaced_or_deleted(name, place, model, servers):
    directory = place / name.replace("/", "--")
    directory.mkdir(parents=True)
    for file in ("config.json", "generation_config.json", "source.json", *hub.FILES):
        (directory / file).write_bytes(MINE)
        servers.log.clear()
        line = fails(name, place)
        assert f"{directory / file} is in the way, and was not downloaded: move it away" in line
        assert not contents(servers) and not any("ckpt" in path for path, *_ in servers.log)
        assert (directory / file).read_bytes() == MINE
        if file not in ("config.json", "generation_config.json"):
            with pytest.raises(FileExistsError):
                utils.load_encoder(name, place)
        (directory / file).rename(
            directory / "fetch.lock" if file == "source.json" else place / file
        )
        assert {path.name for path in directory.iterdir()} - {"incomplete"} <= {"fetch.lock"}
    for file in "notes.tmp", "tokenizer.json.tmp", ".gpt2-mine.tmp":
        (directory / file).write_bytes(MINE)
    (directory / "vocab.json").write_bytes(model[0]["vocab.json"])  # the same as the hub's
    load(name, place)
    for file in "notes.tmp", "tokenizer.json.tmp", ".gpt2-mine.tmp", "fetch.lock":
        assert (directory / file).read_bytes() == MINE


def test_a_directory_that_cannot_be_written_is_one_line(place, servers, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(MINE)
    assert str(file) in fails("owner/name", file) and str(file) in fails("owner/name", file / "x")
    with pytest.raises(OSError, match=str(file)):
        corpus.fetch_text(f"{servers.store}/a/king.txt", file / "texts")
    place.mkdir()
    (place / "owner--name").write_bytes(MINE)
    assert str(place / "owner--name") in fails("owner/name", place) and not servers.log
    assert file.read_bytes() == (place / "owner--name").read_bytes() == MINE


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe")
def test_no_pipe_in_the_place_of_a_part_is_waited_for(place, servers, model, tmp_path):
    stage = place / "owner--name" / "incomplete"
    stage.mkdir(parents=True)
    digest = hashlib.sha256(model[0][WEIGHTS]).hexdigest()
    for left in "config.json", "vocab.json", f"{WEIGHTS}.{digest[:16]}.part":
        os.mkfifo(stage / left)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(MINE)
    digest = stand_in.git_sha1(model[0]["merges.txt"])
    (stage / f"merges.txt.{digest[:16]}.part").symlink_to(tmp_path / "mine" / "file")
    (stage / "tokenizer.json").symlink_to(tmp_path / "mine")
    subprocess.run([sys.executable, "-c", CLIENT, str(place)], check=True, timeout=60)
    check("owner/name", place, model)
    assert (tmp_path / "mine" / "file").read_bytes() == MINE


@pytest.mark.parametrize("name", ["124M", "owner/name"])
def test_it_is_no_model_before_all_of_it_is_there(name, place, model, servers, monkeypatch):
    """Each write of the installation fails in turn, as on a full disk. Nor is what is there then
    another vocabulary: tokenizer.json overrules the pair, and the others add to it."""
    servers.files["owner/name/tokenizer.json"] = tokenizer(model)
    servers.files["owner/name/tokenizer_config.json"] = b'{"pad_token": "<pad>"}'
    directory, write_atomic, seen = place / name.replace("/", "--"), disk.write_atomic, []
    room = 0

    def limited(path):
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(28, "No space left on device")
        return write_atomic(path)

    monkeypatch.setattr(model_directory, "write_atomic", limited)
    monkeypatch.setattr("model_files.safetensors.write_atomic", limited)
    for n_writes in range(5 if name == "124M" else 7):  # the last ones: config and weights
        room = n_writes
        assert "No space left on device; what has arrived is kept in" in fails(name, place)
        if utils.holds_vocabulary(directory):
            seen.append(utils.read_vocabulary(directory))
    room = n_writes + 1
    load(name, place)
    whole = utils.read_vocabulary(directory)
    assert name == "124M" or len(seen) == 4
    assert all(found.added == whole.added for found in seen)


# One file: resumed at the byte, verified, and nothing thrown away because of one answer


def test_a_bad_connection_gets_there_and_one_without_progress_is_given_up(place, model, servers):
    servers.at = {WEIGHTS: [("break", 0.2)] * 2 * hub.ATTEMPTS}
    check("owner/name", place, model)
    starts, sent = zip(*contents(servers))
    assert starts == tuple(sorted(starts)) and len(starts) == 2 * hub.ATTEMPTS + 1
    assert len(model[0][WEIGHTS]) <= sum(sent) < len(model[0][WEIGHTS]) + len(sent) * hub.CHUNK
    servers.log.clear()
    servers.at = {WEIGHTS: [("break", 0.5)] + [("break", 0)] * 9}
    assert f"{WEIGHTS}: cannot be reached, or the connection broke" in fails("owner/name@v1", place)
    assert len(contents(servers)) == hub.ATTEMPTS


def test_another_run_resumes_although_the_commit_is_another(place, model, servers):
    there = size_of(interrupt(place, servers))
    servers.files["owner/name/vocab.json"] += b" "
    servers.commit = "e" * 40
    utils.load_encoder("owner/name", place)  # the vocabulary alone leaves the weights there
    check("owner/name", place, model)
    assert there > 0.8 * len(model[0][WEIGHTS]) and contents(servers)[0][0] == there
    assert (place / "owner--name" / "vocab.json").read_bytes() != model[0]["vocab.json"]


def test_bytes_of_another_version_are_dropped(place, model, servers):
    weights = f"owner/name/{WEIGHTS}"
    genuine, servers.files[weights] = servers.files[weights], bytes(20000)
    part = interrupt(place, servers)
    (part.parent / "tokenizer.json").write_text("{}")  # the repository has none any more
    servers.files[weights] = genuine
    check("owner/name", place, model)
    assert contents(servers) == [(0, len(genuine))]


def test_what_is_whole_but_for_its_name_is_not_fetched_again(place, model, servers, monkeypatch):
    def killed(source, target):
        if str(target).endswith(WEIGHTS):
            raise OSError("killed")
        replace(source, target)

    replace = os.replace
    with monkeypatch.context() as context:
        context.setattr(os, "replace", killed)
        assert "killed" in fails("owner/name", place)
    servers.log.clear()
    check("owner/name", place, model)
    assert len(servers.log) == 1  # the list


@pytest.mark.parametrize(
    "kind", ["no ranges", "416", "other range", "portal", "page", "gone", "cut"]
)
def test_one_odd_answer_throws_nothing_away(kind, place, model, servers):
    there = size_of(interrupt(place, servers))
    servers.at = {WEIGHTS: [(kind, 0), ("503", 0)]}
    check("owner/name", place, model)
    assert [first for first, sent in contents(servers) if sent > 99][-1] == there


@pytest.mark.parametrize("kind", ["bytes", "portal as file"])
def test_wrong_bytes_are_deleted(kind, place, model, servers):
    servers.at = {WEIGHTS: [(kind, 0.7)]}
    check("owner/name", place, model)
    servers.at = {WEIGHTS: [(kind, 0.7)] * hub.ATTEMPTS}
    assert WEIGHTS in fails("owner/name@v1", place) and not list(place.rglob("*.part"))
    part = interrupt(place, servers, "owner/name@refs/pr/1")
    part.write_bytes(b"!" + part.read_bytes()[1:])  # a bad disk
    check("owner/name@refs/pr/1", place, model)


@pytest.mark.parametrize("file", ["list", WEIGHTS])
def test_each_fault_is_outlived(file, place, model, servers):
    """Every second request has another fault, of those that can pass."""
    final = {"disabled", "404 bare", "403 bare", "stall"}
    passing = [kind for kind in stand_in.KINDS if kind not in final]
    servers.at = {file: [(each, 0.6) for kind in passing for each in (kind, "")]}
    while servers.at[file]:
        load("owner/name", place)
        shutil.rmtree(place)


def test_no_more_is_kept_than_a_file_has(place, model, servers, monkeypatch):
    def endless(self, query):
        return "no length", 0, behind(self, query)[2] + bytes(1 << 20)

    def watched(path, like):
        sizes.append(size_of(path))
        return digest_of(path, like)

    behind, digest_of, sizes = stand_in.Servers.behind, disk.digest_of, []
    monkeypatch.setattr(stand_in.Servers, "behind", endless)
    monkeypatch.setattr(disk, "digest_of", watched)
    assert "config.json: the bytes do not have the hash of this file" in fails("owner/name", place)
    assert max(sizes) <= len(model[0]["config.json"]) + hub.CHUNK


def test_disk_space_is_checked_first(place, model, servers, monkeypatch):
    needs, size, needed = [], len(model[0][WEIGHTS]), disk.check_space
    for module in disk, model_directory:
        monkeypatch.setattr(module, "check_space", lambda directory, n: needs.append(n))
    load("owner/name", place)
    assert 2 * size - 9000 < needs[-2] <= 2 * size  # what is fetched, and the model beside it
    assert needs[-1] == sum(x.nbytes for x in flatten(model[1]).values())
    there = size_of(interrupt(place, servers, "owner/name@v1"))
    load("owner/name@v1", place)
    assert needs[-2] <= 2 * size - there
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    needed(place, 100)
    with pytest.raises(OSError, match="0 MB are needed, and 0 MB are free"):
        needed(place, 101)
    monkeypatch.setattr(disk, "check_space", needed)
    assert "the disk is too full" in fails("owner/name@refs/pr/1", place)


# What the hub refuses, and what else a repository may be

REFUSED = "; check the name; a private or gated repository needs HF_TOKEN"
NO_REPO = f"401 RepoNotFound Invalid username or password.{REFUSED}"


@pytest.mark.parametrize(
    "name,token,line",
    [
        ("owner/none", "", NO_REPO),
        ("owner/none", "hf_none", f"404 RepoNotFound Repository not found{REFUSED}"),
        ("owner/private", "", NO_REPO),
        ("owner/private", "hf_stale", NO_REPO),
        ("owner/private", "hf_none", f"404 RepoNotFound Repository not found{REFUSED}"),
        ("owner/gated", "", "config.json: 401 GatedRepo Access to model owner/gated is restricted"),
        ("owner/gated", "hf_none", f"You must have access to it.{REFUSED}"),
        ("owner/name@v9", "", "404 RevisionNotFound Invalid rev id: v9"),
    ],
)
def test_what_the_hub_refuses(name, token, line, place, model, servers, monkeypatch):
    servers.gated, servers.private = {"owner/gated"}, {"owner/private"}
    servers.tokens = {"hf_none": set(), "hf_all": {"owner/gated", "owner/private"}}
    for repo in servers.tokens["hf_all"]:
        servers.files |= {f"{repo}/{file}": data for file, data in model[0].items()}
    monkeypatch.setenv("HF_TOKEN", token)
    said = fails(name, place)
    assert line in said and "kept" not in said and list(place.parent.glob("models/*")) == []
    assert len(servers.log) == (2 if "stale" in token or "gated" in name else 1)
    monkeypatch.setenv("HF_TOKEN", "hf_all")
    for repo in servers.tokens["hf_all"]:
        check(repo, place, model)


def test_what_else_the_hub_says_is_passed_on_without_escapes(place, servers, capfd):
    servers.faults = [("disabled", 0)]
    assert fails("owner/name", place).endswith("403 Access to this resource is disabled. {0} {x}")
    assert len(servers.log) == 1
    servers.faults = [("hostile", 0)] * hub.ATTEMPTS
    assert r"500 Nope\x1b[2J\x1b]0;owned\x07" in fails("owner/name", place)
    assert "\x1b" not in capfd.readouterr().err


def test_no_name_and_no_header_of_a_server_reaches_the_terminal_or_another_directory(
    place, servers, monkeypatch, capfd, tmp_path
):
    evil = "x\x1b[2J", "../x", "/x", "C:\\x", "NUL", "con.safetensors", "\u202egpj.exe", "a\nb"
    servers.files |= {f"owner/name/{name}": b"{}" for name in evil}
    load("owner/name", place)
    assert len(list(place.glob("*/*"))) == 5 and list(place.parent.glob("*")) == [place]
    del servers.files[f"owner/name/{WEIGHTS}"]
    for name in evil:
        index = {"weight_map": {"wte.weight": name}}
        servers.files[f"owner/name/{hub.INDEX}"] = json.dumps(index).encode()
        assert "weight_map is not a dict of names of files beside it" in fails(
            "owner/name@v1", place
        )
    headers = {
        "X-Error-Code": "\x1b[2J",
        "X-Error-Message": "\x9b2J\x1b[2J",
        "Retry-After": "\x1b0",
    }
    for status in 403, 503:
        monkeypatch.setitem(stand_in.ANSWERS, "evil", (status, headers, b"\x1b[2J"))
        servers.faults = [("evil", 0)] * hub.ATTEMPTS
        assert f"{status} \\x1b[2J \\x9b2J\\x1b[2J" in fails("owner/name@v1", place)
    monkeypatch.setitem(stand_in.ANSWERS, "evil", (200, {"Content-Length": "\x1b9"}, b""))
    servers.at = {"config.json": [("evil", 0)] * hub.ATTEMPTS}
    fails("owner/name@v1", place)
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_an_answer_without_end_is_not_read(status, place, servers, monkeypatch, text):
    headers = {"Location": "/a/king.txt"} if status == 302 else {}
    monkeypatch.setattr(disk, "MAX_JSON", 1 << 16)
    monkeypatch.setitem(stand_in.ANSWERS, "long", (status, headers, b"[" * (50 << 20)))
    if status != 302:
        servers.at = {"list": [("long", 0)] * hub.ATTEMPTS}
        fails("owner/name", place)
    else:
        servers.at = {"king.txt": [("long", 0)]}
        assert corpus.fetch_text(*text[:2]).read_bytes() == text[2]
    assert servers.log[0][2] == 0  # the 50 MB did not get through


def test_a_stale_token_is_no_obstacle_to_a_public_model(place, model, servers, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    check("owner/name", place, model)
    assert capfd.readouterr().err.count("your token is not valid (any more)") == 1
    assert sum("Authorization" in headers for *_, headers in servers.log) == 1


def test_a_renamed_repository_and_a_revision_with_slashes(place, model, servers):
    servers.renamed = {"old/name": "owner/name"}
    check("old/name@refs/pr/1", place, model)


@pytest.mark.parametrize(
    "files,line",
    [
        (["adapter_config.json"], "has no config.json: it has an adapter of another model"),
        (["model-Q8_0.gguf"], "has no config.json: it has GGUF files"),
        (["config.json", *PAIR, "pytorch_model.bin"], f"has no {WEIGHTS}: it has a pickle"),
        (["config.json", *PAIR, "model-Q8_0.gguf"], f"has no {WEIGHTS}: it has GGUF files"),
        (["config.json", "vocab.json", WEIGHTS], "has no merges.txt: it does not have the files"),
        (["README.md"], "has no config.json: it does not have the files of a model"),
    ],
)
def test_what_a_repository_has_instead_of_a_model(files, line, place, model, servers):
    servers.files = {f"owner/name/{name}": model[0].get(name, b"{}") for name in files}
    said = fails("owner/name", place)
    assert f"owner/name {line}" in said and "kept" not in said and not list(place.glob("*"))


@pytest.mark.parametrize(
    "file,data,line",
    [
        ("config.json", b'{"model_type": "llama"}', "config.json: model_type is 'llama'"),
        ("vocab.json", b'{"a": 1}', "vocab.json or merges.txt: the ids of 1 tokens are not 0 to 0"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "tokenizer.json: not a byte-level"),
    ],
)
def test_no_weights_are_fetched_of_what_is_no_gpt_2(file, data, line, place, servers):
    servers.files[f"owner/name/{file}"] = data
    said = fails("owner/name", place)
    assert line in said and "incomplete" not in said and not list(place.glob("*"))
    assert not contents(servers) and (file != "config.json" or len(servers.log) == 3)


def test_a_server_without_the_list_of_files_is_told_apart(place, model, servers, monkeypatch):
    servers.plain = True
    said = fails("owner/name", place)
    assert f"{servers.hub}: list of files: it does not list files as the Hugging Face hub" in said
    assert "unset HF_ENDPOINT" in said and len(servers.log) == 1
    servers.plain, dumps = False, json.dumps
    config = {"rfilename": "config.json", "size": 5, "blobId": "0" * 40}
    servers.files = {"owner/name/config.json": b"{}"}
    for wrong in (
        *({"sha": "main"}, {"sha": None}, {"siblings": 5}, {"siblings": ["config.json"]}),
        *({"siblings": [config | {"blobId": id_}]} for id_ in ("../../x", "0" * 50, 5, None)),
        *({"siblings": [config | {"size": n}]} for n in (None, math.inf, -5, 10**400)),
    ):
        monkeypatch.setattr(
            stand_in.json,
            "dumps",
            lambda found, wrong=wrong: dumps(found | wrong).replace("Infinity", "1e999"),
        )
        said = fails("owner/name", place)
        assert "it does not list files" in said or wrong["siblings"][0]["size"] in (-5, 10**400)
    servers.faults = [("cut", 0.5)] * hub.ATTEMPTS
    assert "list of files: cannot be reached, or the connection broke (ValueError)" in fails(
        "owner/name", place
    )
    monkeypatch.undo()


@pytest.mark.parametrize("file", ["list", "vocab.json"])
def test_a_web_page_is_said_to_be_one(file, place, servers):
    servers.at = {file: [("page", 0)] * hub.ATTEMPTS}
    said = fails("owner/name", place)
    assert "a web page came instead: does this network require a login?" in said


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_there_is_no_request(variable, place, model, servers, monkeypatch):
    monkeypatch.setenv(variable, "1")
    assert f"124M is not here, and {variable} forbids downloading it" in fails("124M", place)
    assert not servers.log and not place.exists()
    monkeypatch.setenv(variable, "0")
    check("124M", place, model)
    monkeypatch.setenv(variable, "yes")
    load("124M", place)


# Credentials, addresses, pauses


def authorizations(servers):
    """{role: the Authorization headers that it has seen}; the log is empty then."""
    hosts = {getattr(servers, r).removeprefix("http://"): r for r in ("hub", "content", "store")}
    seen = {}
    for *_, headers in servers.log:
        seen.setdefault(hosts[headers["Host"]], set()).add(headers.get("Authorization"))
    servers.log.clear()
    return seen


def test_the_token_goes_to_the_hub_alone_and_nothing_comes_from_netrc(
    place, servers, monkeypatch, tmp_path
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    load("owner/name", place)
    assert authorizations(servers) == {"hub": {None}, "content": {None}}
    (tmp_path / "hf_home").mkdir()
    (tmp_path / "elsewhere").write_text("hf_elsewhere")
    servers.tokens = {"hf_file": set(), "hf_variable": set(), "hf_elsewhere": set()}
    (tmp_path / "hf_home" / "token").write_text("hf_file\n")
    for revision, variable, value, token in (
        ("v1", "HF_TOKEN", " ", "hf_file"),
        ("refs/pr/1", "HF_TOKEN_PATH", f"{tmp_path}/elsewhere", "hf_elsewhere"),
        ("c" * 40, "HF_TOKEN", " hf_variable\n", "hf_variable"),
    ):
        monkeypatch.setenv(variable, value)
        load(f"owner/name@{revision}", place)
        assert authorizations(servers) == {"hub": {f"Bearer {token}"}, "content": {None}}
    servers.at = {"list": [("disabled", 0)]}
    load("124M", place)
    assert authorizations(servers) == {"hub": {"Bearer hf_variable"}, "store": {None}}


@pytest.mark.parametrize("token", ["hf_\u201cquoted\u201d", "hf_two\nlines", "hf_two words"])
def test_what_is_no_token_costs_nothing(token, place, servers, monkeypatch, tmp_path):
    part = interrupt(place, servers)
    (tmp_path / "hf_home").mkdir()
    (tmp_path / "hf_home" / "token").write_text(token, encoding="utf-8")
    line = fails("owner/name", place)
    assert "holds characters that no token has" in line and "hf_two" not in line
    monkeypatch.setenv("HF_TOKEN", token)
    assert fails("owner/name", place) == line and part.exists() and not servers.log


def test_a_password_in_an_address_goes_to_its_host_and_is_not_printed(
    place, model, servers, monkeypatch, capfd
):
    address = servers.hub.replace("//", "//me:ge%40heim@")
    monkeypatch.setenv("HF_ENDPOINT", f"  {address}/ \n")
    monkeypatch.setattr(stand_in.Hub, "may_read", lambda self, *args, **options: True)
    check("owner/name", place, model)
    assert authorizations(servers) == {"hub": {"Basic bWU6Z2VAaGVpbQ=="}, "content": {None}}
    servers.faults = [("503", 0)] * hub.ATTEMPTS
    said = fails("owner/name@v1", place) + capfd.readouterr().err
    assert "heim" not in said and f"{servers.hub}: list of files: 503" in said
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    check("owner/name@v1", place, model)
    assert "Bearer hf_secret" in authorizations(servers)["hub"]


def test_a_password_of_the_store_is_neither_printed_nor_kept(place, servers, monkeypatch, capfd):
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store.replace("//", "//me:geheim@"))
    servers.at = {"list": [("disabled", 0)] * 2, "encoder.json": [("404 bare", 0)]}
    assert f"{servers.store}: encoder.json: 404" in fails("124M", place)
    monkeypatch.setattr(hub, "SHA256", {})
    monkeypatch.setattr("stand_in.base64.b64encode", lambda data: b"AAAA")
    servers.at["list"] = [("disabled", 0)]
    said = fails("124M", place)
    assert f"{servers.store}/124M/encoder.json comes without its length or Content-MD5" in said
    monkeypatch.undo()
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store.replace("//", "//me:geheim@"))
    assert "geheim" not in said + capfd.readouterr().err


@pytest.mark.parametrize(
    "address,is_sent",
    [
        ("https://h.example/x", True),
        ("https://h.example:443/x", True),
        ("http://h.example/x", False),
        ("https://h.example:444/x", False),
        ("https://sub.h.example/x", False),
        ("https://example/x", False),
        ("https://h.example.evil/x", False),
        ("https://h.example@evil/x", False),
        ("https://other/?https://h.example/x", False),
    ],
)
def test_credentials_go_to_no_other_host_scheme_or_port(address, is_sent):
    requests = pytest.importorskip("requests")
    for server in hub.Server("https://h.example", "hf_token"), hub.Server("https://m:p@h.example"):
        request = requests.Request("GET", address, headers={"Authorization": "of before"}).prepare()
        assert ("Authorization" in server.authorize(request).headers) == is_sent


@pytest.mark.parametrize("kind,status", [("expired", 403), ("gone", 404)])
def test_a_signed_address_is_renewed_and_never_printed(kind, status, place, model, servers, capfd):
    servers.at = {WEIGHTS: [(kind, 0)] * 2}
    check("owner/name", place, model)
    servers.at = {WEIGHTS: [(kind, 0)] * hub.ATTEMPTS}
    assert f"{WEIGHTS}: {status} after a redirect" in fails("owner/name@v1", place)
    assert "Signature" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "status,headers,expected",
    [
        (503, {}, [1, 2, 4, 8]),
        (429, {"RateLimit": '"api";r=9;t=200, "resolvers"; r=0; t=51'}, [51] * 4),
        (503, {"Retry-After": " 7 "}, [7, 7, 7, 8]),
        (429, {"RateLimit": '"api";r=2;t=51', "Retry-After": "3"}, [3, 3, 4, 8]),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, [1, 2, 4, 8]),
        (429, {"Retry-After": "3600"}, []),
    ],
)
def test_pauses_grow_and_a_server_may_ask_for_more(
    status, headers, expected, place, servers, monkeypatch
):
    pauses = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(hub, "PAUSE", 1.0)
    monkeypatch.setitem(stand_in.ANSWERS, "busy", (status, headers, b""))
    servers.at = {"list": [("busy", 0)] * hub.ATTEMPTS}
    assert f"list of files: {status}" in fails("owner/name", place)
    assert pauses == expected


@pytest.mark.parametrize(
    "variable,value,line",
    [
        (
            "HF_ENDPOINT",
            "http://hub.invalid",
            "http://hub.invalid: list of files: cannot be reached",
        ),
        ("HF_ENDPOINT", "hub.example", "the connection broke (MissingSchema)"),
        ("HF_ENDPOINT", "http://[", "the connection broke"),
        ("HF_ENDPOINT", "http://me:pw@host:9x", "the connection broke (InvalidURL)"),
        ("HF_ENDPOINT", "me:pw@host", "the connection broke (MissingSchema)"),
        ("HF_ENDPOINT", "htps://me:pw@host/x", "the connection broke (InvalidSchema)"),
        ("HF_ENDPOINT", "http://me:x/pw@host", "the connection broke (InvalidURL)"),
        ("HF_ENDPOINT", "http://me:x#pw@host/", "the connection broke (InvalidURL)"),
        ("HTTP_PROXY", "http://me:pw@127.0.0.1:9", "the proxy cannot be used: see HTTPS_PROXY"),
        ("HTTP_PROXY", "me:pw@host:9x", "the connection broke"),
        ("HTTP_PROXY", "http://me:pw@", "the connection broke"),
        ("HTTP_PROXY", "socks5://me:pw@host", "the connection broke (InvalidSchema)"),
    ],
)
def test_what_cannot_be_reached_is_said_in_one_line(
    variable, value, line, place, model, servers, monkeypatch, capfd
):
    monkeypatch.setenv(variable, value)
    said = fails("owner/name", place)
    assert line in said and "pw" not in said + capfd.readouterr().err and not servers.log
    if variable == "HTTP_PROXY":
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        check("owner/name", place, model)


@pytest.mark.parametrize("target", ["http://host:abc/", "http://[", "ftp://x/", "http://\xff:99/"])
def test_a_redirect_to_no_address_ends_in_one_line(target, place, servers, monkeypatch):
    monkeypatch.setattr("requests.Session.get_redirect_target", lambda *args: target)
    assert "the connection broke" in fails("owner/name", place)


def test_a_certificate_that_is_not_known(place, model, servers, monkeypatch, tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    if subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("openssl makes no certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    encrypted = stand_in.Servers()
    encrypted.files = servers.files
    server = encrypted.servers[0]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("HF_ENDPOINT", f"https://localhost:{server.server_port}")
    assert "its certificate is not known: REQUESTS_CA_BUNDLE" in fails("owner/name", place)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    assert "TLS CA certificate bundle, invalid path" in fails("owner/name", place)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    check("owner/name", place, model)
    encrypted.close()


# Hugging Face's cache


@pytest.fixture
def snapshot(place, tmp_path, monkeypatch, model):
    """A repository in the cache, as huggingface_hub lays it out; main is at its commit."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--name"
    latest = repository / "snapshots" / ("d" * 40)
    for directory in repository / "refs", latest:
        directory.mkdir(parents=True)
    (repository / "refs" / "main").write_text("d" * 40)
    for name, data in model[0].items():
        (latest / name).write_bytes(data)
    return latest


def test_a_model_in_the_cache_is_used_where_it_lies(place, servers, snapshot):
    released = snapshot.parents[2] / f"models--{GPT2.replace('/', '--')}" / "snapshots"
    released = shutil.copytree(snapshot, released / hub.SIZES["124M"][1])
    for name in "owner/name", "owner/name@" + "d" * 40, "124M":
        assert utils.find_model(name, place) == (released if name == "124M" else snapshot)
        load(name, place)
    assert not servers.log and not place.exists()
    for repo, revision in ("owner/other", "main"), ("owner/name", "v1"), ("owner/name", "e" * 40):
        assert utils.find_cached(repo, revision) is None


@pytest.mark.parametrize("name", [*PAIR, "config.json", WEIGHTS])
def test_half_a_snapshot_is_none(name, snapshot, place, model, servers):
    (snapshot / name).unlink()
    check("owner/name", place, model)
    assert utils.find_cached("owner/name", "main") is None
    (snapshot / name).write_bytes(model[0][name])
    assert utils.find_cached("owner/name", "main") == snapshot


def test_shards_and_a_tokenizer_json_will_do_in_the_cache(snapshot):
    for name in "vocab.json", WEIGHTS:
        (snapshot / name).unlink()
    weight_map = {"a": "a.safetensors", "b": "b.safetensors"}
    (snapshot / hub.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in "tokenizer.json", "a.safetensors", "b.safetensors":
        assert utils.find_cached("owner/name", "main") is None
        (snapshot / name).touch()
    assert utils.find_cached("owner/name", "main") == snapshot


def test_the_environment_says_where_the_cache_lies(snapshot, tmp_path, monkeypatch):
    where = snapshot.relative_to(tmp_path / "cache")
    for name in "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    for name in "HOME", "USERPROFILE":
        monkeypatch.setenv(name, str(tmp_path / "home"))
    home = shutil.copytree(tmp_path / "cache", tmp_path / "home/.cache/huggingface/hub") / where
    assert utils.find_cached("owner/name", "main") == home
    for variable, value, found in (
        ("XDG_CACHE_HOME", tmp_path, None),
        ("HF_HOME", "$HOME/.cache/huggingface", home),
        ("HUGGINGFACE_HUB_CACHE", tmp_path / "cache", snapshot),
        ("HF_HUB_CACHE", "~/.cache/huggingface/hub", home),
    ):
        monkeypatch.setenv(variable, str(value))
        assert utils.find_cached("owner/name", "main") == found


# Texts


@pytest.fixture
def text(servers, place):
    """An address, its directory, and the bytes that are there."""
    servers.files["a/king.txt"] = b"To be, or not to be: that is the question. " * 999
    return f"{servers.store}/a/king.txt", place / "texts", servers.files["a/king.txt"]


def test_a_text_is_resumed_only_while_it_is_the_same(text, servers, monkeypatch):
    address, directory, data = text
    other = b"Now is the winter of our discontent. " * 1200
    servers.at = {"king.txt": [("break", 0.5), ("break", 0.5)]}
    path = corpus.fetch_text(address, directory)
    assert path.read_bytes() == data and list(directory.iterdir()) == [path]
    assert [first > 0 for _, first, *_ in servers.log] == [False, True, True]
    path.unlink()
    servers.at, servers.log[:] = {"king.txt": [("break", 0.2)] * 6}, []
    assert corpus.fetch_text(address, directory).read_bytes() == data
    assert [first > 0 for _, first, *_ in servers.log] == [False, *[True] * 6]
    path.unlink()
    next_fault = stand_in.Servers.next_fault

    def changes(self, name):
        if len(self.log) == 2:
            self.files["a/king.txt"] = other
        return next_fault(self, name)

    monkeypatch.setattr(stand_in.Servers, "next_fault", changes)
    servers.at, servers.log[:] = {"king.txt": [("break", 0.5), ("break", 0.1)]}, []
    assert corpus.fetch_text(address, directory).read_bytes() == other
    assert [first > 0 for _, first, *_ in servers.log] == [False, True, True]


@pytest.mark.parametrize("tag", [None, 'W/"{}"'])
def test_without_a_strong_tag_a_text_is_fetched_whole(tag, text, servers, monkeypatch):
    address, directory, data = text
    monkeypatch.setattr(stand_in.Store, "tag", tag)
    servers.at = {"king.txt": [(kind, 0.5) for kind in ("break", "length", "gzip", "half")]}
    assert corpus.fetch_text(address, directory).read_bytes() == data
    assert [first for _, first, *_ in servers.log] == [0, 0, 0, 0, 0]
    servers.at = {"king.txt": [("break", 0.5), ("break", 0.1)] * hub.ATTEMPTS}
    with pytest.raises(OSError, match="the connection broke"):  # it would go on for ever
        corpus.fetch_text(address, directory.parent / "others")


@pytest.mark.parametrize(
    "kind,line",
    [
        ("cut", "king.txt: it comes without its length: download it yourself"),
        ("no length", "king.txt: it comes without its length: download it yourself"),
        ("negative", "king.txt: it comes without its length: download it yourself"),
        ("cut chunked", "the connection broke"),
        ("break", "the connection broke"),
        ("stall", "the connection broke"),
        ("reset", "the connection broke"),
        ("half", "this is not the part of the file that was asked for"),
        ("gzip", "it comes compressed: download it yourself, and unpack it"),
        ("circle", "cannot be reached"),
    ],
)
def test_an_incomplete_text_is_not_kept(kind, line, text, servers, monkeypatch):
    address, directory, data = text
    monkeypatch.setattr(hub, "TIMEOUT", (1, 0.2))
    negative = 200, {"Content-Length": "-5"}, data[:5000]
    monkeypatch.setitem(stand_in.ANSWERS, "negative", negative)
    servers.at = {"king.txt": [(kind, 0.5)] * hub.ATTEMPTS * 31}
    if kind == "break":
        monkeypatch.setattr(stand_in.Store, "tag", None)
    with pytest.raises(OSError, match=line):
        corpus.fetch_text(address, directory)
    assert not directory.exists()
    servers.at = {"king.txt": [("chunked", 0)]}
    assert corpus.fetch_text(address, directory).read_bytes() == data


@pytest.mark.parametrize("tag,more", [('"{}"', b""), ('"the same"', b"!")])
def test_no_text_is_made_of_two_versions(tag, more, text, servers, monkeypatch):
    """The server is wrong: it sends the rest of another version, which it says."""
    address, directory, data = text
    next_fault = stand_in.Servers.next_fault

    def changes(self, name):
        if len(self.log) == 2:
            self.files["a/king.txt"] = b"!" * len(data) + more
        return next_fault(self, name)

    monkeypatch.setattr(stand_in.Servers, "next_fault", changes)
    monkeypatch.setattr(stand_in.Store, "tag", tag)
    servers.at = {"king.txt": [("break", 0.5), *[("mixed", 0)] * hub.ATTEMPTS]}
    with pytest.raises(OSError, match="this is not the part of the file"):
        corpus.fetch_text(address, directory)
    assert len(servers.log) > 2 and not directory.exists()


def test_what_a_killed_process_has_left_of_a_text_goes_and_what_is_the_users_stays(text, servers):
    address, directory, data = text
    directory.mkdir(parents=True)
    left = directory / f".gpt2-{'0' * 16}.tmp"
    left.write_bytes(bytes(99999))
    for name in "fetch.lock", "notes.tmp", "king.txt.part":
        (directory / name).write_bytes(MINE)
    path = corpus.fetch_text(address, directory)
    assert path.read_bytes() == data and not left.exists()
    for name in "fetch.lock", "notes.tmp", "king.txt.part":
        assert (directory / name).read_bytes() == MINE


def fetch_in_processes(n, address, directory, before=""):
    """Fetch a text in n processes at the same time, and return [(exit status, path, errors), ...].

    before: what they do first.
    """
    code = f"import os, pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += (
        f"from model_files import hub; from training import corpus; hub.PAUSE = 0.01\n{before}\n"
    )
    code += f"print(corpus.fetch_text({address!r}, pathlib.Path({str(directory)!r})))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(n)]
    said = [run.communicate(timeout=60) for run in runs]
    return [(run.returncode, out.strip(), err) for run, (out, err) in zip(runs, said)]


@pytest.mark.skipif(os.name == "nt", reason="no limit of a file's size")
def test_a_full_disk_is_one_line_that_names_the_text(text, servers):
    address, directory, _ = text
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    ((status, _, errors),) = fetch_in_processes(1, address, directory, limit)
    assert status == 1 and re.search(r"OSError: \[Errno \d+\] .*-king.txt'$", errors.strip())
    assert not directory.exists()


def test_a_text_that_does_not_come_is_one_line(text, servers, capfd):
    address, directory, _ = text
    secret = address.replace("//", "//me:geheim@").replace("king", "none") + "?secret=x"
    with pytest.raises(OSError, match="/a/none.txt: .*-none.txt: 404 Not Found") as error:
        corpus.fetch_text(secret, directory)
    assert not re.search("geheim|secret", str(error.value) + capfd.readouterr().err)
    assert not directory.parent.exists() and authorizations(servers) == {
        "store": {"Basic bWU6Z2VoZWlt"}
    }
    servers.at = {"king.txt": [("hostile", 0)] * hub.ATTEMPTS}
    with pytest.raises(OSError) as error:
        corpus.fetch_text(address, directory)
    assert str(error.value).endswith(r"500 Nope\x1b[2J\x1b]0;owned\x07")
    servers.at = {"king.txt": [("page", 0)] * hub.ATTEMPTS}
    with pytest.raises(OSError, match="a web page came instead"):
        corpus.fetch_text(address, directory)


@pytest.mark.parametrize(
    "n,tag,kinds",
    [
        (2, '"{}"', []),
        (4, '"{}"', ["break", "other", "break"]),  # it changes between the attempts
        (2, 'W/"{}"', ["break", "reset", "other"]),
        (4, None, ["break", "cut chunked", "half", "other"]),
    ],
)
def test_several_processes_fetch_a_text_once(n, tag, kinds, text, servers, monkeypatch):
    address, directory, data = text
    data = {"": data, "other": b"Now is the winter of our discontent. " * 2500}
    next_fault = stand_in.Servers.next_fault

    def changes(self, name):
        fault, where = next_fault(self, name)
        if fault == "other":
            self.files["a/king.txt"] = data["other"]
        return "break" if fault == "other" else fault, where

    monkeypatch.setattr(stand_in.Servers, "next_fault", changes)
    monkeypatch.setattr(stand_in.Store, "tag", tag)
    servers.pace, servers.at = 0.005, {"king.txt": [(kind, 0.5) for kind in kinds]}
    done = fetch_in_processes(n, address, directory)
    (path,) = directory.iterdir()
    assert {(status, found) for status, found, _ in done} == {(0, str(path))}, done
    assert path.read_bytes() == data["other" if kinds else ""]
    assert len(servers.log) == len(kinds) + 1  # of one process; the others have waited


def test_credentials_in_the_address_of_a_text_are_not_kept(text, servers, capfd):
    address, directory, data = text
    full = address.replace("//", "//me:geheim@") + "?part=1&token=hf_geheim#geheim"
    kept = corpus.forget_credentials(full, directory.parent)
    assert kept == f"{address}?part=1"
    assert servers.log[0][3]["Authorization"] == "Basic bWU6Z2VoZWlt"
    for each in kept, full, full.replace("geheim", "other"):
        path = corpus.fetch_text(each, directory)
        assert path.read_bytes() == data and list(directory.iterdir()) == [path]
    assert len(servers.log) == 1 and "geheim" not in capfd.readouterr().err + str(path)
    assert corpus.fetch_text(f"{address}?part=2", directory) != path
    assert corpus.forget_credentials(address, directory.parent) == address
    assert len(servers.log) == 2


def test_a_text_gets_no_credentials_to_where_it_redirects(text, servers, monkeypatch):
    address, directory, data = text
    hosts = servers.hub, servers.store.replace("127.0.0.1", "localhost")
    for i, host in enumerate(hosts):
        monkeypatch.setitem(
            stand_in.ANSWERS, "away", (307, {"Location": f"{host}/a/king.txt"}, b"")
        )
        monkeypatch.setattr(stand_in.Hub, "reply", stand_in.Store.reply)
        monkeypatch.setattr(stand_in.Hub, "tag", None, raising=False)
        servers.log.clear()
        servers.at = {"king.txt": [("away", 0)]}
        full = address.replace("//", "//me:geheim@") + f"?{i}"
        assert corpus.fetch_text(full, directory).read_bytes() == data
        first, second = [headers.get("Authorization") for *_, headers in servers.log]
        assert first == "Basic bWU6Z2VoZWlt" and second is None


# Chance, kills, several processes


def wrong(name, directory, servers, model, copy):
    """What of a fetched model is not exactly that of one commit."""
    files = model[0]
    if name != "124M":
        commit = json.loads((directory / "source.json").read_bytes())["commit"]
        at = {**servers.history, servers.commit: servers.files}[commit]
        files = {key[11:]: data for key, data in at.items() if key.startswith("owner/name/")}
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file, data in files.items():
        (copy / file).write_bytes(data)
    _, hparams, params = load_model(copy)
    _, found_hparams, found = load_model(directory)
    found, carried = flatten(found), files.keys() - {"config.json", WEIGHTS}
    there = {path.name for path in directory.iterdir()} - {"source.json", "config.json", WEIGHTS}
    return [
        *(tensor for tensor, x in flatten(params).items() if not np.array_equal(x, found[tensor])),
        *(file for file in carried if files[file] != (directory / file).read_bytes()),
        *(there - carried),
        *(["hparams"] if hparams != found_hparams else ()),
    ]


def test_fault_schedules(place, servers, model, monkeypatch, tmp_path):
    """Each random schedule ends in the exact model or in one line, after which a quiet run ends."""
    rng, outcomes = random.Random(SEED), {"whole": 0, "error": 0}
    servers.files["owner/name/generation_config.json"] = b'{"eos_token_id": 255}'
    servers.files["owner/name/special_tokens_map.json"] = b'{"eos_token": "<|endoftext|>"}'
    genuine, commit = dict(servers.files), servers.commit
    for i in range(SCHEDULES):
        name = rng.choice(["124M", "owner/name", "owner/name@v1"])
        kinds = [kind for kind in stand_in.KINDS if kind != "stall" or rng.random() < 0.1]
        kinds = rng.sample(kinds, rng.choice([1, 3, len(kinds)]))
        often = rng.choice([0.2, 0.5, 0.9])
        servers.faults = [
            (rng.choice(kinds) if rng.random() < often else "", rng.random())
            for _ in range(rng.choice([10, 60]))
        ]
        monkeypatch.setenv("HF_TOKEN", "hf_stale" if rng.random() < 0.2 else "")
        schedule = f"schedule {i}: {name} {servers.faults}"
        try:
            load(name, place)
            outcomes["whole"] += 1
        except OSError as error:
            line = str(error)
            assert line.startswith(f"{name} could not be downloaded: "), schedule
            assert line.isprintable() and "Signature" not in line, schedule
            assert not holds_model(place / name.replace("/", "--")), schedule
            outcomes["error"] += 1
            servers.faults = []
            load(name, place)
        found = wrong(name, place / name.replace("/", "--"), servers, model, tmp_path / "expected")
        assert not found, f"{found} in {schedule}"
        servers.files, servers.commit, servers.history = dict(genuine), commit, {}
        shutil.rmtree(place)
    print(f"{SCHEDULES} schedules: {outcomes}")
    assert min(outcomes.values()) > 0


CLIENT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import os, utils
from model_files import hub
hub.PAUSE, hub.CHUNK, os.fsync = 0.01, 1 << 14, lambda file: None
utils.load_encoder_hparams_and_params("owner/name", sys.argv[1])
"""


@pytest.fixture
def start(place, servers, tmp_path):
    """A function that starts a process which fetches a model of 2 MB; that takes a moment."""
    vocabulary, hparams, params = load_model(OPENAI)
    params["wte"] = np.arange(8 * 60000, dtype=np.float32).reshape(-1, 8)
    save_model(tmp_path / "large", {**hparams, "n_vocab": 60000}, params, vocabulary)
    for path in (tmp_path / "large").iterdir():
        servers.files[f"owner/name/{path.name}"] = path.read_bytes()
    servers.pace = 0.004

    def start():
        client = [sys.executable, "-c", CLIENT, str(place)]
        process = subprocess.Popen(client, stderr=subprocess.PIPE, text=True)
        while not servers.log and process.poll() is None:
            time.sleep(0.005)
        return process

    start.model = None, params
    return start


def test_kill_at_any_moment(start, place, servers):
    """kill -9 or Ctrl-C while fetching or converting: the next run finishes and fetches little."""
    random.seed(1)
    size, directory = len(servers.files[f"owner/name/{WEIGHTS}"]), place / "owner--name"
    killed = resumed = 0
    for i in range(KILLS):
        process = start()
        time.sleep(random.uniform(0, 2 * 64 * servers.pace))
        killed += process.poll() is None
        process.send_signal(signal.SIGINT) if i % 2 and os.name != "nt" else process.kill()
        process.wait()
        there = max(map(size_of, directory.glob(f"incomplete/{WEIGHTS}*")), default=0)
        is_whole = there == size or holds_model(directory)
        servers.log.clear()
        check("owner/name", place, start.model)
        assert [first for first, _ in contents(servers)][:1] == ([] if is_whole else [there])
        resumed += 0 < there < size
        servers.log.clear()
        shutil.rmtree(directory)
    print(f"{killed} of {KILLS} killed, {resumed} of them in the weights")
    assert killed


def test_four_at_once_of_which_the_first_is_killed(start, place, servers):
    """The others have waited for it; one of them resumes, and the last two only read."""
    processes = [start()]
    while not list(place.rglob(f"{WEIGHTS}.*.part")):
        time.sleep(0.005)
    processes += [start() for _ in range(3)]
    time.sleep(0.1)
    processes[0].kill()
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes[1:]] == [0, 0, 0]
    assert all(text.count("waiting for another process") <= 1 for text in said)
    check("owner/name", place, start.model)
    sent = sum(sent for _, sent in contents(servers))
    assert sent < 1.5 * len(servers.files[f"owner/name/{WEIGHTS}"])
