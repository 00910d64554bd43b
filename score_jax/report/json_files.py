"""Small JSON files of a workdir, read and written without JAX."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Reads a JSON file; None if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    partial.replace(path)
