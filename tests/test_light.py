"""What need not be imported is not, and Ctrl-C while it is being imported ends in one line."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

HEAVY = ("sklearn", "scipy", "pandas", "torch", "transformers", "matplotlib", "ml_dtypes")

LOOK = f"""
import sys
print("loaded:", *(m for m in {HEAVY} if m in sys.modules))
"""
FORECAST = ["forecast", "0=step-0.safetensors", "10=step-10.safetensors"]
FORECAST += ["--farcaster", "line", "--step", "20", "-o"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for step in (0, 10, 20):
        save_file(
            {"w": np.full((3, 2), float(step), np.float32)}, folder / f"step-{step}.safetensors"
        )
    return folder


def python(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["forecast", "--help"],
        [*FORECAST, "out.safetensors"],
        ["anneal", ".", "-o", "out.safetensors", "--profile", "1", "2", "--judge", "echo 1 {}"],
        ["extrapolate", ".", "-o", "out.safetensors"],
        ["inspect", "step-0.safetensors"],
        ["inspect", "."],
        ["compare", "step-0.safetensors", "step-20.safetensors"],
    ],
    ids=" ".join,
)
def test_a_command_imports_what_it_needs(arguments, pair):
    code = f"""
import sys
from wfcast.__main__ import main
sys.argv = ["wfcast", *{arguments!r}]
try:
    code = main()
except SystemExit as error:
    code = error.code
{LOOK}
sys.exit(code)
"""
    done = python(code, pair)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_importing_is_light(pair):
    code = "import wfcast\n" + LOOK
    assert python(code, pair).stdout == "loaded:\n"


def test_operators_need_no_scikit_learn(pair):
    code = f"""
import numpy as np
import wfcast
op = wfcast.linear_trend((0, 10), (20,))
op.save("line.safetensors")
op = wfcast.load("line.safetensors")
run = {{s: f"step-{{s}}.safetensors" for s in (0, 10, 20)}}
assert op.predict(run)["w"][0, 0] == 20
wfcast.forecast_checkpoint(op, run, 20, "ahead.safetensors")
wfcast.compare_checkpoints("ahead.safetensors", "step-20.safetensors")
wfcast.inspect("ahead.safetensors")
wfcast.evaluate(op, run)
{LOOK}
"""
    done = python(code, pair)
    assert (done.returncode, done.stdout) == (0, "loaded:\n"), done.stderr


def test_every_public_name_is_there():
    import wfcast

    assert set(wfcast.__all__) <= set(dir(wfcast))
    for name in wfcast.__all__:
        assert getattr(wfcast, name) is not None
    assert not hasattr(wfcast, "forcast")


INSPECT = ["inspect", "step-0.safetensors"]
COMPARE = ["compare", "step-0.safetensors", "step-20.safetensors"]
EARLY = ["wfcast.cli", "argparse", "wfcast._terminal"]
LATE = ["numpy", "numpy.linalg", "safetensors", "wfcast._operator"]


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        *(([*FORECAST, "x.safetensors"], module) for module in (*EARLY, *LATE)),
        *((INSPECT, module) for module in LATE),
        *((COMPARE, module) for module in LATE[:3]),
    ],
)
def test_ctrl_c_during_start_up(arguments, module, pair):
    """A real signal, at the moment at which `module` is about to be imported."""
    code = f"""
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["wfcast", *{arguments!r}]
from wfcast.__main__ import main
sys.exit(main())
"""
    done = python(code, pair)
    assert done.returncode == 128 + signal.SIGINT, (done.stdout, done.stderr)
    assert done.stderr == "wfcast: interrupted\n"
    assert not (pair / "x.safetensors").exists()


def test_help_where_torch_is_not_installed(pair):
    code = """
import importlib.util, inspect, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *where: None if name == "torch" else found(name, *where)
sys.modules["torch"] = None
import wfcast
assert "torch" not in dir(wfcast)
assert {"load", "Operator"} < dict(inspect.getmembers(wfcast)).keys()
help(wfcast)
"""
    done = python(code, pair)
    assert done.returncode == 0, done.stderr
    assert "forecast_checkpoint" in done.stdout
