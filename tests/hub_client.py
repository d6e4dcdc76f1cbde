"""Is the stand-in for the hub a hub? Hugging Face's own client tries 19 operations on it.

    pip install huggingface_hub
    python tests/hub_client.py

It is run after every change of tests/model_files/stand_in.py; pytest does not need the client.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "model_files"))

from stand_in import Servers, git_sha1  # noqa: E402

COMMIT = "c" * 40
REPO = {
    "config.json": b'{"model_type": "gpt2"}' + b" " * 300,  # long enough to come as gzip
    "merges.txt": b"#version: 0.2\na b\n",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00002.safetensors": bytes(5000),
    "model-00002-of-00002.safetensors": b"x" * 7000,
}


def main():
    servers = Servers()
    home = tempfile.TemporaryDirectory()
    os.environ |= {"HF_ENDPOINT": servers.hub, "HF_HOME": home.name, "HF_HUB_DISABLE_XET": "1"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"NO_PROXY": "127.0.0.1"}
    for repo in "owner/name", "owner/gated", "owner/private":
        servers.files |= {f"{repo}/{name}": data for name, data in REPO.items()}
    servers.gated, servers.private = {"owner/gated"}, {"owner/private"}
    servers.renamed = {"owner/old": "owner/name"}
    servers.tokens = {"hf_all": {"owner/gated", "owner/private"}, "hf_none": set()}
    failed = 0
    for name, operation in operations(servers):
        try:
            operation()
            print(f"ok      {name}")
        except Exception as error:  # whatever the client raises is the finding
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
    servers.close()
    home.cleanup()
    return bool(failed)


def operations(servers):
    """-> (name, function that raises if the client does not get what it should)"""
    import huggingface_hub as hub
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    api = hub.HfApi()

    def fetches(repo, file, **options):
        def operation():
            path = hf_hub_download(repo, file, **options)
            assert Path(path).read_bytes() == REPO[file]

        return operation

    def fails(error, repo="owner/name", file="config.json", **options):
        def operation():
            try:
                hf_hub_download(repo, file, **options)
            except error as raised:
                assert type(raised) is error, f"{type(raised).__name__} in place of {error}"
            else:
                raise AssertionError(f"no {error.__name__}")

        return operation

    def metadata(file, size):
        def operation():
            found = get_hf_file_metadata(hf_hub_url("owner/name", file))
            assert (found.commit_hash, found.size) == (COMMIT, size), found
            assert len(found.etag) == (64 if "safetensors" in file and size > 100 else 40)

        return operation

    def snapshot():
        path = Path(hub.snapshot_download("owner/name"))
        assert path.name == COMMIT
        assert {file.name: file.read_bytes() for file in path.iterdir()} == REPO

    def shards():
        path = Path(hub.snapshot_download("owner/name", allow_patterns="*.safetensors"))
        assert sum(file.stat().st_size for file in path.glob("*.safetensors")) == 12000

    def resumed():
        servers.faults = [("break", 0.5)]
        path = hf_hub_download("owner/name", shard, force_download=True)
        assert Path(path).read_bytes() == REPO[shard]

    def lists():
        assert sorted(api.list_repo_files("owner/name")) == sorted(REPO)
        assert api.file_exists("owner/name", "config.json")
        assert not api.file_exists("owner/name", "vocab.json")

    def info():
        found = api.model_info("owner/name")
        assert found.sha == COMMIT and len(found.siblings) == len(REPO)

    def files_metadata(repo, **options):
        def operation():
            found = api.model_info(repo, files_metadata=True, **options)
            siblings = {file.rfilename: file for file in found.siblings}
            assert found.sha == COMMIT and siblings.keys() == REPO.keys()
            assert all(file.size == len(REPO[name]) for name, file in siblings.items())
            assert siblings["config.json"].blob_id == git_sha1(REPO["config.json"])
            assert siblings[shard].lfs.sha256 == hashlib.sha256(REPO[shard]).hexdigest()

        return operation

    shard = "model-00001-of-00002.safetensors"
    return [
        ("a small file", fetches("owner/name", "config.json")),
        ("a large file, from another host", fetches("owner/name", shard)),
        ("a large file, broken off and resumed", resumed),
        ("a revision refs/pr/1", fetches("owner/name", "merges.txt", revision="refs/pr/1")),
        ("a renamed repository", fetches("owner/old", "merges.txt")),
        ("a whole snapshot", snapshot),
        ("the shards of a snapshot", shards),
        ("metadata of a small file", metadata("config.json", len(REPO["config.json"]))),
        ("metadata of a large file", metadata(shard, 5000)),
        ("the list of files", lists),
        ("model_info", info),
        ("model_info with sizes and hashes", files_metadata("owner/old", revision="refs/pr/1")),
        ("the same of a gated repository", files_metadata("owner/gated", token=False)),
        ("gated, with access", fetches("owner/gated", "merges.txt", token="hf_all")),
        ("gated, without", fails(errors.GatedRepoError, "owner/gated", token="hf_none")),
        ("no such file", fails(errors.RemoteEntryNotFoundError, file="vocab.json")),
        ("no such repository", fails(errors.RepositoryNotFoundError, "owner/none", token=False)),
        ("private, without", fails(errors.RepositoryNotFoundError, "owner/private", token=False)),
        ("no such revision", fails(errors.RevisionNotFoundError, revision="v9")),
    ]


if __name__ == "__main__":
    sys.exit(main())
