"""Check the stand-in for the hub: try 19 operations of Hugging Face's own client on it.

    pip install huggingface_hub
    python tests/hub_client.py

Run this after every change of tests/model_files/stand_in.py. The tests do not need the client.
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
    "config.json": b'{"model_type": "gpt2"}' + b" " * 300,  # It is long enough to be sent as gzip.
    "merges.txt": b"#version: 0.2\na b\n",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00002.safetensors": bytes(5000),
    "model-00002-of-00002.safetensors": b"x" * 7000,
}


def main():
    """Try all operations, and return the exit status."""
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
        except Exception as error:  # Any error of the client is a failure of the stand-in.
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
    servers.close()
    home.cleanup()
    return bool(failed)


def operations(servers):
    """Return [(name, function that raises if the client gets a wrong result), ...]."""
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
                assert type(raised) is error, f"{type(raised).__name__} instead of {error}"
            else:
                raise AssertionError(f"no {error.__name__}")

        return operation

    def metadata(file, size):
        def operation():
            result = get_hf_file_metadata(hf_hub_url("owner/name", file))
            assert (result.commit_hash, result.size) == (COMMIT, size), result
            assert len(result.etag) == (64 if "safetensors" in file and size > 100 else 40)

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
        result = api.model_info("owner/name")
        assert result.sha == COMMIT and len(result.siblings) == len(REPO)

    def files_metadata(repo, **options):
        def operation():
            result = api.model_info(repo, files_metadata=True, **options)
            siblings = {file.rfilename: file for file in result.siblings}
            assert result.sha == COMMIT and siblings.keys() == REPO.keys()
            assert all(file.size == len(REPO[name]) for name, file in siblings.items())
            assert siblings["config.json"].blob_id == git_sha1(REPO["config.json"])
            assert siblings[shard].lfs.sha256 == hashlib.sha256(REPO[shard]).hexdigest()

        return operation

    shard = "model-00001-of-00002.safetensors"
    return [
        ("a small file", fetches("owner/name", "config.json")),
        ("a large file, from another host", fetches("owner/name", shard)),
        ("a large file, interrupted and resumed", resumed),
        ("a revision refs/pr/1", fetches("owner/name", "merges.txt", revision="refs/pr/1")),
        ("a renamed repository", fetches("owner/old", "merges.txt")),
        ("a whole snapshot", snapshot),
        ("the shards of a snapshot", shards),
        ("metadata of a small file", metadata("config.json", len(REPO["config.json"]))),
        ("metadata of a large file", metadata(shard, 5000)),
        ("the list of files", lists),
        ("model_info", info),
        ("model_info with sizes and hashes", files_metadata("owner/old", revision="refs/pr/1")),
        ("the same for a gated repository", files_metadata("owner/gated", token=False)),
        ("a gated repository, with access", fetches("owner/gated", "merges.txt", token="hf_all")),
        (
            "a gated repository, without access",
            fails(errors.GatedRepoError, "owner/gated", token="hf_none"),
        ),
        ("a file that does not exist", fails(errors.RemoteEntryNotFoundError, file="vocab.json")),
        (
            "a repository that does not exist",
            fails(errors.RepositoryNotFoundError, "owner/none", token=False),
        ),
        (
            "a private repository, without access",
            fails(errors.RepositoryNotFoundError, "owner/private", token=False),
        ),
        ("a revision that does not exist", fails(errors.RevisionNotFoundError, revision="v9")),
    ]


if __name__ == "__main__":
    sys.exit(main())
