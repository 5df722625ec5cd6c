"""How fast wfcast starts: what importing it, and its commands, take over ``import numpy``.

Every contestant is a process of its own, in turn with the others; what an interpreter that imports
nothing takes is subtracted from all of them. The files are in the page cache after the first round,
which is not counted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np
from safetensors.numpy import save_file

NAME = "bench_start"
NOTHING, NUMPY, LIGHT = "nothing", "import numpy", "numpy and all but the estimators"
FORECAST = "sys.argv[1:] = 'forecast 0=0.st 1=1.st --farcaster line --step 2 -o 2.st'.split()"
MAIN = "from wfcast.__main__ import main"
CONTESTANTS = {
    NOTHING: "pass",
    NUMPY: "import numpy",
    "import wfcast": "import wfcast",
    LIGHT: ("import numpy, wfcast; wfcast.load, wfcast.forecast_checkpoint, wfcast.inspect"),
    "numpy and the estimators": "import numpy, wfcast; wfcast.ModelFarcaster",
    "safetensors and numpy": "import safetensors.numpy",
    "wfcast --version": f"import sys; sys.argv[1:] = ['--version']; {MAIN}; main()",
    "wfcast forecast, two small files": f"import sys; {FORECAST}; {MAIN}; main()",
}


def main() -> None:
    """Run the contestants, print the table and the target, write the JSON."""
    parser = common.parser(NAME, __doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25, help="rounds")
    options = parser.parse_args()
    info = common.machine()
    common.print_machine(info, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for step in (0, 1):
            save_file({"w": np.full(1000, float(step), np.float32)}, Path(folder) / f"{step}.st")

        def start(code: str) -> None:
            command = [sys.executable, "-c", code]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)

        times = common.interleaved(
            {name: lambda code=code: start(code) for name, code in CONTESTANTS.items()},
            repeats=3 if options.quick else options.repeats,
        )
    own = {
        name: [a - b for a, b in zip(times[name], times[NOTHING], strict=True)]
        for name in times
        if name != NOTHING
    }
    rows = [
        (
            name,
            f"{1e3 * statistics.median(values):.0f} ms",
            f"{statistics.median(a / b for a, b in zip(values, own[NUMPY], strict=True)):.2f}",
        )
        for name, values in own.items()
    ]
    print(common.table(("process", "beyond an empty one", "over import numpy"), rows))
    targets = [
        common.Target(
            f"{name}, over import numpy",
            statistics.median(a / b for a, b in zip(own[name], own[NUMPY], strict=True)),
            1.5,
            at_most=True,
        )
        for name in ("import wfcast", LIGHT)  # the first imports hardly anything by itself
    ]
    common.print_targets(targets)
    common.write_json(
        options,
        NAME,
        {"machine": info, "seconds": times, "targets": [t.as_dict() for t in targets]},
    )


if __name__ == "__main__":
    main()
