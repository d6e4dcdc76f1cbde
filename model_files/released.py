"""The four released sizes: their repositories on the hub, and the SHA-256 of their files."""

from model_files.files import read_json

SIZES = {  # repository, revision
    "124M": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "355M": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "774M": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "1558M": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
BUNDLE = "model.ckpt.data-00000-of-00001"  # the weights in OpenAI's own store
SHA256 = {
    "124M/config.json": "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4",
    "124M/model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "355M/model.safetensors": "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
    "774M/model.safetensors": "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce",
    "1558M/model.safetensors": "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    f"124M/{BUNDLE}": "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
    "124M/model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    "124M/hparams.json": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
}
CONFIG = {  # what config.json says where no hash of it is known; the weights' shapes say the rest
    "355M": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "774M": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "1558M": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
ALWAYS = {"layer_norm_epsilon": 1e-5, "eos_token_id": 50256, "activation_function": "gelu_new"}
for _size in SIZES:  # one vocabulary for all of them, under two names
    SHA256[f"{_size}/vocab.json"] = SHA256[f"{_size}/encoder.json"] = (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    )
    SHA256[f"{_size}/merges.txt"] = SHA256[f"{_size}/vocab.bpe"] = (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    )


def check_config(name, path):
    """ValueError if the config.json of a released size says what the released one does not."""
    config = read_json(path)
    for key, value in ({**CONFIG[name], **ALWAYS} if name in CONFIG else {}).items():
        if config.get(key) != value:
            raise ValueError(f"{path}: {key} is {config.get(key)!r:.40}, not {value} as in {name}")
