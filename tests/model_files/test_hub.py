"""Test downloads against a stand-in for the hub that has all the faults of a network.

The environment variables FETCH_SCHEDULES and FETCH_KILLS set how many random faults and kills are
tried.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import odd_models
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
(WEIGHTS, INDEX, *_), BUNDLE, PAIR = hub.WEIGHTS_FILES, hub.BUNDLE, ("vocab.json", "merges.txt")
AGAIN = "check the connection and run the same command again"
GPT2 = hub.SIZES["124M"][0]


def size_of(path):
    """Return the number of bytes in a file, or 0 if it does not exist."""
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
    """Return a model as on the hub, {name: bytes}, and its parameters. The names have no prefix,
    there are mask buffers, and the data begin at an odd byte."""
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
def models_dir(servers, model, monkeypatch, tmp_path):
    """Return an empty models_dir. The servers have 124M and owner/name, and pauses are short."""
    files, _ = model
    openai = {path.name: path.read_bytes() for path in OPENAI.iterdir()}
    for prefix, content in ((GPT2, files), ("owner/name", files), ("124M", openai)):
        servers.files |= {f"{prefix}/{name}": data for name, data in content.items()}
    pins = {f"124M/{x}": hashlib.sha256(files[x]).hexdigest() for x in (*PAIR, WEIGHTS)}
    monkeypatch.setattr(hub, "SHA256", pins)
    config = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 257}
    monkeypatch.setitem(hub.CONFIG, "124M", config | {"eos_token_id": 256})
    for module, name, value in (
        *((hub, "PAUSE", 0.001), (hub, "CHUNK", 1 << 10), (hub, "TIMEOUT", (1, 1))),
        (disk, "LOCK_PAUSE", 0.01),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # It is slow.
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", servers.hub)
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    return tmp_path / "models"


def check(name, models_dir, model):
    """Load a model. Its parameters must be exact and memory-mapped, with no other files there."""
    expected, loaded = flatten(model[1]), flatten(load(name, models_dir)[2])
    assert expected.keys() == loaded.keys()
    for tensor, x in expected.items():
        assert np.array_equal(x, loaded[tensor]), tensor
        assert loaded[tensor].flags.aligned and not loaded[tensor].flags.owndata, tensor
    names = {path.name for path in (models_dir / name.replace("/", "--")).iterdir()}
    assert names - {"source.json"} == {"config.json", *PAIR, WEIGHTS}


def fails(name, models_dir):
    """Return the message of a download that must fail. It must be one line."""
    with pytest.raises((OSError, ValueError)) as error:
        load(name, models_dir)
    line = str(error.value)
    assert "\n" not in line and line.isprintable() and "Signature" not in line, line
    assert not holds_model(models_dir / name.replace("/", "--"))
    return line


def contents(servers):
    """Return (first byte, bytes sent) for each answer of the host of large files."""
    return [(first, sent) for path, first, sent, _ in servers.log if path.startswith("xet")]


def interrupt(models_dir, servers, name="owner/name"):
    """Let a download fail at 90 % of the weights, and return the path of their part."""
    servers.at = {WEIGHTS: [("break", 0.9)] + [("reset", 0)] * hub.ATTEMPTS}
    assert "; the next run resumes with the files in" in fails(name, models_dir)
    servers.at, servers.log[:] = {}, []
    (part,) = models_dir.rglob("*.part")
    return part


# Which files are downloaded, and how they are installed


@pytest.mark.parametrize("name", ["124M", "owner/name", "owner/name@v1"])
def test_a_model_of_four_files_takes_five_requests(name, models_dir, model, servers, capfd):
    check(name, models_dir, model)
    paths = [path for path, *_ in servers.log]
    # The hub redirects each request for a file. The config of a released size is in hub.CONFIG.
    assert len(paths) == 1 + 2 * (3 if name == "124M" else 4)
    revision = {"124M": hub.SIZES["124M"][1], "owner/name": "main", "owner/name@v1": "v1"}[name]
    assert paths[0].endswith(f"/revision/{revision}")
    assert all(servers.commit in path or path.startswith("xet") for path in paths[1:])
    check(name, models_dir, model)
    assert len(servers.log) == len(paths)
    out, err = capfd.readouterr()
    directory = models_dir / name.replace("/", "--")
    host = servers.hub.removeprefix("http://")
    assert out == "" and err == f"downloading {name} (0 MB) from {host} to {directory}\n"
    source = json.loads((directory / "source.json").read_text())
    assert name == "124M" or source["commit"] == servers.commit


def test_a_download_runs_seven_modules_of_model_files(models_dir, servers):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import utils; "
    code += f"utils.load_encoder_hparams_and_params('owner/name', {str(models_dir)!r}); "
    code += "print(*(name for name in sys.modules if name.startswith('model_files')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.removeprefix("model_files.") for name in run.stdout.split()}
    expected = {"model_files", "hub", "files", "vocabulary", "directory", "safetensors"}
    assert names - {"added_tokens"} == expected | {"architecture"}


def test_an_unknown_name_causes_no_request(models_dir, servers):
    for name in ("125M", "gpt3", "124m"):
        assert "give a size (124M, 355M, 774M, 1558M)" in fails(name, models_dir)
    for name in ("../124M", "a/../b", "a/b/c", "~", "..", "C:x", "/nosuch", "owner/name@../x", ""):
        fails(name, models_dir / "x")
    assert servers.log == [] and not models_dir.exists()


def tokenizer(model, **others):
    ids = json.loads(model[0]["vocab.json"])
    return json.dumps({"model": {"type": "BPE", "vocab": ids, "merges": []}, **others}).encode()


def test_the_other_files_of_a_repository_are_downloaded_too(models_dir, model, servers):
    extra = dict.fromkeys(["generation_config.json", *hub.FILES], b'{"eos_token_id": 255}')
    extra |= {"tokenizer.json": tokenizer(model), "added_tokens.json": b"{}"}
    extra |= {name: model[0][name] for name in PAIR}
    for repo in "owner/name", GPT2:
        servers.files |= {f"{repo}/{name}": data for name, data in extra.items()}
    load("owner/name", models_dir)
    for name, data in extra.items():
        assert (models_dir / "owner--name" / name).read_bytes() == data
    check("124M", models_dir, model)


def test_shards_and_a_tokenizer_json_are_a_complete_model(models_dir, model, servers, monkeypatch):
    """This is how transformers 5 saves a large fine-tuned model. It is widened tensor by tensor."""
    for name in (*PAIR, WEIGHTS):
        del servers.files[f"owner/name/{name}"]
    servers.files["owner/name/tokenizer.json"] = tokenizer(model)
    tensors, weight_map, stored = list(flatten(model[1]).items()), {}, []
    for i in range(2):
        half = {f"transformer.{name}": x.astype(np.float16) for name, x in tensors[i::2]}
        write_safetensors(models_dir.parent / "shard", half)
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        servers.files[f"owner/name/{shard}"] = (models_dir.parent / "shard").read_bytes()
        weight_map |= dict.fromkeys(half, shard)
    servers.files[f"owner/name/{INDEX}"] = json.dumps({"weight_map": weight_map}).encode()
    write_weights = model_directory.write_weights

    def watched(path, tensors):
        stored.extend(x.dtype for x in tensors.values())
        write_weights(path, tensors)

    monkeypatch.setattr(model_directory, "write_weights", watched)
    encoder, hparams, params = load("owner/name", models_dir)
    assert set(stored) == {np.dtype(np.float16)} and [encoder.eot] == hparams["eos_token_ids"]
    for name, x in flatten(params).items():
        assert np.array_equal(x, dict(tensors)[name].astype(np.float16)), name
        assert x.flags.aligned and not x.flags.owndata
    del servers.files[f"owner/name/{shard}"]
    assert f"owner/name has no {shard}" in fails("owner/name@v1", models_dir)


def test_only_the_vocabulary_is_downloaded_if_nothing_else_is_needed(
    models_dir, model, servers, monkeypatch
):
    for name in "owner/name", "124M":
        servers.log.clear()
        encoder = utils.load_encoder(name, models_dir)
        assert encoder.encode("t") and not contents(servers)
        n_requests = len(servers.log)
        with monkeypatch.context() as context:
            context.setenv("HF_HUB_OFFLINE", "1")
            assert utils.load_encoder(name, models_dir).vocabulary.ids == encoder.vocabulary.ids
        assert len(servers.log) == n_requests
        check(name, models_dir, model)  # The weights can still be downloaded later.
    with pytest.raises(OSError, match="^owner/none could not be downloaded"):
        utils.load_encoder("owner/none", models_dir)
    assert not (models_dir / "owner--none").exists()


def test_the_store_is_tried_after_the_hub(models_dir, model, servers, capfd):
    servers.at = {"list": [("503", 0)] * hub.ATTEMPTS}
    check("124M", models_dir, model)
    hosts = [address.removeprefix("http://") for address in (servers.hub, servers.store)]
    *_, reason, last = capfd.readouterr().err.splitlines()
    reason, _, action = reason.partition("; ")
    assert reason == f"list of files: {hosts[0]} answered 503 Service Unavailable"
    assert action == "trying OpenAI's server"
    assert last == f"downloading 124M (0 MB) from {hosts[1]} to {models_dir / '124M'}"
    shutil.rmtree(models_dir)
    servers.log.clear()
    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    assert utils.load_encoder("124M", models_dir).n_vocab
    assert not any("ckpt" in path for path, *_ in servers.log)
    servers.at = {BUNDLE: [("", 0), ("break", 0.7)] + [("break", 0)] * hub.ATTEMPTS}
    assert f"{hosts[1]} broke; {AGAIN}; the next run" in fails("124M", models_dir)
    sizes = [size_of(part) for part in models_dir.rglob("*.part")]
    servers.at, servers.log[:] = {}, []
    check("124M", models_dir, model)
    assert [first for path, first, *_ in servers.log if BUNDLE in path] == [0, *sizes]


def test_a_killed_installation_from_the_store_is_resumed(models_dir, model, servers, monkeypatch):
    def killed(path, tensors):
        raise OSError("killed")

    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    with monkeypatch.context() as context:
        context.setattr(model_directory, "write_weights", killed)
        assert "killed; the next run resumes with the files in" in fails("124M", models_dir)
    check("124M", models_dir, model)
    assert json.loads((models_dir / "124M" / "source.json").read_text())["repository"] == hub.STORE


@pytest.mark.parametrize("file", ["model.ckpt.index", BUNDLE])
def test_files_of_the_store_are_verified_by_their_md5(
    file, models_dir, model, servers, monkeypatch
):
    servers.files = {path: x for path, x in servers.files.items() if path.startswith("124M/")}
    servers.at = {file: [("", 0)] + [("bytes", 0.4)] * hub.ATTEMPTS}
    assert f"{file}: the downloaded bytes have the wrong hash" in fails("124M", models_dir)
    servers.at = {file: [("503", 0), ("", 0), ("bytes", 0.4)]}
    check("124M", models_dir, model)
    shutil.rmtree(models_dir)
    monkeypatch.setattr("stand_in.base64.b64encode", lambda data: b"AAAA")
    message = fails("124M", models_dir)
    assert re.search("model.ckpt.index: .* did not send its length and Content-MD5", message)


@pytest.mark.parametrize("file", [WEIGHTS, "vocab.json", "config.json"])
def test_a_released_size_has_the_known_hashes_and_config(file, models_dir, model, servers):
    """A hub with other files or another config is not trusted."""
    name = f"{GPT2}/{file}"
    servers.files[name] = servers.files[name].replace(b'"n_head": 2', b'"n_head": 4') + b" "
    check("124M", models_dir, model)
    assert load("124M", models_dir)[1]["n_head"] == 2
    assert any("ckpt" in path for path, *_ in servers.log) == (file != "config.json")


def test_the_released_sizes_are_known():
    for name, (repo, commit) in hub.SIZES.items():
        assert re.fullmatch("openai-community/gpt2(-medium|-large|-xl)?", repo)
        pins = [commit, *(hub.SHA256[f"{name}/{file}"] for file in (*PAIR, WEIGHTS))]
        assert [len(pin) for pin in pins] == [40, 64, 64, 64]
        assert hub.CONFIG[name]["n_embd"] == 64 * hub.CONFIG[name]["n_head"]


def test_a_complete_model_is_only_read(models_dir, servers):
    load("124M", models_dir)
    before = {
        path: path.stat().st_mtime_ns for path in [models_dir / "124M", *models_dir.rglob("*")]
    }
    load("124M", models_dir)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    shutil.copytree(OPENAI, models_dir / "355M")  # A directory in OpenAI's format is not converted.
    servers.log.clear()
    load("355M", models_dir)
    assert not servers.log and len(list((models_dir / "355M").iterdir())) == 6


@pytest.mark.parametrize("name", ["124M", "owner/name"])
def test_leftovers_of_a_killed_run_do_not_get_into_the_model(name, models_dir, model, servers):
    directory = models_dir / name.replace("/", "--")
    stage = directory / "incomplete"
    (stage / "hub").mkdir(parents=True)  # An older version of this program left this.
    (directory / "source.json").write_text('{"repository": "owner/name", "commit": "another"}')
    (directory / f".gpt2-{'0' * 16}.tmp").write_bytes(b"half a file")
    for file in "tokenizer.json", "added_tokens.json", "vocab.json", "config.json":
        for folder in stage, directory:
            (folder / file).write_bytes(b'{"from": "another commit"}')
    check(name, models_dir, model)
    stage.mkdir()  # The last run was killed just before its end.
    (directory / "fetch.lock").touch()
    check(name, models_dir, model)


USER_DATA = b'{"of the": "user"}'


@pytest.mark.parametrize("name", ["124M", "owner/name"])
def test_no_file_of_the_user_is_replaced_or_deleted(name, models_dir, model, servers):
    directory = models_dir / name.replace("/", "--")
    directory.mkdir(parents=True)
    for file in ("config.json", "generation_config.json", "source.json", *hub.FILES):
        (directory / file).write_bytes(USER_DATA)
        servers.log.clear()
        advice = "move it away, or use another --models_dir"
        message = f"{directory / file} is not from a download and would be replaced; {advice}"
        assert fails(name, models_dir) == message
        assert not contents(servers) and not any("ckpt" in path for path, *_ in servers.log)
        assert (directory / file).read_bytes() == USER_DATA
        if file not in ("config.json", "generation_config.json"):
            with pytest.raises(FileExistsError):
                utils.load_encoder(name, models_dir)
        (directory / file).rename(
            directory / "fetch.lock" if file == "source.json" else models_dir / file
        )
        assert {path.name for path in directory.iterdir()} - {"incomplete"} <= {"fetch.lock"}
    for file in "notes.tmp", "tokenizer.json.tmp", ".gpt2-mine.tmp":
        (directory / file).write_bytes(USER_DATA)
    (directory / "vocab.json").write_bytes(model[0]["vocab.json"])  # It is the same as on the hub.
    load(name, models_dir)
    for file in "notes.tmp", "tokenizer.json.tmp", ".gpt2-mine.tmp", "fetch.lock":
        assert (directory / file).read_bytes() == USER_DATA


def test_a_directory_that_cannot_be_written_is_an_error_of_one_line(models_dir, servers, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(USER_DATA)
    assert str(file) in fails("owner/name", file) and str(file) in fails("owner/name", file / "x")
    with pytest.raises(OSError, match=str(file)):
        corpus.fetch_text(f"{servers.store}/a/king.txt", file / "texts")
    models_dir.mkdir()
    (models_dir / "owner--name").write_bytes(USER_DATA)
    assert str(models_dir / "owner--name") in fails("owner/name", models_dir) and not servers.log
    assert file.read_bytes() == (models_dir / "owner--name").read_bytes() == USER_DATA


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe")
def test_a_pipe_or_a_link_instead_of_a_part_is_removed(models_dir, servers, model, tmp_path):
    stage = models_dir / "owner--name" / "incomplete"
    stage.mkdir(parents=True)
    digest = hashlib.sha256(model[0][WEIGHTS]).hexdigest()
    for file in "config.json", "vocab.json", f"{WEIGHTS}.{digest[:16]}.part":
        os.mkfifo(stage / file)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(USER_DATA)
    digest = stand_in.git_sha1(model[0]["merges.txt"])
    (stage / f"merges.txt.{digest[:16]}.part").symlink_to(tmp_path / "mine" / "file")
    (stage / "tokenizer.json").symlink_to(tmp_path / "mine")
    subprocess.run([sys.executable, "-c", CLIENT, str(models_dir)], check=True, timeout=60)
    check("owner/name", models_dir, model)
    assert (tmp_path / "mine" / "file").read_bytes() == USER_DATA


@pytest.mark.parametrize("name", ["124M", "owner/name"])
def test_an_incomplete_installation_is_not_a_model(name, models_dir, model, servers, monkeypatch):
    """Each write of the installation fails in turn, as on a full disk. The directory never has
    another vocabulary than the complete model: tokenizer.json has precedence over the pair, and the
    side files add to it."""
    servers.files["owner/name/tokenizer.json"] = tokenizer(model)
    servers.files["owner/name/tokenizer_config.json"] = b'{"pad_token": "<pad>"}'
    directory = models_dir / name.replace("/", "--")
    write_atomic, vocabularies, n_left = disk.write_atomic, [], 0

    def limited(path):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise OSError(28, "No space left on device")
        return write_atomic(path)

    monkeypatch.setattr(model_directory, "write_atomic", limited)
    monkeypatch.setattr("model_files.safetensors.write_atomic", limited)
    for n_writes in range(5 if name == "124M" else 7):  # The last ones are config and weights.
        n_left = n_writes
        assert "No space left on device; the next run resumes" in fails(name, models_dir)
        if utils.holds_vocabulary(directory):
            vocabularies.append(utils.read_vocabulary(directory))
    n_left = n_writes + 1
    load(name, models_dir)
    complete = utils.read_vocabulary(directory)
    assert name == "124M" or len(vocabularies) == 4
    assert all(vocabulary.added == complete.added for vocabulary in vocabularies)


# One file: it is resumed at the byte, verified, and not discarded because of one odd answer


def test_a_bad_connection_succeeds_and_one_without_progress_is_given_up(models_dir, model, servers):
    servers.at = {WEIGHTS: [("break", 0.2)] * 2 * hub.ATTEMPTS}
    check("owner/name", models_dir, model)
    starts, sent = zip(*contents(servers))
    assert starts == tuple(sorted(starts)) and len(starts) == 2 * hub.ATTEMPTS + 1
    assert len(model[0][WEIGHTS]) <= sum(sent) < len(model[0][WEIGHTS]) + len(sent) * hub.CHUNK
    servers.log.clear()
    servers.at = {WEIGHTS: [("break", 0.5)] + [("break", 0)] * 9}
    assert f"the connection to {servers.hub[7:]} broke; check" in fails("owner/name@v1", models_dir)
    assert len(contents(servers)) == hub.ATTEMPTS


def test_another_run_resumes_although_the_commit_has_changed(models_dir, model, servers):
    n_bytes = size_of(interrupt(models_dir, servers))
    servers.files["owner/name/vocab.json"] += b" "
    servers.commit = "e" * 40
    utils.load_encoder("owner/name", models_dir)  # This keeps the part of the weights.
    check("owner/name", models_dir, model)
    assert n_bytes > 0.8 * len(model[0][WEIGHTS]) and contents(servers)[0][0] == n_bytes
    assert (models_dir / "owner--name" / "vocab.json").read_bytes() != model[0]["vocab.json"]


def test_a_part_of_another_version_is_removed(models_dir, model, servers):
    weights = f"owner/name/{WEIGHTS}"
    genuine, servers.files[weights] = servers.files[weights], bytes(20000)
    part = interrupt(models_dir, servers)
    (part.parent / "tokenizer.json").write_text("{}")  # The repository no longer has it.
    servers.files[weights] = genuine
    check("owner/name", models_dir, model)
    assert contents(servers) == [(0, len(genuine))]


def test_a_complete_part_is_not_downloaded_again(models_dir, model, servers, monkeypatch):
    def killed(source, target):
        if str(target).endswith(WEIGHTS):
            raise OSError("killed")
        replace(source, target)

    replace = os.replace
    with monkeypatch.context() as context:
        context.setattr(os, "replace", killed)
        assert "killed" in fails("owner/name", models_dir)
    servers.log.clear()
    check("owner/name", models_dir, model)
    assert len(servers.log) == 1  # Only the list was downloaded.


@pytest.mark.parametrize(
    "kind", ["no ranges", "416", "other range", "portal", "page", "gone", "cut"]
)
def test_one_odd_answer_does_not_discard_a_part(kind, models_dir, model, servers):
    n_bytes = size_of(interrupt(models_dir, servers))
    servers.at = {WEIGHTS: [(kind, 0), ("503", 0)]}
    check("owner/name", models_dir, model)
    assert [first for first, sent in contents(servers) if sent > 99][-1] == n_bytes


@pytest.mark.parametrize("kind", ["bytes", "portal as file"])
def test_wrong_bytes_are_deleted(kind, models_dir, model, servers):
    servers.at = {WEIGHTS: [(kind, 0.7)]}
    check("owner/name", models_dir, model)
    servers.at = {WEIGHTS: [(kind, 0.7)] * hub.ATTEMPTS}
    assert WEIGHTS in fails("owner/name@v1", models_dir) and not list(models_dir.rglob("*.part"))
    part = interrupt(models_dir, servers, "owner/name@refs/pr/1")
    part.write_bytes(b"!" + part.read_bytes()[1:])  # The disk has changed a byte.
    check("owner/name@refs/pr/1", models_dir, model)


@pytest.mark.parametrize("file", ["list", WEIGHTS])
def test_a_download_survives_each_fault(file, models_dir, model, servers):
    """Every second request has a fault, each time another of those that are temporary."""
    final = {"disabled", "404 bare", "403 bare", "stall"}
    temporary = [kind for kind in stand_in.KINDS if kind not in final]
    servers.at = {file: [(each, 0.6) for kind in temporary for each in (kind, "")]}
    while servers.at[file]:
        load("owner/name", models_dir)
        shutil.rmtree(models_dir)


def test_an_answer_is_not_read_beyond_the_size_of_the_file(models_dir, model, servers, monkeypatch):
    def endless(self, query):
        return "no length", 0, behind(self, query)[2] + bytes(1 << 20)

    def watched(path, like):
        sizes.append(size_of(path))
        return digest_of(path, like)

    behind, digest_of, sizes = stand_in.Servers.behind, disk.digest_of, []
    monkeypatch.setattr(stand_in.Servers, "behind", endless)
    monkeypatch.setattr(disk, "digest_of", watched)
    assert "config.json: the downloaded bytes have the wrong hash" in fails(
        "owner/name", models_dir
    )
    assert max(sizes) <= len(model[0]["config.json"]) + hub.CHUNK


def test_disk_space_is_checked_first(models_dir, model, servers, monkeypatch):
    needs, size, check_space = [], len(model[0][WEIGHTS]), disk.check_space
    for module in disk, model_directory:
        monkeypatch.setattr(module, "check_space", lambda directory, n: needs.append(n))
    load("owner/name", models_dir)
    assert 2 * size - 9000 < needs[-2] <= 2 * size  # the download and the model
    assert needs[-1] == sum(x.nbytes for x in flatten(model[1]).values())
    n_bytes = size_of(interrupt(models_dir, servers, "owner/name@v1"))
    load("owner/name@v1", models_dir)
    assert needs[-2] <= 2 * size - n_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    check_space(models_dir, 100)
    with pytest.raises(OSError, match="too full .0 MB are needed, 0 MB are free.; free some space"):
        check_space(models_dir, 101)
    monkeypatch.setattr(disk, "check_space", check_space)
    assert "the disk is too full" in fails("owner/name@refs/pr/1", models_dir)


# Refusals of the hub, and repositories without a GPT-2

REFUSED = "; check the name; a private or gated repository needs HF_TOKEN"
NO_REPO = f"401 RepoNotFound Invalid username or password{REFUSED}"


@pytest.mark.parametrize(
    "name,token,line",
    [
        ("owner/none", "", NO_REPO),
        ("owner/none", "hf_none", f"404 RepoNotFound Repository not found{REFUSED}"),
        ("owner/private", "", NO_REPO),
        ("owner/private", "hf_stale", NO_REPO),
        ("owner/private", "hf_none", f"404 RepoNotFound Repository not found{REFUSED}"),
        ("owner/gated", "", "401 GatedRepo Access to model owner/gated is restricted"),
        ("owner/gated", "hf_none", f"You must have access to it{REFUSED}"),
        ("owner/name@v9", "", "404 RevisionNotFound Invalid rev id: v9"),
    ],
)
def test_each_refusal_of_the_hub_is_explained(
    name, token, line, models_dir, model, servers, monkeypatch
):
    servers.gated, servers.private = {"owner/gated"}, {"owner/private"}
    servers.tokens = {"hf_none": set(), "hf_all": {"owner/gated", "owner/private"}}
    for repo in servers.tokens["hf_all"]:
        servers.files |= {f"{repo}/{file}": data for file, data in model[0].items()}
    monkeypatch.setenv("HF_TOKEN", token)
    message = fails(name, models_dir)
    assert line in message and "resumes" not in message and AGAIN not in message
    assert list(models_dir.parent.glob("models/*")) == []
    assert len(servers.log) == (2 if "stale" in token or "gated" in name else 1)
    monkeypatch.setenv("HF_TOKEN", "hf_all")
    for repo in servers.tokens["hf_all"]:
        check(repo, models_dir, model)


def test_other_messages_of_the_hub_are_printed_without_escapes(models_dir, servers, capfd):
    servers.faults = [("disabled", 0)]
    assert fails("owner/name", models_dir).endswith(
        "403 Access to this resource is disabled. {0} {x}"
    )
    assert len(servers.log) == 1
    servers.faults = [("hostile", 0)] * hub.ATTEMPTS
    assert r"500 Nope\x1b[2J\x1b]0;owned\x07" in fails("owner/name", models_dir)
    assert "\x1b" not in capfd.readouterr().err


def test_no_name_and_no_header_of_a_server_reaches_the_terminal_or_another_directory(
    models_dir, servers, monkeypatch, capfd, tmp_path
):
    evil = "x\x1b[2J", "../x", "/x", "C:\\x", "NUL", "con.safetensors", "\u202egpj.exe", "a\nb"
    servers.files |= {f"owner/name/{name}": b"{}" for name in evil}
    load("owner/name", models_dir)
    assert len(list(models_dir.glob("*/*"))) == 5 and list(models_dir.parent.glob("*")) == [
        models_dir
    ]
    del servers.files[f"owner/name/{WEIGHTS}"]
    for name in evil:
        index = {"weight_map": {"wte.weight": name}}
        servers.files[f"owner/name/{INDEX}"] = json.dumps(index).encode()
        assert "weight_map does not map tensors to names" in fails("owner/name@v1", models_dir)
    headers = {
        "X-Error-Code": "\x1b[2J",
        "X-Error-Message": "\x9b2J\x1b[2J",
        "Retry-After": "\x1b0",
    }
    for status in 403, 503:
        monkeypatch.setitem(stand_in.ANSWERS, "evil", (status, headers, b"\x1b[2J"))
        servers.faults = [("evil", 0)] * hub.ATTEMPTS
        assert f"{status} \\x1b[2J \\x9b2J\\x1b[2J" in fails("owner/name@v1", models_dir)
    monkeypatch.setitem(stand_in.ANSWERS, "evil", (200, {"Content-Length": "\x1b9"}, b""))
    servers.at = {"config.json": [("evil", 0)] * hub.ATTEMPTS}
    fails("owner/name@v1", models_dir)
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_an_answer_without_end_is_not_read(status, models_dir, servers, monkeypatch, text):
    headers = {"Location": "/a/king.txt"} if status == 302 else {}
    monkeypatch.setattr(disk, "MAX_JSON", 1 << 16)
    monkeypatch.setitem(stand_in.ANSWERS, "long", (status, headers, b"[" * (50 << 20)))
    if status != 302:
        servers.at = {"list": [("long", 0)] * hub.ATTEMPTS}
        fails("owner/name", models_dir)
    else:
        servers.at = {"king.txt": [("long", 0)]}
        assert corpus.fetch_text(*text[:2]).read_bytes() == text[2]
    assert servers.log[0][2] == 0  # The client has not read the 50 MB.


def test_a_public_model_is_downloaded_although_the_token_has_expired(
    models_dir, model, servers, monkeypatch, capfd
):
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    check("owner/name", models_dir, model)
    assert capfd.readouterr().err.count("does not accept your token; continuing without it") == 1
    assert sum("Authorization" in headers for *_, headers in servers.log) == 1


def test_a_renamed_repository_and_a_revision_with_slashes(models_dir, model, servers):
    servers.renamed = {"old/name": "owner/name"}
    check("old/name@refs/pr/1", models_dir, model)


@pytest.mark.parametrize(
    "files,line",
    [
        (["adapter_config.json"], "has no config.json: it has an adapter for another model"),
        (["model-Q8_0.gguf"], "has no config.json: it has GGUF files"),
        (["config.json", *PAIR, "tf_model.h5"], f"has no {WEIGHTS}: it has TensorFlow weights"),
        (["config.json", *PAIR, "flax_model.msgpack"], f"has no {WEIGHTS}: it has Flax weights"),
        (["config.json", *PAIR, "model-Q8_0.gguf"], f"has no {WEIGHTS}: it has GGUF files"),
        (["config.json", "vocab.json", WEIGHTS], "has no merges.txt: it does not have the files"),
        (["README.md"], "has no config.json: it does not have the files of a model"),
    ],
)
def test_a_repository_without_a_model_is_explained(files, line, models_dir, model, servers):
    servers.files = {f"owner/name/{name}": model[0].get(name, b"{}") for name in files}
    message = fails("owner/name", models_dir)
    assert f"owner/name {line}" in message and "resumes" not in message and AGAIN not in message
    assert not list(models_dir.glob("*"))


@pytest.mark.parametrize(
    "file,data,line",
    [
        ("config.json", b'{"model_type": "llama"}', "config.json: model_type is 'llama'"),
        ("vocab.json", b'{"a": -1}', "vocab.json or merges.txt: an id is not between 0"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "tokenizer.json: not a byte-level"),
    ],
)
def test_no_weights_of_another_architecture_are_downloaded(file, data, line, models_dir, servers):
    servers.files[f"owner/name/{file}"] = data
    message = fails("owner/name", models_dir)
    assert line in message and "incomplete" not in message and not list(models_dir.glob("*"))
    assert not contents(servers) and (file != "config.json" or len(servers.log) == 3)


@pytest.mark.parametrize("in_shards", [False, True])
def test_weights_in_pickles_are_downloaded_and_verified(in_shards, models_dir, model, servers):
    del servers.files[f"owner/name/{WEIGHTS}"]
    tensors = {f"transformer.{name}": x for name, x in flatten(model[1]).items()}
    files = {"pytorch_model.bin": tensors}
    if in_shards:
        names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        weight_map = {name: names[i % 2] for i, name in enumerate(tensors)}
        index = json.dumps({"weight_map": weight_map}).encode()
        servers.files["owner/name/pytorch_model.bin.index.json"] = index
        files = {
            file: {name: x for name, x in tensors.items() if weight_map[name] == file}
            for file in names
        }
    for file, part in files.items():
        odd_models.torch_save(models_dir.parent / file, part)
        servers.files[f"owner/name/{file}"] = (models_dir.parent / file).read_bytes()
    check("owner/name", models_dir, model)
    assert (models_dir / "owner--name" / WEIGHTS).exists()  # installed as safetensors
    assert not list((models_dir / "owner--name").glob("*.bin"))


def test_safetensors_are_preferred_to_a_pickle(models_dir, model, servers):
    servers.files["owner/name/pytorch_model.bin"] = b"another model"
    check("owner/name", models_dir, model)
    assert not [line for line in servers.log if "pytorch_model" in str(line)]


@pytest.mark.parametrize("name", ["gpt2", "https://huggingface.co/gpt2"])
def test_the_name_of_a_tutorial_is_a_released_size(name, models_dir, model, servers):
    expected, loaded = flatten(model[1]), flatten(load(name, models_dir)[2])
    assert all(np.array_equal(x, loaded[tensor]) for tensor, x in expected.items())
    assert (models_dir / "124M" / WEIGHTS).exists()


def test_a_server_without_a_list_of_files_is_recognized(models_dir, model, servers, monkeypatch):
    servers.plain = True
    message = fails("owner/name", models_dir)
    assert "list of files: the server has no such list; unset HF_ENDPOINT, or" in message
    assert len(servers.log) == 1
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
            lambda listing, wrong=wrong: dumps(listing | wrong).replace("Infinity", "1e999"),
        )
        message = fails("owner/name", models_dir)
        assert "has no such list" in message or wrong["siblings"][0]["size"] in (-5, 10**400)
    servers.faults = [("cut", 0.5)] * hub.ATTEMPTS
    message = f"list of files: {servers.hub[7:]} or its answer is not valid (ValueError)"
    assert message in fails("owner/name", models_dir)
    monkeypatch.undo()


@pytest.mark.parametrize("file", ["list", "vocab.json"])
def test_a_web_page_is_recognized(file, models_dir, servers):
    servers.at = {file: [("page", 0)] * hub.ATTEMPTS}
    message = fails("owner/name", models_dir)
    assert " sent a web page; does this network require a login?" in message
    assert AGAIN not in message


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_there_is_no_request_in_offline_mode(variable, models_dir, model, servers, monkeypatch):
    monkeypatch.setenv(variable, "1")
    message = f"124M is not on this disk, and {variable} forbids downloads; unset it"
    assert fails("124M", models_dir) == message
    assert not servers.log and not models_dir.exists()
    monkeypatch.setenv(variable, "0")
    check("124M", models_dir, model)
    monkeypatch.setenv(variable, "yes")
    load("124M", models_dir)


# Credentials, addresses, pauses


def authorizations(servers):
    """Return {server: its Authorization headers}, and empty the log."""
    hosts = {getattr(servers, r).removeprefix("http://"): r for r in ("hub", "content", "store")}
    received = {}
    for *_, headers in servers.log:
        received.setdefault(hosts[headers["Host"]], set()).add(headers.get("Authorization"))
    servers.log.clear()
    return received


def test_the_token_goes_to_the_hub_alone_and_nothing_comes_from_netrc(
    models_dir, servers, monkeypatch, tmp_path
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    load("owner/name", models_dir)
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
        load(f"owner/name@{revision}", models_dir)
        assert authorizations(servers) == {"hub": {f"Bearer {token}"}, "content": {None}}
    servers.at = {"list": [("disabled", 0)]}
    load("124M", models_dir)
    assert authorizations(servers) == {"hub": {"Bearer hf_variable"}, "store": {None}}


@pytest.mark.parametrize("token", ["hf_\u201cquoted\u201d", "hf_two\nlines", "hf_two words"])
def test_a_malformed_token_is_refused_before_any_request(
    token, models_dir, servers, monkeypatch, tmp_path
):
    part = interrupt(models_dir, servers)
    (tmp_path / "hf_home").mkdir()
    (tmp_path / "hf_home" / "token").write_text(token, encoding="utf-8")
    message = fails("owner/name", models_dir)
    assert "has odd characters or spaces; correct it" in message and "hf_two" not in message
    monkeypatch.setenv("HF_TOKEN", token)
    assert fails("owner/name", models_dir) == message and part.exists() and not servers.log


def test_a_password_in_an_address_goes_to_its_host_and_is_not_printed(
    models_dir, model, servers, monkeypatch, capfd
):
    address = servers.hub.replace("//", "//me:ge%40heim@")
    monkeypatch.setenv("HF_ENDPOINT", f"  {address}/ \n")
    monkeypatch.setattr(stand_in.Hub, "may_read", lambda self, *args, **options: True)
    check("owner/name", models_dir, model)
    assert authorizations(servers) == {"hub": {"Basic bWU6Z2VAaGVpbQ=="}, "content": {None}}
    servers.faults = [("503", 0)] * hub.ATTEMPTS
    text = fails("owner/name@v1", models_dir) + capfd.readouterr().err
    assert "heim" not in text and f"list of files: {servers.hub[7:]} answered 503" in text
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    check("owner/name@v1", models_dir, model)
    assert "Bearer hf_secret" in authorizations(servers)["hub"]


def test_a_password_of_the_store_is_neither_printed_nor_kept(
    models_dir, servers, monkeypatch, capfd
):
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store.replace("//", "//me:geheim@"))
    servers.at = {"list": [("disabled", 0)] * 2, "encoder.json": [("404 bare", 0)]}
    assert f"encoder.json: {servers.store[7:]} answered 404" in fails("124M", models_dir)
    monkeypatch.setattr(hub, "SHA256", {})
    monkeypatch.setattr("stand_in.base64.b64encode", lambda data: b"AAAA")
    servers.at["list"] = [("disabled", 0)]
    message = fails("124M", models_dir)
    assert f"encoder.json: {servers.store[7:]} did not send its length and Content-MD5" in message
    monkeypatch.undo()
    monkeypatch.setenv("GPT2_OPENAI_URL", servers.store.replace("//", "//me:geheim@"))
    assert "geheim" not in message + capfd.readouterr().err


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
def test_a_signed_address_is_renewed_and_never_printed(
    kind, status, models_dir, model, servers, capfd
):
    servers.at = {WEIGHTS: [(kind, 0)] * 2}
    check("owner/name", models_dir, model)
    servers.at = {WEIGHTS: [(kind, 0)] * hub.ATTEMPTS}
    message = f"{WEIGHTS}: {servers.hub[7:]} redirected to a server that answered {status}; check"
    assert message in fails("owner/name@v1", models_dir)
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
    status, headers, expected, models_dir, servers, monkeypatch
):
    pauses = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(hub, "PAUSE", 1.0)
    monkeypatch.setitem(stand_in.ANSWERS, "busy", (status, headers, b""))
    servers.at = {"list": [("busy", 0)] * hub.ATTEMPTS}
    assert f" answered {status}" in fails("owner/name", models_dir)
    assert pauses == expected


@pytest.mark.parametrize(
    "variable,value,line",
    [
        ("HF_ENDPOINT", "http://hub.invalid", "could not reach hub.invalid; check the connection"),
        ("HF_ENDPOINT", "hub.example", "the address of hub.example must begin with https://"),
        ("HF_ENDPOINT", "http://[", "[ or its answer is not valid"),
        ("HF_ENDPOINT", "http://me:pw@host:9x", "host:... or its answer is not valid (InvalidURL)"),
        ("HF_ENDPOINT", "me:pw@host", "the address of host must begin with https://"),
        ("HF_ENDPOINT", "htps://me:pw@host/x", "host or its answer is not valid (InvalidSchema)"),
        ("HF_ENDPOINT", "http://me:x/pw@host", "me:... or its answer is not valid (InvalidURL)"),
        ("HF_ENDPOINT", "http://me:x#pw@host/", "me:... or its answer is not valid (InvalidURL)"),
        ("HTTP_PROXY", "http://me:pw@127.0.0.1:9", "through the proxy; check HTTPS_PROXY"),
        ("HTTP_PROXY", "me:pw@host:9x", "or its answer is not valid"),
        ("HTTP_PROXY", "http://me:pw@", "or its answer is not valid"),
        ("HTTP_PROXY", "socks5://me:pw@host", "or its answer is not valid (InvalidSchema)"),
    ],
)
def test_a_server_that_cannot_be_reached_is_an_error_of_one_line(
    variable, value, line, models_dir, model, servers, monkeypatch, capfd
):
    monkeypatch.setenv(variable, value)
    message = fails("owner/name", models_dir)
    assert line in message and "pw" not in message + capfd.readouterr().err and not servers.log
    if variable == "HTTP_PROXY":
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        check("owner/name", models_dir, model)


@pytest.mark.parametrize("target", ["http://host:abc/", "http://[", "ftp://x/", "http://\xff:99/"])
def test_a_redirect_to_an_invalid_address_is_an_error_of_one_line(
    target, models_dir, servers, monkeypatch
):
    monkeypatch.setattr("requests.Session.get_redirect_target", lambda *args: target)
    assert re.search("or its answer is not valid|could not reach", fails("owner/name", models_dir))


def test_an_unknown_certificate_is_explained(models_dir, model, servers, monkeypatch, tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    if subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("openssl cannot make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    encrypted = stand_in.Servers()
    encrypted.files = servers.files
    server = encrypted.servers[0]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("HF_ENDPOINT", f"https://localhost:{server.server_port}")
    assert "has an unknown certificate; set REQUESTS_CA_BUNDLE" in fails("owner/name", models_dir)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    assert "TLS CA certificate bundle, invalid path" in fails("owner/name", models_dir)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    check("owner/name", models_dir, model)
    encrypted.close()


def test_without_a_network_the_messages_say_what_to_do(models_dir, monkeypatch, capfd):
    closed = stand_in.Servers()
    closed.close()
    monkeypatch.setenv("HF_ENDPOINT", closed.hub)
    monkeypatch.setenv("GPT2_OPENAI_URL", closed.store)
    from_hub, from_store = (f"could not reach {x[7:]}" for x in (closed.hub, closed.store))
    retries = [f"{from_hub}; retrying in 0 s"] * 4 + [f"{from_hub}; trying OpenAI's server"]
    retries += [f"{from_store}; retrying in 0 s"] * 4
    instead = "or use --model_size shakespeare, which needs no download"
    message = f"124M could not be downloaded: {from_hub}; {from_store}; {AGAIN}, {instead}"
    for load_it in load, utils.load_encoder:
        with pytest.raises(OSError) as error:
            load_it("124M", models_dir)
        assert str(error.value) == message and not models_dir.exists()
        assert capfd.readouterr().err.splitlines() == retries
    with pytest.raises(OSError) as error:
        corpus.fetch_text(f"{closed.store}/a/king.txt", models_dir)
    assert str(error.value) == f"{from_store}; {AGAIN}" and not models_dir.exists()
    assert capfd.readouterr().err.splitlines() == retries[-4:]


# The size and the speed of a download


def on_terminal(code, *args):
    """Return what a program writes to a terminal of 80 columns: a list of states of its line."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-c", code, *map(str, args)]
    with subprocess.Popen(command, stderr=end, stdin=subprocess.DEVNULL) as process:
        os.close(end)
        data = b""
        with contextlib.suppress(OSError):  # On Linux, this is how a terminal ends.
            while piece := os.read(terminal, 1000):
                data += piece
        os.close(terminal)
    assert process.returncode == 0
    return re.split("[\r\n]+", data.decode())


