"""What lies on disk and how it gets there. Nobody has to open this folder for the lesson.

files.py          strict JSON; files that are whole or not there; locks
safetensors.py    the format of weights on the Hugging Face hub
tensor_bundle.py  the format of OpenAI's own weights, a TensorFlow checkpoint
vocabulary.py     tokenizer.json, or vocab.json with merges.txt
added_tokens.py   added tokens, and the four files that may name them
parameters.py     the parameters' names and shapes, as a flat dict and as a tree
directory.py      a model directory: read, check, save
checkpoint.py     the last state of an unfinished training run
released.py       the four released sizes: where they lie, the hashes of their files
hub_cache.py      what Hugging Face's own tools have left here: models, a token, settings
transport.py      one request over the network: redirects, credentials, what a refusal means
proof.py          what counts as proof that a file is whole
download.py       one file over the network: resumed, proven whole
sources.py        the files of a model on the hub, and in OpenAI's store
fetch.py          a model from one of the two into a directory

Nothing in a file is trusted or executed: what does not fit is refused, with a ValueError of one
line that names the file and the fault. Nothing here imports anything from outside the folder.
"""
