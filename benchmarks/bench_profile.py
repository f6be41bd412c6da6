"""The profile of pass 1 runs and knows every stage: ``pytest benchmarks/bench_profile.py``."""

from __future__ import annotations

import re

import profile_pass1

from fastack.simulate import NightOptions, simulate_night


def bench_profile_of_pass_1(tmp_path, capsys):
    simulate_night(NightOptions(n_frames=2, shape=(160, 192), n_stars=40)).write(tmp_path)
    profile_pass1.main([str(tmp_path / "d*.fits"), "--runs", "1"])
    total, *stages = capsys.readouterr().out.splitlines()
    milliseconds = {name: float(value) for name, value in (re.findall(r"(\S+) +([\d.]+) ms", s)[0] for s in stages)}
    assert set(milliseconds) == {name for _, name in profile_pass1.STAGES}
    assert 0 < sum(milliseconds.values()) <= float(total.split()[0]) + 0.1
