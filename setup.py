"""Build of the C extension ``wfcast._core``; everything else is in pyproject.toml.

Environment variables read here:

``WFCAST_OPENBLAS``
    ``bundled`` (default): link OpenBLAS from the PyPI package scipy-openblas32 and copy its shared
    library into the package. ``system``: link the system's OpenBLAS and copy nothing.
``WFCAST_SANITIZE``
    Sanitizers to build with, as in ``-fsanitize=``: for example ``address,undefined``.
``WFCAST_WERROR``
    ``1`` turns compiler warnings into errors.
``WFCAST_BUILD_JOBS``
    Number of compilers run at a time. Default: the CPUs this process may use.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent
LIB_DIR = "_lib"  # folder of the bundled library, beside the extension in the package
# How a library names the folder that it lies in; where this is not known, nothing is bundled.
ORIGIN = {"linux": "$ORIGIN", "darwin": "@loader_path"}.get(sys.platform)
# One extension for every Python from this one on. Without the GIL objects have another layout,
# which the stable ABI does not cover: there it is an extension for the very Python that builds it.
STABLE_ABI = None if sysconfig.get_config_var("Py_GIL_DISABLED") else (3, 11)


def openblas_choice() -> str:
    choice = os.environ.get("WFCAST_OPENBLAS", "") or "bundled"
    if choice not in ("bundled", "system"):
        raise SystemExit(f"WFCAST_OPENBLAS must be 'bundled' or 'system', not {choice!r}")
    if choice == "bundled" and not ORIGIN:
        raise SystemExit(
            f"bundling OpenBLAS is supported on Linux and macOS only, not on {sys.platform}; "
            "set WFCAST_OPENBLAS=system to link an installed one"
        )
    return choice


def openblas_folder() -> Path:
    """Where scipy-openblas32 is. Its import would load its library, which a cross build cannot."""
    spec = find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise SystemExit("scipy-openblas32 is not installed; or set WFCAST_OPENBLAS=system")
    return Path(spec.origin).parent


def pkg_config(option: str, package: str) -> list[str]:
    """The words of ``pkg-config <option> <package>``; none where either is missing."""
    try:
        out = subprocess.run(
            [os.environ.get("PKG_CONFIG", "pkg-config"), option, package],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return shlex.split(out.stdout)


def system_headers(*folders: str) -> list[str]:
    """Header folders whose own warnings are not ours (unlike with ``-I``)."""
    return [word for folder in folders for word in ("-isystem", folder)]


def make_extension() -> Extension:
    sources = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/**/*.c"))
    if not sources:
        raise SystemExit("no C source found under csrc/: the source tree is incomplete")

    compile_args = ["-std=c11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
    compile_args += ["-Wall", "-Wextra", "-Wconversion", "-Wvla"]
    compile_args += system_headers(np.get_include(), sysconfig.get_path("include"))
    link_args = ["-pthread"]
    macros: list[tuple[str, str | None]] = [
        ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),  # runs on NumPy 1.25 and later
    ]
    if STABLE_ABI:
        macros.append(("Py_LIMITED_API", "0x{:02X}{:02X}0000".format(*STABLE_ABI)))
    libraries = ["m"]
    library_dirs: list[str] = []
    runtime_library_dirs: list[str] = []

    if openblas_choice() == "system":
        macros.append(("WF_BLAS_SYSTEM", "1"))
        compile_args += pkg_config("--cflags", "openblas")
        link_args += pkg_config("--libs", "openblas") or ["-lopenblas"]
    else:
        macros.append(("WF_BLAS_PREFIX", "scipy_"))
        macros.append(("BLAS_SYMBOL_PREFIX", "scipy_"))  # what the package's own cblas.h asks for
        compile_args += system_headers(str(openblas_folder() / "include"))
        libraries.insert(0, "scipy_openblas")
        library_dirs.append(str(openblas_folder() / "lib"))
        runtime_library_dirs.append(f"{ORIGIN}/{LIB_DIR}")

    if sanitizers := os.environ.get("WFCAST_SANITIZE", ""):
        flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g", "-O1"]
        compile_args += [*flags, "-fno-omit-frame-pointer", "-UNDEBUG"]
        link_args += flags
    if os.environ.get("WFCAST_WERROR", "") == "1":
        compile_args.append("-Werror")

    return Extension(
        "wfcast._core",
        sources=sources,
        include_dirs=["csrc/include", "csrc"],
        define_macros=macros,
        libraries=libraries,
        library_dirs=library_dirs,
        runtime_library_dirs=runtime_library_dirs,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        py_limited_api=bool(STABLE_ABI),
    )


def is_up_to_date(obj: Path, key: str) -> bool:
    """Whether ``obj`` was made by the same command and is newer than every file it was made of."""
    stamp, deps = obj.with_suffix(".key"), obj.with_suffix(".d")
    try:
        if stamp.read_text() != key:
            return False
        made = obj.stat().st_mtime_ns
        _, _, names = deps.read_text().partition(":")
        return all(os.stat(name).st_mtime_ns < made for name in shlex.split(names))
    except (OSError, ValueError):
        return False


class BuildExt(build_ext):
    """``build_ext`` that compiles in parallel, only what changed, and bundles OpenBLAS."""

    def build_extensions(self) -> None:
        cc = self.compiler.compiler_so[0]
        if not shutil.which(cc):
            raise ExecError(
                f"wfcast needs a C compiler: {cc} not found; install one, or name it in CC"
            )
        self.force = True  # compile_objects decides file by file, from the compiler's own lists
        self.compiler.compile = self.compile_objects
        super().build_extensions()

    def compile_objects(
        self,
        sources: list[str],
        output_dir: str | None = None,
        macros: Any = None,
        include_dirs: Any = None,
        debug: bool = False,
        extra_preargs: list[str] | None = None,
        extra_postargs: list[str] | None = None,
        depends: Any = None,
    ) -> list[str]:
        """Stand-in for ``CCompiler.compile``, which compiles one file after the other."""
        compiler = self.compiler
        _, objects, postargs, pp_opts, build = compiler._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs
        )
        cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)
        command = repr((compiler.compiler_so, cc_args, postargs, os.environ.get("CFLAGS")))

        def compile_one(obj: str) -> None:
            source, extension = build[obj]
            path = Path(obj)
            key = hashlib.sha256(f"{command}{source}".encode()).hexdigest()
            if is_up_to_date(path, key):
                return
            stamp = path.with_suffix(".key")
            stamp.unlink(missing_ok=True)
            started = time.time_ns()
            with_deps = [*postargs, "-MD", "-MF", str(path.with_suffix(".d"))]
            compiler._compile(obj, source, extension, cc_args, with_deps, pp_opts)
            os.utime(path, ns=(started, started))  # a source edited meanwhile is newer
            stamp.write_text(key)

        jobs = int(os.environ.get("WFCAST_BUILD_JOBS") or 0) or cpu_count()
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(compile_one, (obj for obj in objects if obj in build)))
        return objects

    def run(self) -> None:
        super().run()
        extension = Path(self.get_ext_fullpath("wfcast._core"))
        files = self.bundled_files()
        here = {*extension.parent.glob("_core.*.so"), *(extension.parent / LIB_DIR).glob("*")}
        for stale in here - {extension, *files.values()}:
            stale.unlink()  # left by a build with another OpenBLAS, or for one Python alone
        for source, target in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.inplace and is_same_file(source, target):
                continue  # do not pull a mapped library from under a running process
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            shutil.copyfile(source, partial)
            shutil.copymode(source, partial)
            os.replace(partial, target)

    def bundled_files(self) -> dict[Path, Path]:
        """The files of OpenBLAS that the package carries: where they are and where they go."""
        if openblas_choice() == "system":
            return {}
        package = Path(self.get_ext_fullpath("wfcast._core")).parent
        lib_dir = openblas_folder() / "lib"
        # OpenBLAS finds the Fortran run-time libraries by where they lie from it: beside it, or on
        # macOS in ../.dylibs. They keep that place, for a changed name would end their signature.
        files = {path: package / LIB_DIR / path.name for path in lib_dir.glob("*.so*")}
        files |= {path: package / LIB_DIR / path.name for path in lib_dir.glob("*.dylib")}
        for path in (lib_dir.parent / ".dylibs").glob("*.dylib"):
            files[path] = package / ".dylibs" / path.name
        for entry in metadata.files("scipy-openblas32") or []:
            if entry.name == "LICENSE.txt":
                files[Path(str(entry.locate()))] = package / LIB_DIR / "LICENSE.openblas.txt"
        return files

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *map(str, self.bundled_files().values())]


def cpu_count() -> int:
    """The CPUs that this process may use; not every system can tell them from all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_same_file(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()


setup(
    ext_modules=[make_extension()],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*STABLE_ABI)}} if STABLE_ABI else {},
)
