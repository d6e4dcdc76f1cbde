"""Write golden/encoder*.json: the ids that tiktoken, tokenizers and transformers compute.

pip install tiktoken tokenizers transformers && python tests/make_golden_encoder.py

This needs the shared data (see SHARED in conftest.py).
"""

import json
import random
import tempfile
from pathlib import Path

import tiktoken
from conftest import GOLDEN, SHARED
from test_encoder import PIECES, random_text
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2TokenizerFast

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
LEARN = [
    (["low low lower\n", "newest newest widest\n"], 270),
    (["low low lower\nnewest newest widest\n"], 1000),
    (["aaaaaaaaaaaaaaaaaaa aaaa aaaaa aa a", "abababababab babab aabb"], 300),
    (["日本語の日本語、日本の語 😀😀 😀\n", "naïve café, Café NAÏVE naïve\n"], 320),
    (["   \n\n\n  \t\t  x  \r\n  \r\n x"], 280),
    (["no pair is there twice"], 257),
    (["", "abcdefg"], 300),
]


def gpt2_by_tiktoken():
    vocabulary = json.loads((SHARED / "gpt2-vocab" / "vocab.json").read_text(encoding="utf-8"))
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    end = vocabulary.pop("<|endoftext|>")
    ranks = {bytes(byte[char] for char in token): id_ for token, id_ in vocabulary.items()}
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end}
    )


def learn(chunks, vocab_size):
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=False)
    tokenizer.train_from_iterator(
        chunks, vocab_size, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return tokenizer


def main():
    rng = random.Random(0)
    texts = [*PIECES, *(random_text(rng) for _ in range(200)), "x" * 3000, " " * 3000 + "y"]
    # tokenizers refuses lone surrogates, so replace them with U+FFFD, as tiktoken does.
    clean = [t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in texts]
    gpt2 = gpt2_by_tiktoken()
    model = SHARED / "models" / "shakespeare-hf"
    shakespeare = ByteLevelBPETokenizer(str(model / "vocab.json"), str(model / "merges.txt"))
    play = (SHARED / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000]
    cases = []
    for chunks, vocab_size in [*LEARN, (play.splitlines(keepends=True), 400)]:
        tokenizer = learn(chunks, vocab_size)
        file = json.loads(tokenizer.to_str())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in file["merges"]]
        cases.append({"chunks": chunks, "vocab_size": vocab_size, "merges": merges})
        cases[-1]["vocab"] = sorted(file["vocab"], key=file["vocab"].get)
        cases[-1]["ids"] = [tokenizer.encode(text).ids for text in PIECES[:10]]
    golden = {
        "texts": texts,
        "gpt2": [gpt2.encode_ordinary(text) for text in texts],
        "shakespeare-hf": [shakespeare.encode(text).ids for text in clean],
        "learned": cases,
    }
    with tempfile.TemporaryDirectory() as directory:
        learn(play.splitlines(keepends=True), 300).save_model(directory)
        tokenizer = GPT2TokenizerFast.from_pretrained(directory)
        tokenizer.add_tokens(["<|user|>", "<|user|>:"], special_tokens=True)
        tokenizer.save_pretrained(directory)
        written = (Path(directory) / "tokenizer.json").read_text(encoding="utf-8")
        chats = ["<|user|>Speak, speak.<|user|>: é 😀 <|user|", "First Citizen:\n"]
        golden["added"] = [{"text": text, "ids": tokenizer.encode(text)} for text in chats]
    (GOLDEN / "encoder_tokenizer.json").write_text(json.dumps(json.loads(written)))
    (GOLDEN / "encoder.json").write_text(json.dumps(golden))


if __name__ == "__main__":
    main()
