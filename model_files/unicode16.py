"""Split text into words by the letters and digits of Unicode 16, as the reference tokenizers do.

`regex` follows the newest Unicode. The characters below were unassigned in Unicode 16 and have
since become letters, digits or marks. Here, as in the references, they are "other characters".
"""

import functools
import re

import regex

# These are the first and last code points of each range, in hexadecimal.
RANGES = """
    557-558 58b-58c 5c8-5c9 88f-88f b53-b54 c5b-c5c cd7-cdc 1acf-1af0 208f-208f 209d-209f a7ce-a7cf
    a7d2-a7d2 a7d4-a7d4 a7dd-a7f1 ab6c-ab6f 107bb-107ff 10940-1097f 10ec5-10efb 11b0a-11bbf
    11daa-11edf 1246f-1246f 12475-1247f 12544-12f8f 16e9b-16eff 16ff2-16fff 187f8-187ff 18cd6-18cfe
    18d09-1afef 1b123-1b131 1b168-1b16f 1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f-1d25f 1d280-1d281
    1d6a6-1d6a7 1df1f-1df24 1df2b-1dfff 1e600-1e7df 2b73a-2b73f 2b81e-2b81f 2cea2-2ceaf
    323b0-e0000"""
UNASSIGNED = "".join(re.sub("[0-9a-f]+", lambda code: chr(int(code[0], 16)), RANGES).split())
has_newer_character = re.compile(f"[{UNASSIGNED}]").search


@functools.cache
def compile_words(pattern):
    """Return findall of a verbose pattern, with \\p{L} and \\p{N} as they were in Unicode 16."""
    for name in (r"\p{L}", r"\p{N}"):
        pattern = pattern.replace(name, f"[{name}--[{UNASSIGNED}]]")
    return regex.compile(pattern, regex.VERSION1 | regex.VERBOSE).findall
