"""How the work gets to all cores. Plumbing: what is computed stands in gpt2.py.

NumPy leaves products of matrices to a BLAS, which has threads of its own, and does everything else
on one core. in_parallel gives parts of an operation to threads that are here; meanwhile the BLAS
has to do with one, or its threads and ours would wait for each other. product is @, and of a few
rows faster. Both know OpenBLAS, which NumPy's wheels bring; with another BLAS they do without.
docs/speed.md has the figures.
"""

import ctypes
import os
import queue
import threading
from glob import escape, glob

import numpy as np

MOST = 8  # threads: each one more takes 10 microseconds to be told and to be heard
FEW, SEVERAL = 16, 48  # rows: see product
SHARE = 2**17  # numbers of a matrix, at least, for another thread
SMALL, SMALL_T = 10**6, 1200  # multiplications, results: of what OpenBLAS calls a small product


def openblas():
    """-> OpenBLAS's functions that set and get how many threads it has; of another BLAS None and 1.

    NumPy has no word for it. The library is asked as threadpoolctl does it.
    """
    folder = escape(os.path.dirname(np.__file__))
    for path in glob(f"{folder}.libs/*openblas*") + glob(f"{folder}/.dylibs/*openblas*"):
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_"):
            try:
                library = ctypes.CDLL(path)
                return library[name.format("set")], library[name.format("get")]
            except (OSError, AttributeError):
                pass
    return None, lambda: 1


set_blas_threads, get_blas_threads = openblas()
n_threads = min(get_blas_threads(), MOST)
jobs, workers = queue.SimpleQueue(), []


def forget_workers():
    """In a process that was forked: it has none of the threads."""
    global jobs
    jobs = queue.SimpleQueue()
    workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_workers)


def in_parallel(work, n, least=1):
    """Call work(part) for slices that together are range(n): one a thread, of at least so many."""
    n_parts = min(n_threads, n // least)
    n_before = get_blas_threads() if n_parts > 1 else 1  # 1: limited by somebody, or by us just now
    if n_before < 2:
        work(slice(0, n))
        return
    parts = [slice(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]
    while len(workers) < n_parts - 1:
        workers.append(threading.Thread(target=take_jobs, daemon=True))
        workers[-1].start()
    done = queue.SimpleQueue()
    set_blas_threads(1)
    try:
        for part in parts[1:]:
            jobs.put((work, part, done))
        work(parts[0])
        for _ in parts[1:]:
            if error := done.get():
                raise error
    finally:
        set_blas_threads(n_before)


def take_jobs():
    """What each of our threads does, until the process ends."""
    while True:
        work, part, done = jobs.get()
        try:
            work(part)
            done.put(None)
        except BaseException as error:
            done.put(error)
        del work, done  # and with them the arrays, which would stay until the next job


def product(x, w):  # [n, in] @ [in, out] -> [n, out]
    """x @ w.

    One row waits for w to come from memory, and a few rows cost hardly more. But before a BLAS
    multiplies more than one, it copies w into an order that suits many, which takes three times as
    long. OpenBLAS does without where a product is small, on processors with AVX-512: so of a FEW
    rows each core takes its columns of w in small pieces. Of SEVERAL each takes its columns whole.
    """
    (n, n_in), n_out = x.shape, w.shape[1]
    if set_blas_threads is None or not 1 < n <= SEVERAL:
        return x @ w
    y, least = np.empty((n, n_out), x.dtype), SHARE // n_in + 1  # columns, for a thread
    if n > FEW and w.flags.c_contiguous:
        in_parallel(lambda part: np.matmul(x, w[:, part], out=y[:, part]), n_out, least)
    elif w.flags.c_contiguous:  # [pieces, n, size] @ [pieces, size, out], and the sum of the pieces
        n_columns = -(-n_out // max(1, min(n_threads, n_out // least)))  # of a core
        size = max(1, min(64, SMALL // (n * n_columns)))  # longer pieces are not faster
        whole = n_in // size * size
        xs = x[:, :whole].reshape(n, -1, size).swapaxes(0, 1)
        ws = w[:whole].reshape(-1, size, n_out)
        in_parallel(lambda part: np.add.reduce(xs @ ws[..., part], 0, out=y[:, part]), n_out, least)
        if whole < n_in:
            y += x[:, whole:] @ w[whole:]
    else:  # wte.T, whose columns lie in memory as a whole: [in, out] -> [pieces, in, size]
        size = max(1, min(SMALL_T // n, SMALL // (n * n_in)))
        whole = n_out // size * size
        ws = w.T[:whole].reshape(-1, size, n_in).swapaxes(1, 2)
        ys = y[:, :whole].reshape(n, -1, size).swapaxes(0, 1)
        in_parallel(lambda part: np.matmul(x, ws[part], out=ys[part]), len(ws), least // size + 1)
        y[:, whole:] = x @ w[:, whole:]
    return y
