"""What a verdict depends on besides evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evergreen import gates
from evergreen.lake import fingerprints
from evergreen.spec.gates import Gate


def judging_code(judged_by: Sequence[Gate] = ()) -> dict[str, Any]:
    """What a verdict depends on besides evidence and gates: the gates' code, and that of functions they name."""
    folder = Path(next(iter(gates.__path__)))
    modules = sorted(
        ".".join((gates.__name__, *file.relative_to(folder).with_suffix("").parts))
        for file in folder.rglob("*.py")
        if file.name != "__init__.py"
    )
    return fingerprints.code(modules, ("numpy", "scipy")) | {
        name: _code_of(name) for name in _functions(judged_by)
    }


def _functions(judged_by: Sequence[Gate]) -> list[str]:
    named = {getattr(gate, field, None) for gate in judged_by for field in ("metric", "function")}
    return sorted(name for name in named if name and ":" in name)


def _code_of(function: str) -> dict[str, str] | None:
    """None: there is no such module. That is for the gate to tell."""
    try:
        return fingerprints.code((function.partition(":")[0],), ())
    except (ModuleNotFoundError, AttributeError):
        return None
