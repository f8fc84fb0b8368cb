"""What is built from the repository: the sdist, wheels with and without kernels, and the kernels under sanitizers."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
# The tests that share a wheel go to one test process, and the sanitizers to any other.
around_the_wheel = pytest.mark.xdist_group("packaging")

REPOSITORY = Path(__file__).parents[1]
KERNELS = "src/largebatch/optim/kernels"
LIBRARY = "largebatch/optim/kernels/_cpu.so"
LEAST_SETUPTOOLS = 77
"""What pyproject.toml asks for; without build isolation nobody else checks it."""


def run(words: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program in a folder where its temporary files stay too; return all it says."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "CC", "CXX"))}
    told = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**kept, "TMPDIR": str(folder), "PIP_CONFIG_FILE": os.devnull, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=500,
    )
    said = told.stdout + told.stderr
    assert told.returncode == 0, f"{words[0]} ended with {told.returncode}:\n{said}"
    return said


def pip(python: Path | str, *words: str | Path) -> list[str | Path]:
    """Return a command of pip that reaches for nothing outside and leaves nothing in the home folder."""
    return [python, "-m", "pip", *words, "--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]


# ---- building ----------------------------------------------------------------------------------------------------

_SDIST = """
import sys
import setuptools
from setuptools import build_meta

if int(setuptools.__version__.split(".")[0]) < int(sys.argv[2]):
    sys.exit(f"setuptools {setuptools.__version__} is too old to build largebatch; it has to be {sys.argv[2]} or later")
