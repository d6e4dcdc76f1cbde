"""The first thing that a command does, before it imports anything else. Plumbing.

if __name__ == "__main__":
    import startup

    startup.begin()
"""

import os

# Not signal, whose import takes long enough for a Ctrl-C to come in between.
from _signal import SIGINT, default_int_handler, getsignal, signal


def begin(one_thread=False):
    """Let Ctrl-C end the process without a traceback, also in the middle of an import.

    one_thread: for what computes on threads of its own, one a core: each takes products of matrices
    with a BLAS of one thread. That is decided when NumPy is imported.
    """
    if getsignal(SIGINT) is default_int_handler:  # not where a shell lets nobody hear it
        signal(SIGINT, end_at_once)
    # OpenBLAS's threads spin for 2^26 cycles after a product. 2^20 are enough for the next one of a
    # token, and leave the cores to the threads of parallel.py.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    for library in ("OPENBLAS", "MKL", "OMP", "VECLIB") if one_thread else ():
        limit = "VECLIB_MAXIMUM_THREADS" if library == "VECLIB" else f"{library}_NUM_THREADS"
        os.environ.setdefault(limit, "1")


def end_at_once(number, frame):
    """130 is the status of Ctrl-C. Not by an exception: compiled modules discard it while they are
    imported, and what is on the disk has to bear a kill anyway."""
    try:
        os.write(2, b"\n")  # after the ^C of a terminal
    finally:
        os._exit(130)


class interruptible:
    """with interruptible(): Ctrl-C raises KeyboardInterrupt, for what goes on or cleans up then."""

    def __enter__(self):
        self.ends = getsignal(SIGINT) is end_at_once
        if self.ends:
            signal(SIGINT, default_int_handler)

    def __exit__(self, *error):
        if self.ends:
            signal(SIGINT, end_at_once)
