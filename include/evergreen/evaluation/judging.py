"""What a verdict depends on besides evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evergreen import gates
from evergreen.lake import fingerprints
from evergreen.spec.gates import Gate


def judging_code(model_gates: Sequence[Gate] = ()) -> dict[str, Any]:
    """What a verdict depends on besides evidence and gates: the gates' code, and that of functions they name."""
    folder = Path(next(iter(gates.__path__)))
    modules = sorted(
        ".".join((gates.__name__, *file.relative_to(folder).with_suffix("").parts))
        for file in folder.rglob("*.py")
        if file.name != "__init__.py"
    )
    return fingerprints.code_versions(modules, ("numpy", "scipy")) | {
        name: _function_code(name) for name in _custom_functions(model_gates)
    }


def _custom_functions(model_gates: Sequence[Gate]) -> list[str]:
    named = {getattr(gate, field, None) for gate in model_gates for field in ("metric", "function")}
    return sorted(name for name in named if name and ":" in name)


def _function_code(function: str) -> dict[str, str] | None:
    """None: there is no such module. That is for the gate to tell."""
    try:
        return fingerprints.code_versions((function.partition(":")[0],), ())
    except (ModuleNotFoundError, AttributeError):
        return None
