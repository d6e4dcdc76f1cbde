"""What makes gpt2.py faster, with equal results up to rounding. You can read gpt2.py without it:

    product(x, w)        is x @ w, and faster if x has only a few rows
    in_parallel(f, n)    is f(slice(0, n)), but calls f for a part of range(n) on each core
    Drafts               guesses the next tokens, of which gpt2.py keeps those that are right

NumPy leaves matrix products to a BLAS library, which has threads of its own, and does everything
else on one core. in_parallel gives such work to several threads. Meanwhile the BLAS is limited to
one thread, or its threads and ours would wait for each other. OpenBLAS, which comes with NumPy's
wheels, can be limited; with another BLAS, product and in_parallel are the plain operations.
docs/speed.md has the measurements. Lesson: step 19.
"""

import contextlib
import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from glob import escape, glob

import numpy as np

# On Linux, a large array that is freed goes back to the system, which clears its memory before the
# next array gets it. That is a tenth of the time of a long prompt. But the C library keeps what is
# not larger than the largest array that it has seen freed, up to a limit of 32 MB. So make and free
# an array of 31 MB.
np.empty(31 << 20, np.uint8)

# ==== All cores =================================================================================

MAX_THREADS = 8  # one more costs 10 microseconds, to give it its part and to wait for it


def find_openblas():
    """Return OpenBLAS's functions that set and get its number of threads, or None and None."""
    folder = escape(os.path.dirname(np.__file__))
    for path in glob(f"{folder}.libs/*openblas*") + glob(f"{folder}/.dylibs/*openblas*"):
        # The newer name and the older one. 64: compiled for 64-bit sizes of matrices.
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_"):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(path)
                return library[name.format("set")], library[name.format("get")]
    return None, None


set_blas_threads, get_blas_threads = find_openblas()
n_threads = min(get_blas_threads(), MAX_THREADS) if get_blas_threads else 1
pools = {}  # {process id: its threads}: a forked process has none of its parent's threads


@contextlib.contextmanager
def one_blas_thread():
    """Let each product in this block use one thread, as the caller has a thread on every core."""
    n_before = get_blas_threads() if get_blas_threads else 1
    if n_before == 1:  # limited already, perhaps by another thread, which will undo it
        yield
        return
    set_blas_threads(1)
    try:
        yield
    finally:
        set_blas_threads(n_before)


