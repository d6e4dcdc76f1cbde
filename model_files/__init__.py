"""Read, check, save and download the files of a model. You can learn GPT-2 without this folder.

directory.py      read, check and save a model directory; names and shapes of the parameters
architecture.py   make a plain GPT-2 of other programs' checkpoints: names, heads, scales
vocabulary.py     read tokenizer.json, or vocab.json with merges.txt
safetensors.py    read and write safetensors, the format of weights on the Hugging Face hub
torch_pickle.py   read pytorch_model.bin, PyTorch's format, without PyTorch
tensor_bundle.py  read TensorFlow checkpoints, the format of OpenAI's own weights
hub.py            download models from the hub or OpenAI's store; download texts
files.py          strict JSON, atomic writes, locks, safe printing
added_tokens.py   tokens such as <|user|> that other models have added
unicode16.py      the letters that the reference tokenizers know

No file is trusted, and nothing in it is executed. A file that does not fit is refused with a
ValueError: one line that names the file and the fault. No module imports from outside this folder.
"""

END_OF_TEXT = "<|endoftext|>"
SIZES = {  # The values are a repository on the Hugging Face hub, and its commit.
    "124M": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "355M": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "774M": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "1558M": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
CONFIG = {  # All other keys of config.json have GPT-2's values by default.
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "eos_token_id": 50256},
    "355M": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "eos_token_id": 50256},
    "774M": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "eos_token_id": 50256},
    "1558M": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "eos_token_id": 50256},
}
VOCAB = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
BUNDLE = "model.ckpt.data-00000-of-00001"  # The weights have this name in OpenAI's store.
SHA256 = {
    **{f"{size}/vocab.json": VOCAB for size in SIZES},
    **{f"{size}/merges.txt": MERGES for size in SIZES},
    "124M/model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "355M/model.safetensors": "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
    "774M/model.safetensors": "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce",
    "1558M/model.safetensors": "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    f"124M/{BUNDLE}": "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
    "124M/model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
}
