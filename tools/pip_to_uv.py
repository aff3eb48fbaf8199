"""Prints this machine's pip configuration as shell assignments for uv, which has its own names for it.

A variable that is set already is left alone: uv's own configuration wins.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
}


def main() -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    found = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        scope, _, option = name.partition(".")
        # pip lists the general section, that of `install`, and the environment; the later one wins.
        if scope in {"global", "install", ":env:"} and option in VARIABLES:
            words = value.strip("'\"").replace("\\n", " ").split()
            # pip passes over a directory that is not there, uv gives up.
            found[VARIABLES[option]] = " ".join(
                word for word in words if "://" in word or Path(word).exists()
            )
    # Every file is checked against its hash, so the best match of all indexes is as safe as the first one's.
    found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    for variable, value in found.items():
        if variable not in os.environ and value:
            separator = "," if variable == "UV_FIND_LINKS" else " "
            print(f"export {variable}={shlex.quote(separator.join(value.split()))}")


if __name__ == "__main__":
    main()
