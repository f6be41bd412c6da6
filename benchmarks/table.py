"""Put saved results of ``bench_stack.py`` as Markdown between markers into README.md, docs/performance.md.

    python benchmarks/table.py stack-M.json [more.json ...]

A file takes part if it holds ``<!-- stack-M -->`` and ``<!-- /stack-M -->``: what stands between is replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("README.md", "docs/performance.md")


def _percent(value: float) -> str:
    return f"{100 * value:+.2f} %"


QUALITY: list[tuple[str, Callable[[dict[str, float]], str]]] = [
    ("noise / optimum", lambda q: f"{q['noise_equal']:.3f} ± {q['noise_err']:.3f}"),
    ("flux exponent − 1", lambda q: f"{q['flux_exponent'] - 1:+.4f} ± {q['flux_exponent_err']:.4f}"),
    ("bright stars lose", lambda q: f"{100 * q['bright_loss']:.2f} ± {100 * q['bright_loss_err']:.2f} %"),
    ("artefacts left", lambda q: f"{q['artefacts_left']:.0f} of {q['artefacts']:.0f}"),
    ("outliers", lambda q: f"{q['outliers']:.0f}"),
    ("FWHM", lambda q: _percent(q["fwhm_ratio"] - 1)),
    ("astrometry, px", lambda q: f"{q['astrometry']:.3f}"),
]


def stack_table(result: dict[str, Any]) -> str:
    """Markdown of one run of ``bench_stack.py``: speed first, then quality, then how it was measured."""
    rows = result["rows"]
    done = {name: row for name, row in rows.items() if "wall" in row}
    base = done.get("fastack") or (min(done.values(), key=lambda row: row["wall"]) if done else None)
    speed = [["", "wall s", "CPU s", "peak MiB", "ns / pixel", "wall ratio"]]
    quality = [["", *(title for title, _ in QUALITY)]]
    for name, row in done.items():
        low, high = row["wall_range"]
        wall = f"{row['wall']:.2f} ({low:.2f} to {high:.2f})"
        ratio = f"{row['wall'] / base['wall']:.1f}" if base else ""
        speed.append([name, wall, f"{row['cpu']:.2f}", f"{row['peak']:.0f}", f"{row['ns']:.1f}", ratio])
        quality.append([name, *(text(row["quality"]) for _, text in QUALITY)])
    n, ny, nx = result["frames"]
    machine = result["machine"]
    notes = [f"{n} frames of {nx}x{ny} uint16; median of {max((r['runs'] for r in done.values()), default=0)} runs"]
    notes[0] += f" in turn (range); {machine['cpu']}, {machine['threads']} threads, Python {machine['python']}."
    notes += [f"{name}: {row['says']}." for name, row in done.items()]
    notes += [
        f"{name}: {row.get('skipped') or 'failed: ' + row['failed'][:200]}"
        for name, row in rows.items()
        if name not in done
    ]
    notes.append(f"`{result['command']}`")
    return "\n\n".join([_markdown(speed), _markdown(quality), "\n".join(f"* {note}" for note in notes)])


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def insert(text: str, label: str, table: str) -> str:
    """Put `table` between the markers of `label`; `text` without them comes back as it is."""
    start, end = f"<!-- {label} -->", f"<!-- /{label} -->"
    if start not in text or end not in text:
        return text
    before, rest = text.split(start, 1)
    return f"{before}{start}\n{table}\n{end}{rest.split(end, 1)[1]}"


def main(paths: list[str]) -> int:
    for path in paths:
        result = json.loads(Path(path).read_text())
        for target in (ROOT / name for name in TARGETS):
            if target.is_file():
                old = target.read_text()
                new = insert(old, f"stack-{result['set']}", stack_table(result))
                if new != old:
                    target.write_text(new)
                    print(f"{target.relative_to(ROOT)}: stack-{result['set']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
