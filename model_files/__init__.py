"""The files of a model, and how they get onto the disk. To learn GPT-2 you need not read them.

directory.py      a model directory: read, check, save; names and shapes of the parameters
vocabulary.py     tokenizer.json, or vocab.json with merges.txt
safetensors.py    the format of weights on the Hugging Face hub
tensor_bundle.py  the format of OpenAI's own weights, a TensorFlow checkpoint
hub.py            models of the hub, of OpenAI's store, of Hugging Face's cache; texts
files.py          strict JSON, atomic writes, locks
added_tokens.py   tokens that other people's models have added
unicode16.py      the letters that the reference tokenizers know

Nothing in a file is trusted or executed. What does not fit is refused with a ValueError of one line
that names the file and the fault. Nothing here imports from outside the folder.
"""

END_OF_TEXT = "<|endoftext|>"