def check_bars(states, name):
    """Check that the bars of a file fit into 80 columns, and return their speeds."""
    bars = [state for state in states if state.startswith(f"{name}: ")]
    for bar in bars:
        match = re.fullmatch(
            r"[^|]+: +\d+%\|(.{10,})\| [\d.]+[kM]?B/[\d.]+[kM]B, (.+), (\d\d:\d\d|\?) left", bar
        )
        assert match and len(bar) <= 80, bar
        assert re.fullmatch(r"([\d.]+[kM]|\?)B/s", match[2]), bar
    return [bar.split(", ")[1] for bar in bars]


def test_a_model_says_its_size_first_and_then_its_speed(models_dir, servers, start):
    weights = servers.files.pop(f"owner/name/{WEIGHTS}")
    shard = "model-00001-of-00001.safetensors"
    names = (f"transformer.{name}" for name in flatten(start.model[1]))
    index = {"weight_map": dict.fromkeys(names, shard)}
    servers.files[f"owner/name/{shard}"] = weights
    servers.files[f"owner/name/{INDEX}"] = json.dumps(index).encode()
    servers.pace = 0.02
    states = on_terminal(CLIENT, models_dir)
    first = f"downloading owner/name (2 MB) from {servers.hub[7:]} to {models_dir / 'owner--name'}"
    speeds = check_bars(states[states.index(first) :], "model-00001-of-00001")
    assert len(speeds) > 5 and speeds[-1] != "?B/s"
    assert not check_bars(states[: states.index(first)], "model-00001-of-00001")


def test_a_text_says_its_size_first_and_then_its_speed(text, servers):
    _, directory, data = text
    name = "a-long-name" * 9
    servers.files[f"a/{name}.txt"] = data * 50
    servers.pace = 0.02
    address = f"{servers.store}/a/{name}.txt"
    code = f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r}); from training import corpus; "
    code += "corpus.fetch_text(sys.argv[1], pathlib.Path(sys.argv[2]))"
    first, *states = on_terminal(code, address, directory)
    assert first == f"downloading {address} (2.1 MB)"
    speeds = check_bars(states, name[:20])
    assert len(speeds) > 5 and speeds[-1] != "?B/s"


# Hugging Face's cache


@pytest.fixture
def snapshot(models_dir, tmp_path, monkeypatch, model):
    """Return the directory of a repository in the cache of huggingface_hub; main is its commit."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--name"
    latest = repository / "snapshots" / ("d" * 40)
    for directory in repository / "refs", latest:
        directory.mkdir(parents=True)
    (repository / "refs" / "main").write_text("d" * 40)
    for name, data in model[0].items():
        (latest / name).write_bytes(data)
    return latest


def test_a_model_in_the_cache_is_read_there(models_dir, servers, snapshot):
    released = snapshot.parents[2] / f"models--{GPT2.replace('/', '--')}" / "snapshots"
    released = shutil.copytree(snapshot, released / hub.SIZES["124M"][1])
    for name in "owner/name", "owner/name@" + "d" * 40, "124M":
        assert utils.find_model(name, models_dir) == (released if name == "124M" else snapshot)
        load(name, models_dir)
    assert not servers.log and not models_dir.exists()
    for repo, revision in ("owner/other", "main"), ("owner/name", "v1"), ("owner/name", "e" * 40):
        assert utils.find_cached(repo, revision) is None


@pytest.mark.parametrize("name", [*PAIR, "config.json", WEIGHTS])
def test_an_incomplete_snapshot_is_ignored(name, snapshot, models_dir, model, servers):
    (snapshot / name).unlink()
    check("owner/name", models_dir, model)
    assert utils.find_cached("owner/name", "main") is None
    (snapshot / name).write_bytes(model[0][name])
    assert utils.find_cached("owner/name", "main") == snapshot


def test_shards_and_a_tokenizer_json_are_a_complete_snapshot(snapshot):
    for name in "vocab.json", WEIGHTS:
        (snapshot / name).unlink()
    weight_map = {"a": "a.safetensors", "b": "b.safetensors"}
    (snapshot / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in "tokenizer.json", "a.safetensors", "b.safetensors":
        assert utils.find_cached("owner/name", "main") is None
        (snapshot / name).touch()
    assert utils.find_cached("owner/name", "main") == snapshot


def test_environment_variables_say_where_the_cache_is(snapshot, tmp_path, monkeypatch):
    relative = snapshot.relative_to(tmp_path / "cache")
    for name in "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    for name in "HOME", "USERPROFILE":
        monkeypatch.setenv(name, str(tmp_path / "home"))
    home = shutil.copytree(tmp_path / "cache", tmp_path / "home/.cache/huggingface/hub") / relative
    assert utils.find_cached("owner/name", "main") == home
    for variable, value, expected in (
        ("XDG_CACHE_HOME", tmp_path, None),
        ("HF_HOME", "$HOME/.cache/huggingface", home),
        ("HUGGINGFACE_HUB_CACHE", tmp_path / "cache", snapshot),
        ("HF_HUB_CACHE", "~/.cache/huggingface/hub", home),
    ):
        monkeypatch.setenv(variable, str(value))
        assert utils.find_cached("owner/name", "main") == expected


# Texts


@pytest.fixture
def text(servers, models_dir):
    """Return the address of a text, the directory for it, and its bytes."""
    servers.files["a/king.txt"] = b"To be, or not to be: that is the question. " * 999
    return f"{servers.store}/a/king.txt", models_dir / "texts", servers.files["a/king.txt"]


def test_a_text_is_resumed_only_if_it_has_not_changed(text, servers, monkeypatch):
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
def test_without_a_strong_tag_a_text_is_downloaded_from_its_start(tag, text, servers, monkeypatch):
    address, directory, data = text
    monkeypatch.setattr(stand_in.Store, "tag", tag)
    servers.at = {"king.txt": [(kind, 0.5) for kind in ("break", "length", "gzip", "half")]}
    assert corpus.fetch_text(address, directory).read_bytes() == data
    assert [first for _, first, *_ in servers.log] == [0, 0, 0, 0, 0]
    servers.at = {"king.txt": [("break", 0.5), ("break", 0.1)] * hub.ATTEMPTS}
    with pytest.raises(OSError, match="the connection to .* broke"):  # It would never end.
        corpus.fetch_text(address, directory.parent / "others")


@pytest.mark.parametrize(
    "kind,line",
    [
        ("cut", "/a/king.txt: its length is unknown; download it yourself$"),
        ("no length", "/a/king.txt: its length is unknown; download it yourself$"),
        ("negative", "/a/king.txt: its length is unknown; download it yourself$"),
        ("cut chunked", "^the connection to [0-9.:]+ broke; check the connection"),
        ("break", "^the connection to [0-9.:]+ broke; check the connection"),
        (
            "stall",
            "^could not reach [0-9.:]+; check the connection and run the same command again$",
        ),
        ("reset", "^(the connection to [0-9.:]+ broke|could not reach [0-9.:]+); check the"),
        ("half", "/a/king.txt: [0-9.:]+ sent the wrong part of the file; check the connection"),
        ("gzip", "/a/king.txt: [0-9.:]+ sends it compressed; download and unpack it yourself$"),
        ("circle", "/a/king.txt: [0-9.:]+ or its answer is not valid .TooManyRedirects.; check"),
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
    """The server wrongly sends the rest of another version. The headers show that."""
    address, directory, data = text
    next_fault = stand_in.Servers.next_fault

    def changes(self, name):
        if len(self.log) == 2:
            self.files["a/king.txt"] = b"!" * len(data) + more
        return next_fault(self, name)

    monkeypatch.setattr(stand_in.Servers, "next_fault", changes)
    monkeypatch.setattr(stand_in.Store, "tag", tag)
    servers.at = {"king.txt": [("break", 0.5), *[("mixed", 0)] * hub.ATTEMPTS]}
    with pytest.raises(OSError, match="sent the wrong part of the file"):
        corpus.fetch_text(address, directory)
    assert len(servers.log) > 2 and not directory.exists()


def test_leftovers_of_a_killed_text_download_go_and_files_of_the_user_stay(text, servers):
    address, directory, data = text
    directory.mkdir(parents=True)
    leftover = directory / f".gpt2-{'0' * 16}.tmp"
    leftover.write_bytes(bytes(99999))
    for name in "fetch.lock", "notes.tmp", "king.txt.part":
        (directory / name).write_bytes(USER_DATA)
    path = corpus.fetch_text(address, directory)
    assert path.read_bytes() == data and not leftover.exists()
    for name in "fetch.lock", "notes.tmp", "king.txt.part":
        assert (directory / name).read_bytes() == USER_DATA


def download_in_processes(n, address, directory, before=""):
    """Download a text in n processes at once, and return [(exit status, path, errors), ...].

    before: code that each process runs first.
    """
    code = f"import os, pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += (
        f"from model_files import hub; from training import corpus; hub.PAUSE = 0.01\n{before}\n"
    )
    code += f"print(corpus.fetch_text({address!r}, pathlib.Path({str(directory)!r})))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(n)]
    outputs = [run.communicate(timeout=60) for run in runs]
    return [(run.returncode, out.strip(), err) for run, (out, err) in zip(runs, outputs)]


@pytest.mark.skipif(os.name == "nt", reason="no limit of a file's size")
def test_a_full_disk_is_an_error_of_one_line_that_names_the_text(text, servers):
    address, directory, _ = text
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    ((status, _, errors),) = download_in_processes(1, address, directory, limit)
    assert status == 1 and re.search(r"OSError: \[Errno \d+\] .*-king.txt'$", errors.strip())
    assert not directory.exists()


def test_a_text_that_cannot_be_downloaded_is_an_error_of_one_line(text, servers, capfd):
    address, directory, _ = text
    secret = address.replace("//", "//me:geheim@").replace("king", "none") + "?secret=x"
    with pytest.raises(OSError, match="/a/none.txt: .* answered 404 Not Found$") as error:
        corpus.fetch_text(secret, directory)
    assert not re.search("geheim|secret", str(error.value) + capfd.readouterr().err)
    assert not directory.parent.exists() and authorizations(servers) == {
        "store": {"Basic bWU6Z2VoZWlt"}
    }
    servers.at = {"king.txt": [("hostile", 0)] * hub.ATTEMPTS}
    with pytest.raises(OSError) as error:
        corpus.fetch_text(address, directory)
    assert r"500 Nope\x1b[2J\x1b]0;owned\x07" in str(error.value)
    servers.at = {"king.txt": [("page", 0)] * hub.ATTEMPTS}
    with pytest.raises(OSError, match="sent a web page"):
        corpus.fetch_text(address, directory)


@pytest.mark.parametrize(
    "n,tag,kinds",
    [
        (2, '"{}"', []),
        (4, '"{}"', ["break", "other", "break"]),  # The text changes between the attempts.
        (2, 'W/"{}"', ["break", "reset", "other"]),
        (4, None, ["break", "cut chunked", "half", "other"]),
    ],
)
def test_several_processes_download_a_text_once(n, tag, kinds, text, servers, monkeypatch):
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
    done = download_in_processes(n, address, directory)
    (path,) = directory.iterdir()
    assert {(status, output) for status, output, _ in done} == {(0, str(path))}, done
    assert path.read_bytes() == data["other" if kinds else ""]
    assert len(servers.log) == len(kinds) + 1  # One process sent them, and the others waited.


def test_credentials_in_the_address_of_a_text_are_not_kept(text, servers, capfd):
    address, directory, data = text
    full = address.replace("//", "//me:geheim@") + "?part=1&token=hf_geheim#geheim"
    kept = corpus.forget_credentials(full, directory.parent)
    assert kept == f"{address}?part=1"
    assert servers.log[0][3]["Authorization"] == "Basic bWU6Z2VoZWlt"
    for each in kept, full, full.replace("geheim", "other"):
        path = corpus.fetch_text(each, directory)
        assert path.read_bytes() == data and list(directory.iterdir()) == [path]
    assert len(servers.log) == 1 and "geheim" not in str(path)
    assert corpus.fetch_text(f"{address}?part=2", directory) != path
    assert corpus.forget_credentials(address, directory.parent) == address
    corpus.fetch_text(f"{address}#geheim", directory)
    assert len(servers.log) == 3 and "geheim" not in capfd.readouterr().err


def test_credentials_of_a_text_are_not_sent_after_a_redirect(text, servers, monkeypatch):
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


# Random faults, killed processes, several processes


def wrong(name, directory, servers, model, copy):
    """Return the names of tensors and files of a downloaded model that differ from its commit."""
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
    _, loaded_hparams, loaded = load_model(directory)
    loaded, copied = flatten(loaded), files.keys() - {"config.json", WEIGHTS}
    names = {path.name for path in directory.iterdir()} - {"source.json", "config.json", WEIGHTS}
    return [
        *(tensor for tensor, x in flatten(params).items() if not np.array_equal(x, loaded[tensor])),
        *(file for file in copied if files[file] != (directory / file).read_bytes()),
        *(names - copied),
        *(["hparams"] if hparams != loaded_hparams else ()),
    ]


def test_fault_schedules(models_dir, servers, model, monkeypatch, tmp_path):
    """A download with random faults gives the exact model or an error of one line. After an error,
    a run without faults gives the exact model."""
    rng, outcomes = random.Random(SEED), {"model": 0, "error": 0}
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
            load(name, models_dir)
            outcomes["model"] += 1
        except OSError as error:
            message = str(error)
            assert message.startswith(f"{name} could not be downloaded: "), schedule
            assert message.isprintable() and "Signature" not in message, schedule
            assert not holds_model(models_dir / name.replace("/", "--")), schedule
            outcomes["error"] += 1
            servers.faults = []
            load(name, models_dir)
        directory = models_dir / name.replace("/", "--")
        differences = wrong(name, directory, servers, model, tmp_path / "expected")
        assert not differences, f"{differences} in {schedule}"
        servers.files, servers.commit, servers.history = dict(genuine), commit, {}
        shutil.rmtree(models_dir)
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
def start(models_dir, servers, tmp_path):
    """Return a function that starts a process, which slowly downloads a model of 2 MB."""
    vocabulary, hparams, params = load_model(OPENAI)
    params["wte"] = np.arange(8 * 60000, dtype=np.float32).reshape(-1, 8)
    save_model(tmp_path / "large", {**hparams, "n_vocab": 60000}, params, vocabulary)
    for path in (tmp_path / "large").iterdir():
        servers.files[f"owner/name/{path.name}"] = path.read_bytes()
    servers.pace = 0.004

    def start():
        client = [sys.executable, "-c", CLIENT, str(models_dir)]
        process = subprocess.Popen(client, stderr=subprocess.PIPE, text=True)
        while not servers.log and process.poll() is None:
            time.sleep(0.005)
        return process

    start.model = None, params
    return start


def test_kill_at_any_moment(start, models_dir, servers):
    """After a kill -9 or Ctrl-C at any moment, the next run downloads only the missing bytes."""
    random.seed(1)
    size, directory = len(servers.files[f"owner/name/{WEIGHTS}"]), models_dir / "owner--name"
    killed = resumed = 0
    for i in range(KILLS):
        process = start()
        time.sleep(random.uniform(0, 2 * 64 * servers.pace))
        killed += process.poll() is None
        process.send_signal(signal.SIGINT) if i % 2 and os.name != "nt" else process.kill()
        process.wait()
        n_bytes = max(map(size_of, directory.glob(f"incomplete/{WEIGHTS}*")), default=0)
        is_complete = n_bytes == size or holds_model(directory)
        servers.log.clear()
        check("owner/name", models_dir, start.model)
        assert [first for first, _ in contents(servers)][:1] == ([] if is_complete else [n_bytes])
        resumed += 0 < n_bytes < size
        servers.log.clear()
        shutil.rmtree(directory)
    print(f"{killed} of {KILLS} killed, {resumed} of them in the weights")
    assert killed


def test_four_at_once_of_which_the_first_is_killed(start, models_dir, servers):
    """The other three wait for it. Then one of them resumes, and the last two only read."""
    processes = [start()]
    while not list(models_dir.rglob(f"{WEIGHTS}.*.part")):
        time.sleep(0.005)
    processes += [start() for _ in range(3)]
    time.sleep(0.1)
    processes[0].kill()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes[1:]] == [0, 0, 0]
    assert all(text.count("waiting for another process") <= 1 for text in errors)
    check("owner/name", models_dir, start.model)
    sent = sum(sent for _, sent in contents(servers))
    assert sent < 1.5 * len(servers.files[f"owner/name/{WEIGHTS}"])
