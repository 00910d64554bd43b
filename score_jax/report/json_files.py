"""Small JSON files of a workdir, read and written without JAX."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """A JSON file's value, None if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    partial.replace(path)