build_meta.build_sdist(sys.argv[1])
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an sdist of the files that git has or would take."""
    folder = tmp_path_factory.mktemp("sdist")
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():  # a tracked file may have been deleted
            copy = folder / "repository" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy)
    made = folder / "made"
    made.mkdir()
    run([sys.executable, "-c", _SDIST, made, str(LEAST_SETUPTOOLS)], folder / "repository")
    (found,) = made.glob("*.tar.gz")
    return found


def build_wheel(sdist: Path, folder: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Build a wheel from the sdist, unpacked anew: a former build would leave its library behind."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.glob("largebatch-*")
    made = folder / "made"
    run(pip(sys.executable, "wheel", source, "--no-build-isolation", "--wheel-dir", made), folder, environment)
    (found,) = made.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def clean_venv(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a venv of its own, beside the packages of this one; return its Python."""
    run([sys.executable, "-m", "venv", "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    run(pip(python, "install", wheel), folder)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Its folder comes after the venv's own, and its .pth files, one of them of an editable install, are not read.
    (packages / "torch_and_numpy.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def inside(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def without_compilers(python: Path) -> dict[str, str]:
    return {"PATH": str(python.parent)}


_INSTALLED = """
import logging, shutil, sys
from pathlib import Path

import torch
import largebatch
from largebatch.optim import LAMB

assert Path(largebatch.__file__).is_relative_to(sys.prefix), largebatch.__file__
assert not any(map(shutil.which, ("cc", "c++", "gcc", "g++", "clang", "clang++"))), "there is a compiler"
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
logging.getLogger("largebatch.optim").setLevel(logging.INFO)

def step(**options):
    x = torch.nn.Parameter(torch.ones(3000))
    x.grad = torch.ones_like(x)
    LAMB([x], lr=0.5, weight_decay=0.0, **options).step()
    assert torch.allclose(x.detach(), torch.full_like(x, 0.5)), x

step()
try:
    step(fused=True)
    print("fused=True took a step")
except RuntimeError as error:
    print("fused=True raised", error)
"""


# ---- what is in them, and what they do ---------------------------------------------------------------------------


@around_the_wheel
def test_the_sdist_has_all_that_a_wheel_with_kernels_needs(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"{KERNELS}/{name}" for name in ("cpu.cpp", "cpu_sweeps.h", "cpu_threads.h")}
    assert {"setup.py", "pyproject.toml", *sources} <= names
    assert not [name for name in names if name.endswith(".so")]
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    assert LIBRARY in inside(wheel)


@around_the_wheel
def test_the_wheel_takes_fused_steps_where_there_is_no_compiler(wheel: Path, tmp_path: Path) -> None:
    python = clean_venv(wheel, tmp_path)
    said = run([python, "-c", _INSTALLED], tmp_path, without_compilers(python))
    assert "LAMB: fused kernels on cpu (the default" in said
    assert "fused=True took a step" in said


@around_the_wheel
def test_a_wheel_built_without_a_compiler_works_and_says_what_is_missing(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, tmp_path, {"CC": "/bin/false", "CXX": "/bin/false"})
    assert "largebatch/optim/kernels/cpu.py" in inside(wheel)
    assert LIBRARY not in inside(wheel)
    python = clean_venv(wheel, tmp_path)
    said = run([python, "-c", _INSTALLED], tmp_path, without_compilers(python))
    (default,) = [line for line in said.splitlines() if line.startswith("LAMB: foreach kernels on cpu (the default")]
    (asked,) = [line for line in said.splitlines() if line.startswith("fused=True raised")]
    for line in (default, asked):
        assert "the CPU kernels were not compiled when largebatch was installed" in line
        assert "C++ compiler" in line


# ---- sanitizers --------------------------------------------------------------------------------------------------

_STEPS = """
import ctypes, dataclasses, itertools, math, os, random, sys

import torch
from torch import nn
from largebatch.optim import LAMB, LANS, LARS
from largebatch.optim.kernels import cpu

found = ctypes.CDLL(sys.argv[1])
assert found.largebatch_version() == cpu._VERSION
found.largebatch_run.argtypes = [ctypes.POINTER(cpu._Work)]
calls = 0

def counted(work):
    global calls
    calls += 1
    return found.largebatch_run(work)

widest = found.largebatch_vectors()
library = cpu.Library(counted, widest, (None, None))  # threads of our own: those of OpenMP have no sanitizer
cpu.library = lambda: library

if "ONE_TOO_MANY_FROM" in os.environ:
    class TooMany(cpu._Table):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.elements[self.elements >= int(os.environ["ONE_TOO_MANY_FROM"])] += 1

    cpu._Table = TooMany

draw = random.Random(0)

def shape_of(count):
    dividers = [d for d in range(2, 200) if count % d == 0]
    if count == 1:
        return draw.choice([(), (1,), (1, 1)])
    if not dividers or draw.random() < 0.3:
        return draw.choice([(count,), (1, count), (count, 1)])
    first = draw.choice(dividers)
    rest = shape_of(count // first) if count // first > 1 else ()
    shape = [first, *rest]
    draw.shuffle(shape)
    return tuple(shape)

def lay(a):
    # An array of the same numbers in memory that ends with its last element, so that the next one is out of bounds.
    way = draw.choice(["dense", "dense", "offset", "transposed", "gaps", "any"])
    offset = 0 if way == "dense" else 1 if way == "offset" else draw.randrange(3)
    order = list(range(a.dim()))
    if way == "transposed":
        order.reverse()
    elif way == "any":
        draw.shuffle(order)
    gaps = way in ("gaps", "any")
    strides, reach = [0] * a.dim(), draw.choice([1, 2, 3]) if gaps else 1
    for d in reversed(order):
        strides[d] = reach
        reach = reach * a.shape[d] + (draw.randrange(3) if gaps else 0)
    length = offset + 1 + sum((size - 1) * stride for size, stride in zip(a.shape, strides))
    return torch.zeros(length, dtype=a.dtype).as_strided(a.shape, strides, offset).copy_(a)

def options_of(kind):
    options = {
        "norm": draw.choice([1, 2, 2, "inf"]),
        "adapt": draw.random() < 0.8,
        "maximize": draw.random() < 0.2,
        "weight_decay": draw.choice([0.0, 0.01]),
    }
    if kind is not LANS and draw.random() < 0.4:
        options["max_grad_norm"] = 1.0
    if kind is LARS:
        options["momentum"] = draw.choice([0.0, 0.9, 0.9])
        options["nesterov"] = options["momentum"] > 0 and draw.random() < 0.5
    else:
        options["nesterov"] = draw.choice([None, "first", "both"])
    return options

KINDS = [(LAMB, {}), (LANS, {})] + [(LARS, {"rule": rule}) for rule in ("algorithm1", "2017", "2017-lr-outside")]
SIZES = [1, 15, 16, 17, 63, 1023, 1024, 1025, 32767, 32768, 32769, 70000]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
steps = 0
for count, dtype, (kind, rule) in itertools.product(SIZES, DTYPES, KINDS):
    others = draw.choices(SIZES[:8], k=draw.randrange(3))
    made = [nn.Parameter(lay(torch.randn(shape_of(n)).to(dtype))) for n in (count, *others)]
    optimizer = kind(made, lr=0.01, master_weights=draw.random() < 0.5, fused=True, **rule, **options_of(kind))
    optimizer.init_state()
    for x in made:
        for key, a in optimizer.state[x].items():
            if key != "step":
                optimizer.state[x][key] = lay(a)
    library = dataclasses.replace(library, vectors=draw.randint(0, widest))
    at_once = draw.choice([1, 1 << 16, 1 << 25])
    cpu.cache_bytes = lambda: at_once
    torch.set_num_threads(draw.randint(1, 4))
    for _ in range(2):
        for x in made:
            x.grad = lay(torch.randn(x.shape).to(dtype))
        optimizer.step()
        steps += 1
    if not all(bool(x.isfinite().all()) for x in made):
        sys.exit(f"not finite: {kind} {rule} {count} {dtype}")
assert calls >= steps
print(steps, "steps")
"""


@functools.cache
def shared_object(name: str) -> str:
    """Return where the compiler has a library of its own."""
    told = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_sanitizers_find_nothing_in_the_kernels_but_what_is_put_there(tmp_path: Path) -> None:
    library = tmp_path / "sanitized.so"
    # The arithmetic is that of setup.py.
    words = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    words += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi", "-pthread"]
    run(["g++", *words, REPOSITORY / KERNELS / "cpu.cpp", "-o", library], tmp_path)
    script = tmp_path / "steps.py"
    script.write_text(_STEPS, encoding="utf-8")
    environment = {
        **os.environ,
        # The sanitizers have to come before all others, and must find the exceptions of C++ when they start.
        "LD_PRELOAD": " ".join(map(shared_object, ("libasan.so", "libubsan.so", "libstdc++.so"))),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python frees not everything at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tmp_path),
    }

    def told(**more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(script), str(library)]
        given = {**environment, **more}
        return subprocess.run(words, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=400)

    clean = told()
    assert clean.returncode == 0, clean.stderr
    assert "ERROR: AddressSanitizer" not in clean.stderr
    assert "runtime error" not in clean.stderr
    assert clean.stdout == "480 steps\n"
    for least in ("1", "32768"):  # the first steps of all, and some of several chunks
        broken = told(ONE_TOO_MANY_FROM=least)
        assert broken.returncode != 0
        assert "ERROR: AddressSanitizer: heap-buffer-overflow" in broken.stderr
        assert "sweep_piece" in broken.stderr
