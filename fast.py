"""What makes gpt2.py faster. The results are the same, up to rounding, so you can skip this file:

    product(x, w)        is x @ w, but faster if x has only a few rows
    in_parallel(f, n)    is f(slice(0, n)), but calls f for a part of range(n) on each core
    Drafts               guesses the next tokens; gpt2.py keeps the guesses that are right

NumPy passes matrix products to a BLAS library, which has its own threads, and does everything else
on one core. in_parallel runs such work on several threads. Meanwhile it limits the BLAS to one
thread, because otherwise its threads and ours would wait for each other. This works with OpenBLAS,
which NumPy's wheels contain. With another BLAS, product and in_parallel are the plain operations.
docs/speed.md has the measurements. Lesson: step 19.
"""

import contextlib
import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from glob import escape, glob

import numpy as np

# On Linux, the memory of a large array goes back to the system when the array is freed, and the
# system clears it before it hands it out again. This takes a tenth of the time of a long prompt.
# But the C library keeps memory for reuse up to the size of the largest array that was ever freed,
# if that is below 32 MB. So create and free an array of 31 MB.
np.empty(31 << 20, np.uint8)

# ==== All cores =================================================================================

MAX_THREADS = 8  # Starting another thread's part and waiting for it costs 10 microseconds.


def find_openblas():
    """Return OpenBLAS's functions to set and to get its number of threads, or (None, None)."""
    folder = escape(os.path.dirname(np.__file__))
    for path in glob(f"{folder}.libs/*openblas*") + glob(f"{folder}/.dylibs/*openblas*"):
        # These are the new and the old name. 64: matrix sizes are 64-bit integers.
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_"):
            with contextlib.suppress(OSError, AttributeError):
                library = ctypes.CDLL(path)
                return library[name.format("set")], library[name.format("get")]
    return None, None


set_blas_threads, get_blas_threads = find_openblas()
n_threads = min(get_blas_threads(), MAX_THREADS) if get_blas_threads else 1
pools = {}  # {process id: its pool}: a forked process does not have its parent's threads


@contextlib.contextmanager
def one_blas_thread():
    """Limit each matrix product to one thread, because the caller uses all cores itself."""
    n_before = get_blas_threads() if get_blas_threads else 1
    if n_before == 1:  # It is already limited, perhaps by another thread, which will undo that.
        yield
        return
    set_blas_threads(1)
    try:
        yield
    finally:
        set_blas_threads(n_before)


def count_parts(n, least):
    """Return the number of parts into which in_parallel divides range(n).

    least: the smallest part that is worth a thread. If the BLAS is limited to one thread, our
    caller already uses all cores, and there is only one part.
    """
    n_parts = min(n_threads, n // least)
    return n_parts if n_parts > 1 and get_blas_threads() > 1 else 1


def in_parallel(work, n, least=1):
    """Split range(n) into slices, and call work(slice) for each of them on its own thread."""
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

FEW_ROWS = 16  # Up to this number of rows, block_product is faster than @.
SEVERAL_ROWS = 48  # Up to this number of rows, transposed_product is faster than @.
MIN_NUMBERS = 2**17  # With fewer numbers of a matrix, a thread costs more than it saves.
SMALL_PRODUCT = 10**6  # Up to this number of multiplications, OpenBLAS does not copy w (see below).
SMALL_RESULT = 1200  # If w is transposed, the result must not have more numbers than this, either.
BLOCK_ROWS = 48  # rows of w in a block; both larger and smaller blocks are slower


def product(x, w):  # [n, in] @ [in, out] -> [n, out]
    """Return x @ w.

    The product with one row takes as long as reading w from memory, and a few rows need not take
    longer. But before a BLAS multiplies more than one row, it copies w into another order, and the
    copy takes three times as long as reading w. On CPUs with AVX-512, OpenBLAS skips the copy if a
    product is small. So we multiply a few rows with small blocks of w.
    """
    if set_blas_threads is None or len(x) < 2:
        return x @ w
    if w.flags.c_contiguous:
        return block_product(x, w) if len(x) <= FEW_ROWS else x @ w
    # w is wte.T: in memory, the numbers of each column are side by side.
    return transposed_product(x, w.T) if len(x) <= SEVERAL_ROWS else x @ w


def block_product(x, w):  # [n, in] @ [in, out] -> [n, out]
    """Return x @ w. Multiply blocks of x's columns with blocks of w's rows, and add up the results.

    The blocks are so small that OpenBLAS copies nothing. The rows of w after the last full block
    are multiplied at the end.
    """
    n, n_in = x.shape
    n_out = w.shape[1]
    least = MIN_NUMBERS // n_in + 1  # This many columns are worth a thread.
    n_columns = math.ceil(n_out / count_parts(n_out, least))  # columns per thread
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
    """Return x @ w.T. Multiply x with one block of w's rows after the other."""
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
    """Guess the next tokens of a text by copying from the text itself: prompt lookup, Saxena 2023.

    Texts repeat names, quotations and code. A pass that verifies a draft of seven tokens takes
    about as long as two passes for one token each, so a wrong draft costs little. The more drafts
    in a row are wrong, the longer is the pause before the next one.
    """

    NGRAM = 3  # We look for an earlier occurrence of this many tokens at the end of the text.
    FIRST, LONGEST = 7, 31  # tokens of a draft; a pass has one row more, for the last token

    def __init__(self, longest=LONGEST):
        self.longest = longest  # 0 means no drafts at all
        self.length = self.FIRST  # tokens of the next draft
        self.n_misses, self.pause = 0, 0  # wrong drafts in a row; passes until the next draft
        self.n_passes = 0
        self.text = ""  # the ids as characters: searching a str is fast, searching a list is not

    def draft(self, ids, room):
        """Return up to room ids that may follow these, often none. Call this once per pass."""
        self.n_passes += 1
        self.text += "".join(map(chr, ids[len(self.text) :]))
        if self.pause > 0:
            self.pause -= 1
            return []
        found = look_up(self.text, self.NGRAM, min(self.length, self.longest, room))
        return [ord(char) for char in found]

    def update(self, draft, n_accepted):
        """Choose the length of the next draft. The model accepted n_accepted ids of this one.

        If it accepted all, double the rows of a pass: drafts grow from 7 to 15 to 31 ids. If it
        accepted at least half, keep the length. Otherwise start again with FIRST, after a pause
        that grows with each miss in a row: 0, 1, 3, ... 63 passes.
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
    """Return the text after the previous occurrence of the last n characters, or "".

    If it is shorter than length, repeat it: look_up("abcdeabc", 3, 10) is "deabcdeabc".
    """
    if length <= 0 or not text:
        return ""
    index = text.rfind(text[-n:], 0, -1)  # -1 excludes the last n characters themselves
    if index < 0:
        return ""
    copied = text[index + n :]
    return (copied * (length // len(copied) + 1))[:length]
