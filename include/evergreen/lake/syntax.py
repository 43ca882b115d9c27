"""What counts of Python code in a fingerprint: its syntax, and what it imports.

It imports nothing of Evergreen, so that processes that fork tasks can parse code before (`evergreen.plugin.preload`).
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from typing import NamedTuple


class Syntax(NamedTuple):
    """Code without comments and formatting."""

    hash: str
    imports: tuple[tuple[str, tuple[str, ...]], ...]
    """Names by the module that they are imported from, with its leading dots; "" for modules themselves."""


@cache
def parse_code(code: bytes) -> Syntax:
    """Parse the code of a module, wherever in it an import statement is. It is kept by its content.

    Raises:
        SyntaxError: it is no Python.
    """
    tree, imports = ast.parse(code), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.append(("", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            imports.append((module, tuple(alias.name for alias in node.names)))
    return Syntax(hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), tuple(imports))
