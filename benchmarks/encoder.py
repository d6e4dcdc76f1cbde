"""Compare the speed of encoder.py with tiktoken and tokenizers, if they are installed.

    pip install tiktoken tokenizers
    python benchmarks/encoder.py

All programs encode and decode the same texts, in turn, on one thread. The table shows medians, in
MB of UTF-8 per second. A "new encoder" has not seen any word yet; for the other columns, all
programs have encoded the text before. The last column says whether all programs return the same
ids. The English text is tiny Shakespeare. It and GPT-2's vocabulary are read from $GPT2_SHARED.

Writes results/encoder.md, and the table in docs/speed.md.
"""

import glob
import os
import random
import sysconfig
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import common

import encoder

os.environ["RAYON_NUM_THREADS"] = "1"  # tokenizers' threads
ROUNDS = 5
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
COMMON_CHINESE = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生"


def texts():
    """Return {name: text}. The Chinese text is random: clauses of 4 to 16 common characters."""
    rng = random.Random(0)
    library = sorted(glob.glob(sysconfig.get_path("stdlib") + "/*.py"))
    source = "".join(Path(path).read_text(encoding="utf-8") for path in library)
    chinese = ""
    for _ in range(30_000):
        chinese += "".join(rng.choices(COMMON_CHINESE, k=rng.randrange(4, 17))) + rng.choice(
            "，。\n"
        )
    return {
        "English": common.TEXT.read_text(encoding="utf-8"),
        "Python source": source[:1_500_000],
        "Chinese": chinese,
        "random letters": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)),
        "spaces": " " * 1_000_000,
    }


def installed_programs(ours):
    """Return {name: (encode, decode)} of the installed programs."""
    installed = {"this project": (ours.encode, ours.decode)}
    if find_spec("tiktoken"):
        import tiktoken

        ranks = {ours.decode_bytes([id_]): id_ for id_ in range(ours.n_vocab)}
        theirs = tiktoken.Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
        )
        installed["tiktoken"] = theirs.encode_ordinary, theirs.decode
    if find_spec("tokenizers"):
        from tokenizers import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(ours.vocabulary.ids, ours.vocabulary.merges)
        installed["tokenizers"] = lambda text: tokenizer.encode(text).ids, tokenizer.decode
    return installed


def measure(text, ours, programs):
    """Return a row of the table, {column: cell}."""
    ids = ours.encode(text)
    new = iter([encoder.get_encoder(common.VOCABULARY) for _ in range(ROUNDS)])
    jobs = {f"encode, {name}": (partial(encode, text), 1) for name, (encode, _) in programs.items()}
    jobs["encode, this project, new encoder"] = lambda: next(new).encode(text), 1
    jobs |= {f"decode, {name}": (partial(decode, ids), 1) for name, (_, decode) in programs.items()}
    size = len(text.encode()) / 1e6
    row = {name: f"{size / s:.1f}" for name, s in common.medians(jobs, ROUNDS).items()}
    equal = all(encode(text) == ids for encode, _ in programs.values())
    return {**row, "ids of all programs": "equal" if equal else "DIFFERENT"}


def main():
    ours = encoder.get_encoder(common.VOCABULARY)
    programs = installed_programs(ours)
    rows = {name: measure(text, ours, programs) for name, text in texts().items()}
    head = ["MB/s", *rows["English"]]
    lines = common.table(head, [[name, *row.values()] for name, row in rows.items()])
    common.report("encoder", lines, ("regex", *list(programs)[1:]), threads=1)


if __name__ == "__main__":
    main()
