"""What a pass-based solver owes its callers: segments, threads, interruption, memory, size."""

import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time

import fits
import numpy as np
import pytest
import reference

import wfcast
from wfcast import _core

LOSSES = ["absolute_error", "squared_error"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [0.0, 1e-4])
def test_segments_do_not_change_the_optimum(loss, beta):
    rng = np.random.default_rng(0)
    X, Y = fits.trajectories(rng, 60_000, 2, 2)
    groups, first_update = np.arange(len(X)) % 3, None
    if beta and loss == "absolute_error":
        first_update = np.full(3, 50.0)
    else:
        groups, beta = None, 0.0
    whole = fits.fit(X, Y, groups, first_update, beta, loss=loss)
    cut = fits.fit(X, Y, groups, first_update, beta, cuts=(1, 2, 3000, 3001, 41_000), loss=loss)
    np.testing.assert_allclose(cut["objective"], whole["objective"], rtol=2e-9)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [500, 150_000])
def test_threads_give_the_same_bits(loss, n):
    rng = np.random.default_rng(1)
    X, Y = fits.trajectories(rng, n, 3, 3)
    results = [fits.fit(X, Y, loss=loss, n_threads=t) for t in (1, 2, 3, 8)]
    for other in results[1:]:
        for key in ("coef", "intercept", "objective", "dual_gap"):
            np.testing.assert_array_equal(other[key], results[0][key])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [500, 20_000])
def test_instruction_sets_give_the_same_bits(isa, loss, n):
    X, Y = fits.trajectories(np.random.default_rng(2), n, 3, 2)
    got = fits.fit(X, Y, loss=loss)
    _core.set_isa("scalar")
    want = fits.fit(X, Y, loss=loss)
    for key in ("coef", "intercept", "objective", "dual_gap"):
        np.testing.assert_array_equal(got[key], want[key])


