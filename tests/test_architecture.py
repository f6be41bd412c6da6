"""The shape of the house: arrows point one way, engines know no Python, levels share no code."""

from __future__ import annotations

import ast
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastack
from fastack.options import flat_names, sky_names

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fastack"
NATIVE = {"_pixels", "_levels", "_maps", "_match", "_transform", "_sky"}


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module imports, wherever in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "fastack":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("fastack."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("fastack.")}
    return found - {"__version__"} - NATIVE


def test_every_module_has_its_place() -> None:
    modules = {p.stem for p in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == {*fastack.BASE, *fastack.STAGES}


@pytest.mark.parametrize("module", [*fastack.BASE, *fastack.STAGES])
def test_arrows_point_one_way(module: str) -> None:
    order = [*fastack.BASE, *fastack.STAGES]
    allowed = set(fastack.BASE if module in fastack.BASE else order[: order.index(module)])
    assert imports_of(module) <= allowed


def test_pipeline_alone_knows_all_stages_and_cli_none_of_the_kernels() -> None:
    assert imports_of("cli") & {"detect", "measure", "match", "resample", "combine"} == set()


def test_engine_is_free_of_python() -> None:
    for path in [*(ROOT / "csrc" / "fastack").iterdir(), *(ROOT / "csrc" / "rows").iterdir()]:
        assert not re.search(r"Python\.h|pybind11", path.read_text()), path


def test_rows_use_no_standard_library_containers() -> None:
    for path in (ROOT / "csrc" / "rows").glob("*.inl"):
        included = re.findall(r"#include <(\w+)>", path.read_text())
        assert not included, f"{path} includes {included}"


@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("c++")), reason="no compiler and nm to look with")
def test_levels_share_no_code(tmp_path: Path) -> None:
    """A weak symbol of one level could be the copy that the linker keeps for all: SIGILL on an older processor."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    made = tmp_path / "level.o"
    source = ROOT / "csrc" / "rows" / f"level_{'v4' if x86 else 'neon'}.cpp"
    flags = ["-march=x86-64-v4", "-mprefer-vector-width=512"] if x86 else []
    # little optimisation: what would else be inlined shows as a weak symbol
    command = ["c++", "-std=c++20", "-O1", "-w", f"-I{ROOT / 'csrc'}", *flags, "-c", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    listing = subprocess.run(["nm", "-C", str(made)], capture_output=True, text=True, check=True).stdout
    weak = [line for line in listing.splitlines() if re.search(r" [WV] ", line)]
    assert not weak, weak
    assert re.search(r" [RDr] .*table", listing)


def test_every_option_is_a_flag() -> None:
    from fastack.cli import _SETTINGS, _SKY_SETTINGS

    assert set(_SETTINGS) == set(flat_names())
    assert set(_SKY_SETTINGS) == set(sky_names())
    assert not set(_SETTINGS) & set(_SKY_SETTINGS)


def test_every_kernel_stage_has_its_files() -> None:
    for stage in ("calibrate", "background", "detect", "measure", "resample", "combine"):
        for path in (
            f"src/fastack/{stage}.py", f"csrc/fastack/{stage}.hpp", f"csrc/fastack/{stage}.cpp",
            f"csrc/rows/{stage}.inl", f"csrc/bindings/{stage}.cpp", f"tests/test_{stage}.py",
            f"tests/reference/{stage}.py", f"benchmarks/bench_{stage}.py", f"docs/{stage}.md",
        ):  # fmt: skip
            assert (ROOT / path).is_file(), path
