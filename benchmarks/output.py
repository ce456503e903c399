"""What a benchmark leaves: lines of progress on stderr, and one result file."""

import json
import sys
from pathlib import Path
from typing import Any

from jaxprobe.host.paths import replacing


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_result(result: dict[str, Any], path: Path) -> None:
    """The file is whole or absent; its folder is made."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
