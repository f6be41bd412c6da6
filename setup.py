"""The native build and nothing else; the metadata stands in pyproject.toml.

The row functions (csrc/rows) are compiled once for every instruction set of the target and linked into
one module, which chooses at import. ``FASTACK_BUILD_ISA=v3`` builds a single level, for quick work.
"""

from __future__ import annotations

import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import pybind11
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

X86 = {
    "v2": ["-march=x86-64-v2"],
    "v3": ["-march=x86-64-v3", "-mprefer-vector-width=256"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
# Without the last two GCC leaves masked float loops scalar; neither changes what NaN and Inf mean.
COMMON = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Vectors never cross the border of a level, so that it does not matter how they would be passed. GCC 12 takes its own
# header of AVX-512 for uninitialised.
QUIET = ["-Wno-psabi", "-Wno-maybe-uninitialized"]
ROWS = [*COMMON, *QUIET, "-fno-trapping-math", "-fno-math-errno", "-ffp-contract=fast"]


def levels() -> dict[str, list[str]]:
    """Instruction sets to build, by the platform that the build is for."""
    platform = sysconfig.get_platform()
    if platform.endswith(("x86_64", "amd64")):
        every = X86
    elif platform.endswith(("aarch64", "arm64")):
        every = {"neon": []}
    else:
        every = {"generic": []}
    only = os.environ.get("FASTACK_BUILD_ISA")
    return {only: every[only]} if only else every


class BuildExt(build_ext):
    """Compile the row functions once for each instruction set and link all of them in."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the objects in parallel, then link."""
        if ext.name == "fastack._pixels" and (
            self.force or newer_group(ext.depends, self.get_ext_fullpath(ext.name), "newer")
        ):
            jobs = int(os.environ.get("FASTACK_BUILD_JOBS", os.cpu_count() or 1))
            macros = [(f"FASTACK_HAVE_{level.upper()}", "1") for level in levels()]

            # what a level's macros made of an object must not serve another set of levels
            output_dir = os.path.join(self.build_temp, "-".join(levels()))
            headers = [path for path in ext.depends if not path.endswith((".cpp", ".inl"))]
            inlined = glob("csrc/rows/*.inl")

            def compile_one(task: tuple[str, list[str]]) -> list[str]:
                source, flags = task
                inputs = [source, *headers, *(inlined if source.startswith("csrc/rows/") else [])]
                objects: list[str] = self.compiler.object_filenames([source], output_dir=output_dir)
                if not self.force and not newer_group(inputs, objects[0], "newer"):
                    return objects
                objects = self.compiler.compile(
                    [source],
                    output_dir=output_dir,
                    include_dirs=["csrc", *ext.include_dirs],
                    macros=macros,
                    extra_postargs=flags,
                )
                return objects

            tasks = [(f"csrc/rows/level_{level}.cpp", ROWS + flags) for level, flags in levels().items()]
            tasks += [(str(source), COMMON) for source in ext.sources]
            with ThreadPoolExecutor(jobs) as pool:
                for objects in pool.map(compile_one, tasks):
                    ext.extra_objects += objects
            ext.sources = []
        super().build_extension(ext)


sources = sorted(glob("csrc/fastack/*.cpp") + glob("csrc/bindings/*.cpp") + ["csrc/rows/table.cpp"])
pixels = Extension(
    "fastack._pixels",
    sources=sources,
    depends=["setup.py", *sources, *glob("csrc/*/*.hpp"), *glob("csrc/rows/*")],
    # python headers come through build_ext's own include path
    include_dirs=[pybind11.get_include(), sysconfig.get_path("include")],
    language="c++",
)
loops = [
    Extension(f"fastack.{name}", [f"src/fastack/{name}.pyx"], extra_compile_args=["-O3"])
    for name in ("_levels", "_maps", "_match", "_transform", "_sky")
]

setup(
    ext_modules=[pixels, *cythonize(loops, build_dir="build/cython", language_level=3)],
    cmdclass={"build_ext": BuildExt},
)
