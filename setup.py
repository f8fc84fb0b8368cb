"""Compiles the CPU kernels; all else stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("src/largebatch/optim/kernels")


class BuildKernels(build_ext):
    """A plain shared library: it has no need of Python's headers, nor of its version."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class WheelOfAnyPython(bdist_wheel):
    """Name the platform, but no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "largebatch.optim.kernels._cpu",
            sources=[str(KERNELS / "cpu.cpp")],
            depends=[str(KERNELS / name) for name in ("cpu_sweeps.h", "cpu_threads.h")],
            language="c++",
            extra_compile_args=[
                *("-std=c++17", "-O3", "-fvisibility=hidden", "-pthread", "-Wno-psabi"),
                # None of these lets the compiler change the order of sums.
                *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
            ],
            extra_link_args=[] if sys.platform == "darwin" else ["-pthread", "-Wl,-s"],
            optional=True,  # without a compiler the multi-tensor kernels do the work
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": WheelOfAnyPython},
)