def count_parts(n, least):
    """Return the number of parts into which in_parallel divides range(n).

    least: the length of a part that is worth a thread. If the BLAS has been limited to one thread,
    the caller already has a thread on each core, and there is a single part.
    """
    n_parts = min(n_threads, n // least)
    return n_parts if n_parts > 1 and get_blas_threads() > 1 else 1


def in_parallel(work, n, least=1):
    """Call work(part) for slices that together are range(n), each on a thread of its own."""
    n_parts = count_parts(n, least)
    first, *others = (slice(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts))
    if not others:
        work(first)
        return
    if os.getpid() not in pools:
        pools[os.getpid()] = ThreadPoolExecutor(n_threads - 1)
    with one_blas_thread():
        started = [pools[os.getpid()].submit(work, part) for part in others]
        work(first)
        for future in started:
            future.result()


# ==== Products of a few rows ====================================================================

FEW_ROWS = 16  # up to here block_product is faster than @
SEVERAL_ROWS = 48  # up to here transposed_product is
MIN_NUMBERS = 2**17  # a thread with fewer numbers of a matrix costs more than it saves
SMALL_PRODUCT = 10**6  # multiplications of a product for which OpenBLAS does not copy w (see below)
SMALL_RESULT = 1200  # if w is transposed, the result must not have more numbers than this, either
BLOCK_ROWS = 48  # of a matrix; passes take longer with larger and with smaller blocks


def product(x, w):  # [n, in] @ [in, out] -> [n, out]
    """Return x @ w.

    One row takes as long as reading w from memory, and a few rows need not take longer. But before
    a BLAS multiplies more than one row, it copies w into another order, which takes three times as
    long as reading it. OpenBLAS skips the copy for small products on CPUs with AVX-512, so a few
    rows are multiplied with small blocks of w.
    """
    if set_blas_threads is None or len(x) < 2:
        return x @ w
    if w.flags.c_contiguous:
        return block_product(x, w) if len(x) <= FEW_ROWS else x @ w
    # wte.T, of which each column lies together in memory
    return transposed_product(x, w.T) if len(x) <= SEVERAL_ROWS else x @ w


def block_product(x, w):  # [n, in] @ [in, out] -> [n, out]
    """Return x @ w, as the sum of the products of blocks of x's columns with blocks of w's rows.

    The blocks are so small that OpenBLAS copies nothing. Rows of w that fill no block come last.
    """
    n, n_in = x.shape
    n_out = w.shape[1]
    least = MIN_NUMBERS // n_in + 1  # columns for a thread
    n_columns = math.ceil(n_out / count_parts(n_out, least))  # of each thread
    size = max(1, min(BLOCK_ROWS, SMALL_PRODUCT // (n * n_columns)))  # rows of w in a block
    whole = n_in // size * size
    x_blocks = x[:, :whole].reshape(n, -1, size).swapaxes(0, 1)  # [blocks, n, size]
    w_blocks = w[:whole].reshape(-1, size, n_out)  # [blocks, size, out]
    y = np.empty((n, n_out), x.dtype)

    def some_columns(part):  # [blocks, n, size] @ [blocks, size, columns], and their sum
        np.add.reduce(x_blocks @ w_blocks[..., part], 0, out=y[:, part])

    in_parallel(some_columns, n_out, least)
    if whole < n_in:
        y += x[:, whole:] @ w[whole:]
    return y


def transposed_product(x, w):  # [n, in] @ [out, in]^T -> [n, out]
    """Return x @ w.T, as the product of x with each block of w's rows, which lie together."""
    n, n_in = x.shape
    n_out = len(w)
    size = max(1, min(SMALL_RESULT // n, SMALL_PRODUCT // (n * n_in)))  # rows of w in a block
    whole = n_out // size * size
    w_blocks = w[:whole].reshape(-1, size, n_in).swapaxes(1, 2)  # [blocks, in, size]
    y = np.empty((n, n_out), x.dtype)
    y_blocks = y[:, :whole].reshape(n, -1, size).swapaxes(0, 1)  # [blocks, n, size], not a copy

    def some_blocks(part):
        np.matmul(x, w_blocks[part], out=y_blocks[part])

    in_parallel(some_blocks, len(w_blocks), least=MIN_NUMBERS // n_in // size + 1)
    y[:, whole:] = x @ w[whole:].T
    return y


# ==== Drafts ====================================================================================


class Drafts:
    """Guesses at what follows in a text, copied from the text itself: prompt lookup, Saxena 2023.

    Texts repeat names, quotations and code. A pass that verifies seven guessed tokens takes about
    as long as two passes for one token each, so a wrong guess costs little. The more of them are
    wrong in a row, the longer the pause before the next one.
    """

    NGRAM = 3  # how many of the last tokens are looked up in the text before them
    FIRST, LONGEST = 7, 31  # tokens of a draft; with the last token, a pass has 8 to 32 rows

    def __init__(self, longest=LONGEST):
        self.longest = longest  # 0: no drafts at all
        self.length = self.FIRST  # tokens of the next draft
        self.n_misses, self.pause = 0, 0  # wrong drafts in a row; passes without a draft
        self.n_passes = 0
        self.text = ""  # the ids as characters, since a str has a fast search and a list has none

    def draft(self, ids, room):
        """Return up to room ids that may follow these, often none. Called once per pass."""
        self.n_passes += 1
        self.text += "".join(map(chr, ids[len(self.text) :]))
        if self.pause > 0:
            self.pause -= 1
            return []
        found = look_up(self.text, self.NGRAM, min(self.length, self.longest, room))
        return [ord(char) for char in found]

    def update(self, draft, n_accepted):
        """Choose the length of the next draft, after n_accepted ids of this one were right.

        All: from 7 to 15 to 31 tokens, so that a pass has twice as many rows. At least half: the
        same length. Fewer: FIRST again, after a pause that grows with each miss in a row, 0, 1, 3
        ... 63 passes.
        """
        if not draft:
            return
        if 2 * n_accepted < len(draft):
            self.length = self.FIRST
            self.pause = 2 ** min(self.n_misses, 6) - 1
            self.n_misses += 1
            return
        self.n_misses = 0
        self.length = len(draft)
        if n_accepted == len(draft):
            self.length = 2 * len(draft) + 1


def look_up(text, n, length):
    """Return what followed the last n characters when they occurred before, or "".

    If that is shorter than length, it is repeated: look_up("abcdeabc", 3, 10) is "deabcdeabc".
    """
    if length <= 0 or not text:
        return ""
    found = text.rfind(text[-n:], 0, -1)  # -1: not at the very end, where they stand now
    if found < 0:
        return ""
    circle = text[found + n :]
    return (circle * (length // len(circle) + 1))[:length]
