"""Shows that an installed wfcast works: ``python tests/smoke.py``, with nothing but what it needs.

Writes runs whose weights move with the square root of the step, fits a farcaster to two of them and
forecasts the third, all with the command line, and looks at the forecast weights.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import wfcast
from wfcast import cli

STEPS = (0, 500, 1000, 1500)
OUT = "forecast.safetensors"
COMMANDS = (
    "fit a b --inputs 0,500 --targets 1000,1500 -o farcaster.safetensors",
    "forecast 0=c/step-000000.safetensors 500=c/step-000500.safetensors "
    f"--farcaster farcaster.safetensors --step 1500 -o {OUT}",
)


def write_run(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, direction = rng.normal(size=(2, 40, 50)).astype(np.float32)
    folder.mkdir()
    for step in STEPS:
        weights = start + direction * np.float32(np.sqrt(step / 500))
        save_file({"layer.weight": weights}, folder / f"step-{step:06d}.safetensors")


def main() -> None:
    print(sys.version, wfcast.__file__, sep="\n")
    wfcast.show_config()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, run in enumerate("abc"):
            write_run(folder / run, seed)
        with contextlib.chdir(folder):
            for command in COMMANDS:  # in this process: an emulator starts no other for itself
                if code := cli.main(command.split()):
                    sys.exit(code)
        forecast, future = map(load_file, (folder / OUT, folder / "c" / "step-001500.safetensors"))
        error = np.abs(forecast["layer.weight"] - future["layer.weight"])
    if not error.max() < 1e-4:
        sys.exit(f"the forecast is off by {error.max()}")
    print(f"the forecast is right to {error.max():.1e}")


if __name__ == "__main__":
    main()
