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
import platform
import random
import statistics
import sys
import sysconfig
import time
from importlib.metadata import version
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # tokenizers' threads
sys.path.insert(0, str(Path(__file__).parents[1]))
import encoder as room  # noqa: E402

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
            "gpt2",
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens={room.END_OF_TEXT: ours.eot},
        )
        found["tiktoken"] = encoding.encode_ordinary, encoding.decode
    except (ImportError, TypeError, ValueError) as error:
        print(f"tiktoken: {error}", file=sys.stderr)
    try:
        from tokenizers import ByteLevelBPETokenizer

        tokenizer = ByteLevelBPETokenizer(ours.encoder, ours.merges)
        found["tokenizers"] = lambda text: tokenizer.encode(text).ids, tokenizer.decode
    except ImportError as error:
        print(f"tokenizers: {error}", file=sys.stderr)
    return found


def seconds(function, argument):
    start = time.perf_counter()
    result = function(argument)
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="a vocabulary, such as models/124M")
    parser.add_argument("english", nargs="?", help="an English text, such as tiny Shakespeare")
    parser.add_argument("--runs", type=int, default=5, help="runs of each; the median counts")
    args = parser.parse_args()

    loading = []
    for _ in range(args.runs):
        gc.collect()  # the vocabulary of the round before: a command loads one
        loading.append(seconds(room.get_encoder, args.directory)[0])
    ours = room.get_encoder(args.directory)
    found = peers(ours)
    rows = [f"encode, {name}" for name in found]
    rows[1:1] = ["encode, first"]
    rows += [f"decode, {name}" for name in found]
    lines = ["| MB/s | " + " | ".join(rows) + " | ids |", "| --- " * (len(rows) + 2) + "|"]
    for name, text in texts(args.english).items():
        size = len(text.encode()) / 1e6
        times = {row: [] for row in rows}
        ids, equal = ours.encode(text), True
        for _ in range(args.runs):
            calls = {"encode, first": (room.get_encoder(args.directory).encode, text)}
            for peer, (encode, decode) in found.items():
                calls[f"encode, {peer}"], calls[f"decode, {peer}"] = (encode, text), (decode, ids)
            for row, (function, argument) in calls.items():
                if sum(times[row]) < 5:  # a cell that takes longer is not repeated
                    spent, result = seconds(function, argument)
                    times[row].append(spent)
                    equal &= result == ids or row.startswith("decode")
        speeds = [f"{size / statistics.median(times[row]):.1f}" for row in rows]
        lines.append(f"| {name} | {' | '.join(speeds)} | {'equal' if equal else 'DIFFERENT'} |")
    lines += ["", f"Loading {ours.n_vocab:,} tokens: {1e3 * statistics.median(loading):.0f} ms."]
    if args.english:
        english = Path(args.english).read_text(encoding="utf-8").splitlines(keepends=True)
        spent = statistics.median(seconds(learn, english)[0] for _ in range(args.runs))
        lines[-1] += f" Learning 1,024 merges from the English text: {spent:.2f} s."
    versions = [f"{package} {version(package)}" for package in ("regex", *list(found)[1:])]
    lines += [
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {', '.join(versions)}.",
        "",
    ]
    print("\n".join(lines))
    results = Path(__file__).parent / "results" / "encoder.md"
    results.write_text("\n".join(lines), encoding="utf-8")


def learn(lines):
    return room.learn_bpe(lines, 257 + 1024)


if __name__ == "__main__":
    main()
