"""fast.py changes the time and not the result: threads, products of a few rows, drafts."""

import itertools
import os
import platform
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT

import fast
import gpt2
from fast import FEW_ROWS, SEVERAL_ROWS, Drafts, in_parallel, look_up, product

# Threads


class Blas:
    """Stands in for a BLAS library with threads, and notes how many it was told to use."""

    def __init__(self, n_threads):
        self.n_threads, self.told = n_threads, []

    def set(self, n):
        self.n_threads = n
        self.told.append(n)


@pytest.fixture
def blas(monkeypatch):
    blas = Blas(7)
    monkeypatch.setattr(fast, "set_blas_threads", blas.set)
    monkeypatch.setattr(fast, "get_blas_threads", lambda: blas.n_threads)
    monkeypatch.setattr(fast, "n_threads", 2)
    monkeypatch.setattr(fast, "pools", {})
    return blas


@pytest.fixture(params=[1, 2, 3])
def n_threads(request, monkeypatch, blas):
    monkeypatch.setattr(fast, "n_threads", request.param)
    return request.param


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


@pytest.mark.parametrize("n, least", [(0, 1), (1, 1), (2, 1), (12, 1), (12, 5), (12, 6), (13, 7)])
def test_the_parts_cover_the_whole_once(n, least, n_threads):
    parts, lock = [], threading.Lock()

    def work(part):
        with lock:
            parts.append(part)

    in_parallel(work, n, least)
    assert sorted(i for part in parts for i in range(n)[part]) == list(range(n))
    assert len(parts) == max(1, min(n_threads, n // least))
    assert len(parts) == 1 or all(part.stop - part.start >= least for part in parts)


def test_parts_run_at_the_same_time_while_the_blas_has_one_thread(monkeypatch, blas):
    monkeypatch.setattr(fast, "n_threads", 3)
    all_there = threading.Barrier(3, timeout=30)
    seen = []

    def work(part):
        all_there.wait()
        seen.append(blas.n_threads)

    in_parallel(work, 3)
    assert seen == [1, 1, 1] and blas.told == [1, 7]


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_in_any_part_is_raised_and_later_work_succeeds(wrong, blas):
    def work(part):
        if part.start == wrong:
            raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        in_parallel(work, 2)
    assert blas.told == [1, 7]
    for _ in range(3):
        in_parallel(lambda part: None, 2)


def test_a_blas_that_is_limited_to_one_thread_stays_limited(blas):
    blas.n_threads, parts = 1, []
    in_parallel(parts.append, 4)
    with fast.one_blas_thread():
        parts.append(blas.n_threads)
    assert parts == [slice(0, 4), 1] and blas.told == []


def test_work_inside_of_work_runs_on_the_same_thread(blas):
    threads, inner_parts = set(), []

    def outer(part):
        me = threading.get_ident()
        in_parallel(lambda part: inner_parts.append((part, me == threading.get_ident())), 4)
        threads.add(me)

    in_parallel(outer, 2)
    assert inner_parts == [(slice(0, 4), True)] * 2 and len(threads) == 2


def test_of_two_callers_none_leaves_the_blas_with_one_thread(monkeypatch, blas):
    """The other one limits it just after in_parallel has looked, and undoes it in the meantime."""
    answers = iter([7, 1])
    monkeypatch.setattr(fast, "get_blas_threads", lambda: next(answers))
    in_parallel(lambda part: None, 2)
    assert blas.n_threads == 7


def test_a_thread_keeps_no_array(blas):
    freed = threading.Event()

    class Array:
        def __del__(self):
            freed.set()

    def with_an_array(array):
        in_parallel(lambda part: array, 2)

    with_an_array(Array())
    assert freed.wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_threads_work_in_a_forked_child_and_in_its_parent():
    code = """
import os, sys, threading, fast
fast.n_threads, fast.set_blas_threads, fast.get_blas_threads = 2, lambda n: None, lambda: 2

def work():
    both_there = threading.Barrier(2, timeout=10)
    fast.in_parallel(lambda part: both_there.wait(), 2)

work()
child = os.fork()
work()
work()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == 7


@pytest.mark.skipif(fast.set_blas_threads is None, reason="NumPy has no OpenBLAS of its own here")
@pytest.mark.parametrize("n", [1, 2])
def test_there_are_as_many_threads_as_openblas_has(n):
    code = (
        "import fast, threading, numpy as np\n"
        "fast.product(np.ones((2, 640), 'f'), np.ones((640, 640), 'f'))\n"
        "print(fast.n_threads, fast.get_blas_threads(), fast.find_openblas()[1]())\n"
        "print(threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": str(n)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(n)] * 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is about glibc")
def test_memory_of_large_arrays_is_used_again_without_page_faults():
    code = """
import gpt2, numpy, resource
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [numpy.ones(2**18) for _ in range(20)]  # 2 MB each
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", code]
    assert int(subprocess.check_output(command, cwd=ROOT)) < 1000  # instead of 10,240


# Products


@pytest.mark.parametrize("n_in, n_out", [(40, 120), (8, 3), (1, 2), (65, 1), (700, 7), (64, 301)])
def test_product_is_the_product_for_up_to_64_rows_and_every_layout(
    n_in, n_out, n_threads, monkeypatch
):
    monkeypatch.setattr(fast, "MIN_NUMBERS", 40)
    w = normal(n_in, n_out)
    padded = np.zeros((n_in, n_out + 5), np.float32)
    padded[:, 2:-3] = w
    read_only = w.copy()
    read_only.flags.writeable = False
    layouts = {
        "C": w,
        "read-only": read_only,
        "F, as the transposed embedding": np.asfortranarray(w),
        "columns of a wider matrix": padded[:, 2:-3],
        "backwards": np.ascontiguousarray(w[::-1])[::-1],
    }
    for n in range(65):
        x = normal(n, 2 * n_in)
        x = [x[:, ::2].copy(), np.asfortranarray(x[:, ::2]), x[:, ::2]][n % 3]
        expected = x.astype(np.float64) @ w
        for name, matrix in layouts.items():
            found = product(x, matrix)
            assert found.dtype == np.float32 and found.shape == (n, n_out)
            assert np.abs(found - expected).max(initial=0) < 1e-4 * n_in**0.5, name


def test_each_kind_of_product_is_made_for_its_number_of_rows(monkeypatch, blas):
    made = []
    for name in "block_product", "transposed_product":
        function = getattr(fast, name)
        monkeypatch.setattr(
            fast, name, lambda x, w, name=name, f=function: made.append(name) or f(x, w)
        )
    w = normal(40, 30)
    for n in 1, 2, FEW_ROWS, FEW_ROWS + 1, SEVERAL_ROWS, SEVERAL_ROWS + 1:
        product(normal(n, 40), w)
        product(normal(n, 30), w.T)
    block, transposed = "block_product", "transposed_product"
    assert made == [block, transposed] * 2 + [transposed] * 2


def test_a_small_matrix_stays_on_one_thread(blas):
    for w in normal(256, 768), normal(768, 256).T:
        for n in 2, 20:
            product(normal(n, 256), w)
    assert blas.told == []
    product(normal(2, 768), normal(768, 768))
    assert blas.told == [1, 7]


def test_another_blas_gets_the_whole_product(monkeypatch):
    monkeypatch.setattr(fast, "set_blas_threads", None)
    monkeypatch.setattr(fast, "get_blas_threads", None)
    monkeypatch.setattr(fast, "n_threads", 1)
    for name in "block_product", "transposed_product":
        monkeypatch.setattr(fast, name, None)
    for n in 3, 20:
        assert product(normal(n, 4), normal(4, 5)).shape == (n, 5)
        assert product(normal(n, 4), normal(5, 4).T).shape == (n, 5)
    parts = []
    in_parallel(parts.append, 9)
    with fast.one_blas_thread():
        in_parallel(parts.append, 9)
    assert parts == [slice(0, 9)] * 2


def test_without_openblas_none_is_found(monkeypatch):
    monkeypatch.setattr(fast, "glob", lambda pattern: [])
    assert fast.find_openblas() == (None, None)
    monkeypatch.setattr(fast, "glob", lambda pattern: ["not_a_library.so"])
    assert fast.find_openblas() == (None, None)


@pytest.mark.parametrize("n, n_past", [(1, 0), (5, 3), (130, 0), (130, 70), (200, 33)])
def test_attention_is_the_same_on_any_number_of_threads(n, n_past, n_threads, monkeypatch):
    monkeypatch.setattr(gpt2, "MIN_SCORES", 0)
    q, k, v = normal(5, n, 8), normal(5, n_past + n, 8), normal(5, n_past + n, 8)
    found = gpt2.attention(q, k, v)
    monkeypatch.setattr(fast, "n_threads", 1)
    np.testing.assert_allclose(found, gpt2.attention(q, k, v), rtol=0, atol=1e-6)


def test_a_long_prompt_uses_several_threads_for_its_heads(blas):
    gpt2.attention(normal(12, 1, 4), *normal(2, 12, 900, 4))  # too little work for two threads
    assert blas.told == []
    gpt2.attention(*normal(3, 12, 256, 4))
    gpt2.attention(*normal(3, 12, 400, 4))
    assert blas.told == [1, 7, 1, 7]


def test_a_draft_late_in_a_long_text_uses_several_threads(blas):
    gpt2.attention(normal(12, 64, 4), *normal(2, 12, 964, 4))  # after 900 tokens
    assert blas.told == [1, 7]


@pytest.mark.parametrize("n, n_in, n_out", [(16, 3, 70_000), (48, 21_000, 30)])
def test_a_matrix_may_be_so_wide_that_not_even_a_row_is_a_small_product(n, n_in, n_out, blas):
    x, w = normal(n, n_in), normal(n_in, n_out)
    for matrix in w, np.asfortranarray(w):
        np.testing.assert_allclose(product(x, matrix), x @ w, rtol=0, atol=1e-5 * n_in**0.5)


def test_all_parts_are_done_when_in_parallel_comes_back(monkeypatch, blas):
    monkeypatch.setattr(fast, "n_threads", 4)
    done = []

    def work(part):
        time.sleep(0.05 * part.start)
        done.append(part.start)

    in_parallel(work, 4)
    assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_"])
@pytest.mark.parametrize(
    "place", ["numpy.libs/libscipy_openblas.so", "numpy/.dylibs/openblas.dylib"]
)
def test_openblas_is_found_where_a_wheel_has_it(place, name, tmp_path, monkeypatch):
    """Beside NumPy or, on macOS, in it; under the names of NumPy 2 or of 1.26; in any directory."""
    path = tmp_path / "a[b]" / place
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "a[b]" / "numpy").mkdir(exist_ok=True)
    functions = {name.format("set"): "set", name.format("get"): "get"}

    class Library:
        def __init__(self, opened):
            assert os.path.samefile(opened, path)

        def __getitem__(self, name):
            if name not in functions:
                raise AttributeError(name)  # as ctypes does
            return functions[name]

    monkeypatch.setattr(fast.ctypes, "CDLL", Library)
    monkeypatch.setattr(fast.np, "__file__", str(tmp_path / "a[b]" / "numpy" / "__init__.py"))
    assert fast.find_openblas() == ("set", "get")


# Drafts


def test_a_draft_follows_the_latest_occurrence_and_repeats_itself():
    assert look_up("abcdeabc", 3, 10) == "deabcdeabc"
    assert look_up("abcXabcYabc", 3, 2) == "Ya"
    assert look_up("aaaa", 3, 5) == "aaaaa"
    assert look_up("abcdabc", 3, 0) == look_up("abcdabc", 3, -1) == ""
    for text in "abcd", "ab", "":
        assert look_up(text, 3, 5) == ""
    assert look_up("abXab", 2, 3) == "Xab" and look_up("abXab", 3, 3) == ""


REPEATS = [1, 2, 3, 4] * 10
MUCH = 1000  # room


def test_a_draft_repeats_the_text_as_far_as_there_is_room():
    drafts = Drafts()
    assert drafts.draft(REPEATS, MUCH) == [1, 2, 3, 4, 1, 2, 3]
    assert drafts.draft([*REPEATS, 1, 9, 50256, 2, 3, 4], 3) == [1, 9, 50256]
    assert drafts.draft([*REPEATS, 1, 9, 50256, 2, 3, 4, 1, 9], 5) == [50256, 2, 3, 4, 1]
    assert drafts.draft([*REPEATS, 1, 9, 50256, 2, 3, 4, 1, 9, 8], MUCH) == []
    assert drafts.n_passes == 4
    assert Drafts(longest=2).draft(REPEATS, MUCH) == [1, 2]
    assert Drafts(longest=0).draft(REPEATS, MUCH) == Drafts().draft(REPEATS, 0) == []
    assert Drafts().draft([7, 1, 2, 5, 8, 1, 2], MUCH) == []  # two tokens are not enough


def test_a_draft_that_was_accepted_makes_the_next_one_longer():
    drafts, lengths = Drafts(), []
    for _ in range(4):
        draft = drafts.draft(REPEATS, MUCH)
        lengths.append(len(draft))
        drafts.update(draft, n_accepted=len(draft))
    assert lengths == [7, 15, 31, 31]


@pytest.mark.parametrize("n_accepted, length", [(7, 15), (6, 7), (4, 7), (3, 7)])
def test_the_next_draft_depends_on_how_much_was_accepted(n_accepted, length):
    drafts = Drafts()
    drafts.update(drafts.draft(REPEATS, MUCH), n_accepted)
    assert (drafts.length, drafts.pause) == (length, 0)


def test_half_of_a_long_draft_keeps_its_length_and_less_starts_over():
    drafts = Drafts()
    drafts.update(drafts.draft(REPEATS, MUCH), 7)
    drafts.update(drafts.draft(REPEATS, MUCH), 8)  # of 15
    assert (drafts.length, drafts.pause) == (15, 0)
    drafts.update(drafts.draft(REPEATS, 9), 5)  # there was room for 9
    assert (drafts.length, drafts.pause) == (9, 0)
    drafts.update(drafts.draft(REPEATS, MUCH), 3)
    assert (drafts.length, drafts.pause) == (7, 0)


def test_pauses_grow_until_a_draft_is_accepted():
    drafts = Drafts()

    def passes_without_a_draft():
        for n in itertools.count():
            if draft := drafts.draft(REPEATS, MUCH):
                return n, draft
            drafts.update(draft, 0)  # an empty draft is neither right nor wrong

    pauses = []
    for accepted in (0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0):
        n, draft = passes_without_a_draft()
        pauses.append(n)
        drafts.update(draft, len(draft) * accepted)
    assert pauses == [0, 0, 1, 3, 7, 15, 31, 63, 63, 63, 0, 0]


def test_a_pass_counts_with_a_draft_and_without():
    drafts = Drafts()
    for _ in range(10):  # all drafts are wrong, so there are pauses
        drafts.update(drafts.draft(REPEATS, MUCH), 0)
    assert drafts.n_passes == 10
