"""A few rounds of the script that kills both tiers under load."""

import json
import subprocess
import sys
from pathlib import Path


def test_what_was_acknowledged_outlives_being_killed():
    script = Path(__file__).with_name("kill.py")
    command = [sys.executable, script, "--daemon", "4", "--server", "4"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280, check=False)
    figures = json.loads(run.stdout)
    assert run.returncode == 0, figures
    assert figures["acknowledged"] > 100
