"""What the hub says is heard: who may read what, what is there, which revision; a plain mirror."""

import json

import pytest
from conftest import check_fetched

from model_files import download, sources
from model_files.directory import read_config
from model_files.released import SIZES, check_config
from utils import load_encoder_hparams_and_params as load

PUBLIC = "https://huggingface.co"


def fails(name, place):
    with pytest.raises((OSError, ValueError)) as error:
        load(name, place)
    line = str(error.value)
    assert "\n" not in line and line.isprintable() and len(line) < 450, line
    assert not list(place.rglob("*.json"))
    return line


@pytest.fixture
def some_token(place, servers, monkeypatch):
    servers.tokens = {"hf_none": set(), "hf_all": {"owner/name"}}
    monkeypatch.setenv("HF_TOKEN", "hf_none")


def test_a_stale_token_is_no_obstacle_to_a_public_model(place, model, servers, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    said = capfd.readouterr().err
    assert said.count("the token of HF_TOKEN is not valid (any more)") == 1
    assert sum("Authorization" in headers for *_, headers in servers.log) == 1


def test_a_stale_token_and_a_private_repository(place, servers, monkeypatch):
    servers.private = {"owner/name"}
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    line = fails("owner/name", place)
    assert "token of HF_TOKEN is not valid" in line and "or a private one: check" in line


def test_gated_without_a_token(place, servers):
    servers.gated = {"owner/name"}
    line = fails("owner/name", place)
    assert f"it is gated: ask for access at {PUBLIC}/owner/name, then set HF_TOKEN" in line


def test_gated_without_access(some_token, place, servers, monkeypatch, model):
    servers.gated = {"owner/name"}
    line = fails("owner/name", place)
    assert f"the token of HF_TOKEN has no access yet: ask for it at {PUBLIC}/owner/name" in line
    monkeypatch.setenv("HF_TOKEN", "hf_all")
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_an_unknown_repository(place, servers):
    line = fails("owner/nosuch", place)
    assert "no such repository, or a private one: check the name" in line
    assert len(servers.log) == 1 and not list(place.glob("*"))


def test_an_unknown_repository_for_somebody_with_a_token(some_token, place):
    assert "a private one that the owner of the token of HF_TOKEN may not read" in fails(
        "owner/nosuch", place
    )


def test_an_unknown_revision(place):
    assert "no revision v9: what there is" in fails("owner/name@v9", place)


def test_what_else_the_hub_says_is_passed_on(place, servers):
    servers.faults = [("disabled", 0)] * 9
    line = fails("owner/name", place)
    assert 'config.json: 403 Access to this resource is disabled. {"error": {0}' in line
    assert len(servers.log) == 1


def test_a_renamed_repository(place, model, servers):
    servers.renamed = {"old/name": "owner/name"}
    check_fetched(load("old/name", place)[2], model, place / "old--name")


@pytest.mark.parametrize(
    "files,line",
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter (LoRA) of another"),
        (["model-Q8_0.gguf"], "has GGUF files"),
        (["config.json", "pytorch_model.bin"], "has no model.safetensors; pickles are not opened"),
        (["config.json", "model-Q8_0.gguf"], "has GGUF files"),
        (["README.md"], "has no config.json: it is no model, or an adapter or GGUF files"),
    ],
)
def test_what_a_repository_has_in_place_of_a_model(files, line, place, model, servers):
    servers.files = {f"owner/name/{name}": model[0].get(name, b"{}") for name in files}
    for name in set(model[0]) - {"config.json", "model.safetensors"} if len(files) > 1 else ():
        servers.files[f"owner/name/{name}"] = model[0][name]
    assert f"owner/name {line}" in fails("owner/name", place)


def test_another_architecture_costs_one_file(place, model, servers):
    config = json.loads(model[0]["config.json"]) | {"model_type": "llama"}
    servers.files["owner/name/config.json"] = json.dumps(config).encode()
    line = fails("owner/name", place)
    assert line.startswith("owner/name: config.json: model_type is 'llama'")
    assert "incomplete" not in line and len(servers.log) == 2


def test_neither_vocabulary(place, servers):
    del servers.files["owner/name/merges.txt"]
    assert "neither vocab.json with merges.txt nor tokenizer.json" in fails("owner/name", place)


def test_what_a_repository_has_beside_the_weights_comes_along(place, model, servers):
    extra = {name: b'{"eos_token_id": 256, "x": 1}' for name in sources.EXTRA}
    extra["added_tokens.json"] = b"{}"
    extra["tokenizer.json"] = tokenizer(model)
    servers.files |= {f"owner/name/{name}": data for name, data in extra.items()}
    load("owner/name", place)
    for name, data in extra.items():
        assert (place / "owner--name" / name).read_bytes() == data
    repo = SIZES["124M"][0]
    servers.files |= {f"{repo}/{name}": data for name, data in extra.items()}
    check_fetched(load("124M", place)[2], model, place / "124M")


def tokenizer(model):
    ids = json.loads(model[0]["vocab.json"])
    return json.dumps({"model": {"type": "BPE", "vocab": ids, "merges": [["Ġ", "t"]]}}).encode()


def test_tokenizer_json_will_do_alone(place, model, servers):
    for name in "vocab.json", "merges.txt":
        del servers.files[f"owner/name/{name}"]
    servers.files["owner/name/tokenizer.json"] = tokenizer(model)
    encoder, _, _ = load("owner/name", place)
    assert encoder.encode(" t") == [256]