@pytest.mark.parametrize("dtype", reference.DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("step", [1, 2, -1, 3])
def test_a_fit_sees_values_not_their_memory(isa, dtype, step):
    """The same bits from columns of any dtype, stride and alignment as from plain float64 ones."""
    rng = np.random.default_rng(7)
    for n in (*range(1, 66, 8), 66, 600, 9_000):
        values = [reference.narrow(rng.normal(size=n), dtype) for _ in range(4)]
        placed = [reference.placed(v, step, offset=n % 9) for v in values]
        plain = [reference.widen(v) for v in values]
        for loss in LOSSES:
            results = []
            for x in (placed, plain):
                solver = _core.Fit(2, 2, n_rows=n, loss=loss)
                while solver.needs_pass():
                    solver.accumulate(x[:2], x[2:])
                    solver.advance()
                results.append(solver.result())
            for key in ("coef", "intercept", "objective", "dual_gap"):
                np.testing.assert_array_equal(results[0][key], results[1][key])


def test_a_pass_must_bring_all_rows():
    x = [np.arange(10.0)]
    solver = _core.Fit(1, 1, n_rows=12)
    solver.accumulate(x, x)
    with pytest.raises(ValueError, match="do not add up to n_rows"):
        solver.advance()
    with pytest.raises(ValueError, match="do not add up to n_rows"):
        solver.accumulate(x, x)
    with pytest.raises(RuntimeError, match="needs another pass"):
        solver.result()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fit_that_failed_goes_on_with_nothing(loss):
    """What a pass that broke off has gathered is not whole: to solve it would be to make it up."""
    x, hinge = [np.arange(3.0)], {}
    calls = [([np.array([1, np.nan, 2])], x * 2, 0)]
    if loss == "absolute_error":
        hinge = {"beta": 1e-3, "first_update": np.ones(2)}
        calls.append((x, x * 2, np.array([0, 1, 5])))
    for call in calls:
        solver = _core.Fit(1, 2, n_rows=3, loss=loss, **hinge)
        with pytest.raises(ValueError, match=r"input|groups"):
            solver.accumulate(*call)
        for again in (solver.advance, lambda s=solver: s.accumulate(x, x * 2, 0)):
            with pytest.raises(RuntimeError, match="has failed"):
                again()
        with pytest.raises(RuntimeError, match="has failed"):
            solver.result()


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_group_out_of_range(bad):
    X, Y = fits.trajectories(np.random.default_rng(3), 100, 2, 2)
    groups = np.zeros(100, np.int64)
    groups[7] = bad
    with pytest.raises(ValueError, match="row 7"):
        fits.fit(X, Y, groups, np.ones(3), 1e-3)


def test_many_python_threads_at_once():
    X, Y = fits.trajectories(np.random.default_rng(4), 30_000, 2, 2)
    want = fits.fit(X, Y)
    failures = []

    def work():
        for _ in range(5):
            got = fits.fit(X, Y, n_threads=2)
            if not np.array_equal(got["coef"], want["coef"]):
                failures.append(got)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@pytest.mark.memory
def test_nothing_leaks():
    X, Y = fits.trajectories(np.random.default_rng(5), 20_000, 2, 2)
    x = [X[:, 0], X[:, 1]]
    out = [np.zeros(len(X), np.float32)]
    counts = [sys.getrefcount(a) for a in x]

    def once():
        fits.fit(X, Y, np.zeros(len(X), int), np.ones(1), 1e-6)
        fits.fit(X, Y, loss="squared_error")
        _core.apply(x, out, np.ones((1, 2)), np.zeros(1))
        _core.error_sums(x[0], x[1])
        for bad in (np.nan, np.inf):
            y = Y.copy()
            y[5, 1] = bad
            with pytest.raises(_core.NonFinite):
                fits.fit(X, y)
        with pytest.raises(ValueError, match="shape"):
            _core.apply(x, [np.zeros(3)], np.ones((1, 2)), np.zeros(1))

    for _ in range(20):
        once()
    before = resident()
    for _ in range(100):
        once()
    assert resident() - before < 4096  # KiB; one lost block of columns would be 15,000
    assert [sys.getrefcount(a) for a in x] == counts


def test_a_second_module_object_is_whole():
    """Multi-phase initialisation: two modules of one library, each with its own state."""
    code = """
        import importlib.util, sys
        import numpy as np
        import wfcast
        from wfcast import _core
        spec = importlib.util.spec_from_file_location("wfcast._core", _core.__file__)
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
        assert other is not _core and other.NonFinite is not _core.NonFinite
        x = [np.array([1.0, np.nan])]
        for module in (other, _core):
            try:
                module.apply(x, [np.zeros(2)], np.ones((1, 1)), np.zeros(1))
            except module.NonFinite as error:
                assert error.args == ("input", 0, 1)
            else:
                raise AssertionError
        print("both")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr


INTERRUPT = """
    import sys
    import numpy as np
    import wfcast
    n = 40_000_000
    row = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    columns = [np.broadcast_to(r, (n // 1000, 1000)) for r in row]
    f = wfcast.Farcaster(tol=1e-9)
    f.fit(np.eye(3), np.eye(3)[:, :1] * 7)
    before = f.coef_.copy()
    print("ready", flush=True)
    try:
        while True:
            wfcast.Farcaster.fit(f, columns[:2], columns[2:])
            f.coef_ = before
            print("again", flush=True)
    except KeyboardInterrupt:
        assert np.array_equal(f.coef_, before)
        print("stopped", flush=True)
"""


INTERRUPT_MODEL = """
    import numpy as np
    import wfcast
    rng = np.random.default_rng(0)
    run = {t: {str(k): rng.normal(size=3_000_000) for k in range(4)} for t in range(3)}
    mf = wfcast.ModelFarcaster((0, 1), (2,), beta=0.0, n_threads=3)
    before = mf.fit([{t: {"a": np.arange(5.0) ** t} for t in range(3)}]).coef_
    print("ready", flush=True)
    try:
        while True:
            mf.fit([run])
            before = mf.coef_
            print("again", flush=True)
    except KeyboardInterrupt:
        assert mf.coef_ is before
        print("stopped", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("code", [INTERRUPT, INTERRUPT_MODEL], ids=["one", "model"])
def test_interrupt_ends_a_fit_within_a_second(code, delay):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    rest, _ = child.communicate(timeout=60)
    assert time.monotonic() - start < 1.0 + 0.5  # half a second for the interpreter to leave
    assert rest.splitlines()[-1] == "stopped"
    assert child.returncode == 0


WIDE = r"""
    import sys, numpy as np, wfcast
    loss, n, p = sys.argv[1], *map(int, sys.argv[2:])
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(n, p)), rng.normal(size=(n, 1))
    X[:, p // 2 :] = X[:, : p - p // 2]
    f = wfcast.Farcaster(loss).fit(np.eye(3), np.eye(3)[:, :1] * 7)
    before = f.coef_.copy()
    print("ready", flush=True)
    try:
        while True:
            f.fit(X, Y)
            before = f.coef_
    except KeyboardInterrupt:
        print("stopped", f.coef_ is before or np.array_equal(f.coef_, before), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.6, 1.3])
@pytest.mark.parametrize("shape", [("absolute_error", 30_000, 300), ("squared_error", 4_000, 1500)])
def test_interrupt_does_not_wait_for_lapack(shape, delay):
    """One factorisation of such widths takes longer than a second and can't be broken off."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WIDE), *map(str, shape)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert child.stdout.readline() == "stopped True\n"
        assert time.monotonic() - start < 1.0 + 0.5  # half a second for a busy machine
    assert child.returncode == 0  # the process's end waits for the worker


SHIM = r"""
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <stdlib.h>
    #include <string.h>
    static long left = -1;
    void shim_arm(long count) { left = count; }
    #define REFUSE \
        if (left >= 0 && ours(__builtin_return_address(0)) && fails()) { \
            errno = ENOMEM; \
            return NULL; \
        }
    static int fails(void)
    {
        return left >= 0 && left-- == 0;
    }
    static int ours(void *caller)
    {
        Dl_info info;
        return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "wfcast/_core");
    }
    void *malloc(size_t n)
    {
        static void *(*real)(size_t);
        if (!real) real = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
        REFUSE
        return real(n);
    }
    void *realloc(void *p, size_t n)
    {
        static void *(*real)(void *, size_t);
        if (!real) real = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
        REFUSE
        return real(p, n);
    }
    extern void *__libc_calloc(size_t, size_t);
    void *calloc(size_t k, size_t n)
    {
        REFUSE
        return __libc_calloc(k, n);
    }
"""

STARVE = """
    import ctypes, sys
    import numpy as np
    from wfcast import _core
    arm = ctypes.CDLL(None).shim_arm
    arm.argtypes = [ctypes.c_long]
    rng = np.random.default_rng(0)
    n = 12_000
    x = [rng.normal(size=n) for _ in range(2)]
    y = [x[1] + 0.3 * (x[1] - x[0]) + rng.normal(size=n) * 0.1 * (j + 1) for j in range(2)]
    half = [a.astype(np.float16) for a in x]
    few = list(rng.normal(size=(20, 12)))  # fewer rows than unknowns
    twice = [x[0], x[0]]  # of missing rank
    def fit(parts=0, x=x, y=y, **kw):
        f = _core.Fit(len(x), len(y), n_rows=len(x[0]), n_threads=1, **kw)
        while f.needs_pass():
            f.accumulate(x, y, 0)
            if parts:
                f.absorb([f.export()])
            f.advance()
        return f.result()
    def apply():
        _core.apply(half, [np.zeros(n)], np.ones((1, 2)), np.zeros(1), True, 1)
    jobs = {
        "absolute": lambda: fit(),
        "hinge": lambda: fit(beta=1e-3, first_update=np.ones(1)),
        "squared": lambda: fit(loss="squared_error"),
        "parts": lambda: fit(parts=1, beta=1e-3, first_update=np.ones(1)),
        "squared parts": lambda: fit(parts=1, loss="squared_error"),
        "few": lambda: fit(x=few, y=few[:2], loss="squared_error"),
        "few parts": lambda: fit(parts=1, x=few, y=few[:2], loss="squared_error"),
        "missing rank": lambda: fit(x=twice, loss="squared_error"),
        "apply": apply,
        "sums": lambda: _core.error_sums(half[0], half[1], 1),
    }
    for name, job in jobs.items():
        failed = 0
        for k in range(5000):
            arm(k)
            try:
                job()
            except MemoryError:
                failed += 1
                continue
            finally:
                arm(-1)
            break
        print(name, failed)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the shim interposes the allocator of glibc")
def test_failed_allocations_are_memory_errors(tmp_path):
    """Each allocation of the core fails once, in turn: always MemoryError, until all succeed."""
    source, library = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(textwrap.dedent(SHIM))
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"], check=True
    )
    env = {**os.environ, "LD_PRELOAD": str(library)}
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STARVE)],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    failed = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    squared = {"squared", "squared parts", "few", "few parts", "missing rank"}
    jobs = {"absolute", "hinge", "parts", "apply", "sums"} | squared
    assert set(failed) == jobs
    assert all(int(count) >= 2 for count in failed.values()), failed


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_more_rows_than_32_bits_count(loss):
    """A broadcast view of 2^31 + 8 rows: every index on the way must be wide enough."""
    n = 2**31 + 8
    pattern = np.random.default_rng(6).normal(size=(2, 8)).astype(np.float32)
    columns = [np.broadcast_to(r, (n // 8, 8)) for r in pattern]
    f = wfcast.Farcaster(loss=loss).fit(columns, columns[1:])
    np.testing.assert_allclose(f.coef_, [[0, 1]], atol=1e-9)
    np.testing.assert_allclose(f.objective_, 0, atol=1e-9)


def test_features_can_be_switched_off():
    code = "from wfcast import _core; print(_core.config()['isa'], *_core.config()['available'])"

    def available(disabled):
        env = {**os.environ, "WFCAST_DISABLE_CPU_FEATURES": disabled}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
        )
        return run.stdout.split()

    everything = available("")
    assert everything[0] == everything[1]
    assert everything[-1] == "scalar"
    for name in everything[1:-1]:
        assert name not in available(name)
    assert available(",".join(everything)) == ["scalar", "scalar"]


def test_what_was_switched_off_is_what_the_environment_said_at_import(monkeypatch):
    before = _core.config()
    monkeypatch.setenv("WFCAST_DISABLE_CPU_FEATURES", "avx512,avx2")
    assert _core.config() == before
    run = subprocess.run(
        [sys.executable, "-c", "from wfcast import _core; print(_core.config())"],
        env={os.fsencode(k): os.fsencode(v) for k, v in os.environ.items()}
        | {b"WFCAST_DISABLE_CPU_FEATURES": b"\xff"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "'disabled': '\\udcff'" in run.stdout


def test_a_fit_serves_one_thread_at_a_time():
    """Every call but one is refused while a pass is under way."""
    n = 2**27
    x = [np.broadcast_to(np.float32(1), (n,))]
    solver = _core.Fit(1, 1, n_rows=n, n_threads=1)
    worker = threading.Thread(target=solver.accumulate, args=(x, x))
    worker.start()
    refused = False
    while worker.is_alive() and not refused:
        try:
            solver.needs_pass()
        except RuntimeError:  # now the pass is under way
            refused = True
            for call in (solver.needs_pass, solver.advance, solver.result):
                with pytest.raises(RuntimeError, match="in use by another thread"):
                    call()
    worker.join()
    assert refused
    assert solver.needs_pass()
