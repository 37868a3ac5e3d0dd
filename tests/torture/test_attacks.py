"""A few of the attacks on files and processes, which `nox -s torture` makes many of."""

import subprocess
import sys
from pathlib import Path

import attacks
import pytest


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_no_bit_is_flipped_unnoticed(tmp_path, seed):
    bits = attacks.flip_bits(tmp_path, 15 if seed == 1 else 60, seed)
    assert bits.keys() <= attacks.SAID, bits
    assert min(bits["no difference"], bits["refused"]) > 0


@pytest.mark.thorough
def test_attacks_are_said_and_nothing_is_lost():
    script = Path(attacks.__file__)
    command = [sys.executable, script, "--bits", "1", "--rounds", str(len(attacks.ATTACKS))]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr
