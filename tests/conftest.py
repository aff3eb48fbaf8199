"""What every test may ask for."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The tests say what is set; nothing of the shell they are started from reaches them or the commands they run.
for name in [name for name in os.environ if name.upper().startswith("CALLCENTER_")]:
    del os.environ[name]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture
def callcenter(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command in a directory of its own: ``callcenter("settings", env={"CALLCENTER_HTTP__PORT": "81"})``."""

    def run(
        *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "", seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "callcenter", *arguments],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run