@pytest.mark.parametrize("name", ["owner/name@refs/pr/1", "owner/name@refs%2Fpr%2F1"])
def test_a_revision_may_have_slashes(name, place, model, servers):
    if "%" in name:
        name = f"{PUBLIC}/owner/name/tree/refs%2Fpr%2F1"
    check_fetched(load(name, place)[2], model, place / "owner--name@refs--pr--1")
    assert servers.log[0][0] == "owner/name/resolve/refs/pr/1/config.json"


@pytest.mark.parametrize(
    "address,revision",
    [
        ("https://huggingface.co/owner/name", ""),
        ("huggingface.co/owner/name/", ""),
        ("https://hf.co/owner/name?library=transformers", ""),
        ("https://huggingface.co/owner/name/tree/v1", "@v1"),
        ("https://huggingface.co/owner/name/tree/refs/pr/1", "@refs--pr--1"),
        ("https://huggingface.co/owner/name/blob/main/config.json", ""),
        ("https://huggingface.co/owner/name/resolve/v1/model.safetensors?download=true", "@v1"),
        (" {hub}/owner/name#files", ""),
    ],
)
def test_a_pasted_address_is_a_name(address, revision, place, model, servers):
    name = address.format(hub=servers.hub)
    check_fetched(load(name, place)[2], model, place / f"owner--name{revision}")


def test_an_address_of_no_model_is_none(place, servers):
    for name in (
        "https://hf.co/gpt2",
        "https://huggingface.co/datasets/a/b",
        "https://a.example/b/c",
    ):
        with pytest.raises(FileNotFoundError, match="no such directory"):
            load(name, place)
    assert not servers.log


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("name", ["owner/name", "124M"])
def test_offline_there_is_no_request(name, variable, place, servers, monkeypatch, model):
    monkeypatch.setenv(variable, "1")
    assert f"{variable} is set: unset it to fetch {name}" in fails(name, place)
    assert not servers.log and not place.exists()
    monkeypatch.setenv(variable, "0")
    check_fetched(load(name, place)[2], model, place / name.replace("/", "--"))
    monkeypatch.setenv(variable, "1")
    load(name, place)


def test_a_404_that_the_hub_did_not_write_means_nothing(place, model, servers):
    servers.at = {name: [("404 bare", 0)] * 2 for name in (*model[0], *sources.EXTRA)}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    servers.at = {"model.safetensors": [("404 bare", 0)] * download.TRIES}
    with pytest.raises(OSError, match="404 Not Found, and not by the hub.* goes on from there"):
        load("owner/name@v1", place)


def test_a_mirror_that_turns_out_to_be_a_hub_is_asked_anew(place, model, servers):
    servers.at = {"config.json": [("stripped", 0)] * 3}
    with pytest.raises(OSError, match="now as a hub, now as a plain mirror"):
        load("owner/name", place)
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_files_of_a_mirror_that_contradict_each_other_are_asked_for_anew(place, model, servers):
    vocabulary = servers.files["owner/name/vocab.json"]
    servers.plain = True
    servers.files["owner/name/vocab.json"] = vocabulary.replace(b"\\u0120t", b"\\u0120s")
    with pytest.raises(OSError, match="merges.txt: wrong bytes.* no merge makes the token 'Ġs'"):
        load("owner/name", place)
    servers.files["owner/name/vocab.json"] = vocabulary
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_a_released_size_may_come_from_a_plain_mirror(place, model, servers):
    servers.plain, servers.faults = True, [("404 bare", 0)] * 2
    check_fetched(load("124M", place)[2], model, place / "124M")
    assert {path.split("/")[0] for path, *_ in servers.log} == {"openai-community"}


def test_files_of_two_mirrors_are_not_mixed(place, model, servers, monkeypatch):
    servers.plain, servers.at = True, {"merges.txt": [("503", 0)] * 6}
    with pytest.raises(OSError, match="503"):
        load("owner/name", place)
    servers.files["owner/name/vocab.json"] += b" "
    monkeypatch.setenv("HF_ENDPOINT", servers.hub.replace("127.0.0.1", "localhost"))
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    assert (place / "owner--name" / "vocab.json").read_bytes().endswith(b" ")


def test_a_config_that_is_not_the_released_one_leads_to_the_store(
    place, model, servers, monkeypatch
):
    def differs(name, path):
        raise ValueError(f"{path}: n_head is 8")

    monkeypatch.setattr(sources, "check_config", differs)
    check_fetched(load("124M", place)[2], model, place / "124M")
    assert "124M/vocab.bpe" in {path for path, *_ in servers.log}


def test_a_released_config_says_what_was_released(directory):
    path = directory / "config.json"
    config = read_config(path) | {"n_layer": 24, "n_head": 16, "n_embd": 1024}
    for wrong in {}, {"n_head": 8}, {"layer_norm_epsilon": 1e-6}, {"eos_token_id": 0}:
        path.write_text(json.dumps({**config, "eos_token_id": 50256, **wrong}))
        if wrong:
            with pytest.raises(ValueError, match=f"{[*wrong][0]} is .* as in 355M"):
                check_config("355M", path)
        else:
            check_config("355M", path)
