"""Speed of encoder.py next to tiktoken and tokenizers, whichever of them is installed.

    python benchmarks/encoder.py VOCABULARY_DIRECTORY [TEXT_FILE]

All encode and decode the same texts on one thread, in turn, `--runs` times; the table gives the
median in MB/s of UTF-8, and the last column says whether each peer's ids equal ours. "first" is
a new encoder's first text, with no word seen before; all other columns are warm.
Writes results/encoder.md.
"""

import argparse
import gc
import glob
import os
import random
import sys
import sysconfig
from pathlib import Path
from statistics import median

from common import report, table, timed

import encoder as room
from model_files.added_tokens import END_OF_TEXT

os.environ["RAYON_NUM_THREADS"] = "1"  # tokenizers' threads
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
COMMON_CHINESE = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生"


def texts(english):
    """name -> text; Chinese is drawn at random: common characters in clauses of 4 to 16."""
    rng = random.Random(0)
    library = sorted(glob.glob(sysconfig.get_path("stdlib") + "/*.py"))
    source = "".join(Path(path).read_text(encoding="utf-8") for path in library)[:1_500_000]
    clauses = (
        "".join(rng.choices(COMMON_CHINESE, k=rng.randrange(4, 17))) + rng.choice("，，。\n")
        for _ in range(30_000)
    )
    return {
        "English": Path(english).read_text(encoding="utf-8") if english else room.__doc__ * 1000,
        "Python source": source,
        "Chinese": "".join(clauses),
        "random bytes": rng.randbytes(1_000_000).decode("latin-1"),
        "random letters": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)),
        "one letter": "a" * 1_000_000,
        "spaces": " " * 1_000_000,
        "emoji": "😀" * 250_000,
    }


def peers(ours):
    """name -> (encode, decode) of what is installed."""
    found = {"encoder.py": (ours.encode, ours.decode)}
    try:
        import tiktoken

        ranks = {ours.decode_bytes([id_]): id_ for id_ in range(ours.n_vocab) if id_ != ours.eot}
        encoding = tiktoken.Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: ours.eot}
        )
        found["tiktoken"] = encoding.encode_ordinary, encoding.decode
    except (ImportError, TypeError, ValueError) as error:
        print(f"tiktoken: {error}", file=sys.stderr)
    try:
        from tokenizers import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(ours.vocabulary.ids, ours.vocabulary.merges)
        found["tokenizers"] = lambda text: tokenizer.encode(text).ids, tokenizer.decode
    except ImportError as error:
        print(f"tokenizers: {error}", file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="a vocabulary, such as models/124M")
    parser.add_argument("english", nargs="?", help="an English text, such as tiny Shakespeare")
    parser.add_argument("--runs", type=int, default=5, help="runs of each; the median counts")
    args = parser.parse_args()

    loading = []
    for _ in range(args.runs):
        gc.collect()  # the vocabulary of the round before: a command loads one
        loading.append(timed(room.get_encoder, args.directory)[0])
    ours = room.get_encoder(args.directory)
    found = peers(ours)
    columns = [f"encode, {name}" for name in found]
    columns[1:1] = ["encode, first"]
    columns += [f"decode, {name}" for name in found]
    rows = []
    for name, text in texts(args.english).items():
        size = len(text.encode()) / 1e6
        times = {column: [] for column in columns}
        ids, equal = ours.encode(text), True
        for _ in range(args.runs):
            calls = {"encode, first": (room.get_encoder(args.directory).encode, text)}
            for peer, (encode, decode) in found.items():
                calls[f"encode, {peer}"], calls[f"decode, {peer}"] = (encode, text), (decode, ids)
            for column, (function, argument) in calls.items():
                if sum(times[column]) < 5:  # a cell that takes longer is not repeated
                    seconds, result = timed(function, argument)
                    times[column].append(seconds)
                    equal &= result == ids or column.startswith("decode")
        speeds = [f"{size / median(times[column]):.1f}" for column in columns]
        rows.append((name, *speeds, "equal" if equal else "DIFFERENT"))
    lines = table(["MB/s", *columns, "ids"], rows)
    lines += ["", f"Loading {ours.n_vocab:,} tokens: {1e3 * median(loading):.0f} ms."]
    if args.english:
        english = Path(args.english).read_text(encoding="utf-8").splitlines(keepends=True)
        learning = [timed(room.learn_bpe, english, 257 + 1024)[0] for _ in range(args.runs)]
        lines[-1] += f" Learning 1,024 merges from the English text: {median(learning):.2f} s."
    report("encoder", lines, ("regex", *list(found)[1:]), threads=1)


if __name__ == "__main__":
    main()
