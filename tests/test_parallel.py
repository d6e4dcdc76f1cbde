"""Threads of our own, and products of few rows."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

import gpt2
import parallel
from parallel import FEW, SEVERAL, in_parallel, product


@pytest.fixture(params=[1, 2, 3])
def n_threads(request, monkeypatch):
    monkeypatch.setattr(parallel, "n_threads", request.param)
    monkeypatch.setattr(parallel, "set_blas_threads", lambda n: None)
    monkeypatch.setattr(parallel, "get_blas_threads", lambda: 2)
    return request.param


@pytest.fixture
def said_to_blas(monkeypatch):
    said = []
    monkeypatch.setattr(parallel, "set_blas_threads", said.append)
    monkeypatch.setattr(parallel, "get_blas_threads", lambda: 7)
    return said


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


@pytest.mark.parametrize("n, least", [(0, 1), (1, 1), (2, 1), (12, 1), (12, 5), (12, 6), (13, 7)])
def test_the_parts_are_the_whole_each_once(n, least, n_threads):
    parts, lock = [], threading.Lock()

    def work(part):
        with lock:
            parts.append(part)

    in_parallel(work, n, least)
    assert sorted(i for part in parts for i in range(n)[part]) == list(range(n))
    assert len(parts) == max(1, min(n_threads, n // least))
    assert len(parts) == 1 or all(part.stop - part.start >= least for part in parts)


def test_parts_are_worked_on_at_the_same_time(monkeypatch, said_to_blas):
    monkeypatch.setattr(parallel, "n_threads", 3)
    all_there = threading.Barrier(3, timeout=30)
    in_parallel(lambda part: all_there.wait(), 3)
    assert said_to_blas == [1, 7]  # one thread meanwhile, and as many as before


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_in_any_part_is_raised_and_the_next_work_goes_on(wrong, monkeypatch, said_to_blas):
    monkeypatch.setattr(parallel, "n_threads", 2)

    def work(part):
        if part.start == wrong:
            raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        in_parallel(work, 2)
    assert said_to_blas == [1, 7]
    for _ in range(3):
        in_parallel(lambda part: None, 2)


def test_openblas_that_was_limited_later_stays_so(monkeypatch, said_to_blas):
    monkeypatch.setattr(parallel, "n_threads", 2)
    monkeypatch.setattr(parallel, "get_blas_threads", lambda: 1)
    parts = []
    in_parallel(parts.append, 4)
    assert parts == [slice(0, 4)] and said_to_blas == []


@pytest.mark.parametrize("given, found", [(None, "20"), ("26", "26")])
def test_a_command_lets_the_threads_of_openblas_sleep_soon(given, found):
    code = "import os, startup; startup.begin(); print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    env = {name: x for name, x in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    env |= {"OPENBLAS_THREAD_TIMEOUT": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.stdout.decode().strip() == found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_threads_of_its_own():
    code = (
        "import os, sys, parallel\n"
        "parallel.n_threads, parallel.set_blas_threads = 2, lambda n: None\n"
        "parallel.get_blas_threads = lambda: 2\n"
        "parallel.in_parallel(lambda part: None, 2)\n"
        "child = os.fork()\n"
        "parallel.in_parallel(lambda part: None, 2)\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "os._exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20)
    assert done.returncode == 7


def test_a_thread_keeps_no_array(monkeypatch, said_to_blas):
    monkeypatch.setattr(parallel, "n_threads", 2)
    there = threading.Event()

    class Array:
        def __del__(self):
            there.set()

    def with_an_array(array):
        in_parallel(lambda part: array, 2)

    with_an_array(Array())
    assert there.wait(10)


@pytest.mark.parametrize("n", [0, 1, 2, 3, FEW, FEW + 1, SEVERAL, SEVERAL + 1])
@pytest.mark.parametrize(
    "n_in, n_out", [(40, 120), (8, 3), (1, 2), (65, 1), (20_000, 7), (64, 9001)]
)
def test_product_is_the_product(n, n_in, n_out, n_threads, monkeypatch):
    monkeypatch.setattr(parallel, "SHARE", 40)
    x, w = normal(n, n_in), normal(n_in, n_out)
    expected = x.astype(np.float64) @ w
    for matrix in w, np.ascontiguousarray(w.T).T:  # the table of tokens is turned
        found = product(x, matrix)
        assert found.dtype == np.float32 and found.shape == (n, n_out)
        np.testing.assert_allclose(found, expected, atol=1e-4 * n_in**0.5)


def test_a_small_matrix_is_not_shared(monkeypatch, said_to_blas):
    monkeypatch.setattr(parallel, "n_threads", 2)
    for w in normal(256, 768), normal(768, 256).T:
        for n in 2, 20:
            product(normal(n, 256), w)
    assert said_to_blas == []
    product(normal(2, 768), normal(768, 768))
    assert said_to_blas == [1, 7]


def test_another_blas_gets_the_whole_product(monkeypatch):
    monkeypatch.setattr(parallel, "set_blas_threads", None)
    monkeypatch.setattr(parallel, "in_parallel", lambda *a: pytest.fail("it was cut"))
    assert product(normal(3, 4), normal(4, 5)).shape == (3, 5)


@pytest.mark.parametrize("n, n_past", [(1, 0), (5, 3), (130, 0), (130, 70), (200, 33)])
def test_attention_is_the_same_on_any_number_of_threads(n, n_past, n_threads, monkeypatch):
    monkeypatch.setattr(gpt2, "SCORES", 0)
    q, k, v = normal(5, n, 8), normal(5, n_past + n, 8), normal(5, n_past + n, 8)
    found = gpt2.attention(q, k, v)
    monkeypatch.setattr(parallel, "n_threads", 1)
    np.testing.assert_allclose(found, gpt2.attention(q, k, v), rtol=0, atol=1e-6)


def test_the_heads_of_a_long_prompt_are_shared(monkeypatch, said_to_blas):
    monkeypatch.setattr(parallel, "n_threads", 2)
    gpt2.attention(normal(12, 1, 4), *normal(2, 12, 900, 4))  # a token's work is too little
    assert said_to_blas == []
    gpt2.attention(*normal(3, 12, 256, 4))
    assert said_to_blas == [1, 7]


@pytest.mark.skipif(
    parallel.set_blas_threads is None, reason="NumPy has no OpenBLAS of its own here"
)
@pytest.mark.parametrize("n", [1, 2])
def test_there_are_as_many_threads_as_openblas_was_given(n):
    code = (
        "import parallel, numpy as np\n"
        "parallel.product(np.ones((2, 640), 'f'), np.ones((640, 640), 'f'))\n"
        "print(parallel.n_threads, parallel.get_blas_threads(), parallel.openblas()[1]())\n"
        "print(len(parallel.workers))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": str(n)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(n)] * 3 + [str(n - 1)]
