"""The demo, interrupted as a terminal does it: everything at work gets the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aftermath import processes, wait_until
from conftest import ROOT, clean_environ


@pytest.mark.slow
def test_interrupted_while_the_bar_is_filled(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "invoke", "demo"],
        cwd=ROOT,
        env={**clean_environ(), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        wait_until(lambda: any("happy_bar.sql" in args for _, args in processes()), "psql")
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (130, "Ended by SIGINT.\n")
    assert list(tmp_path.glob("happy-bar-*")) == []
    assert [args for _, args in processes() if str(tmp_path) in args] == []
