"""Imports Feast without checks of the types of arguments, unless it is imported already.

Feast decorates its classes with `typeguard.typechecked`, which parses the source of the module again for each of their
methods: 4 of the 4.6 seconds of CPU that the import takes. To read features needs none of these checks.
`evergreen check` adds those of the classes that people call. Tasks that build features import Feast themselves, with
all checks; and what is applied becomes Protocol Buffers, which refuse values of other types.
"""

import sys
from typing import Any

import typeguard

_HAS_CHECKS = "feast" in sys.modules


def _return_unchanged(target: Any) -> Any:
    return target


_typechecked = typeguard.typechecked
typeguard.typechecked = _return_unchanged  # type: ignore[assignment]
try:
    import feast  # all of its classes with that decorator
finally:
    typeguard.typechecked = _typechecked


def check_declarations() -> None:
    """Check the types of the arguments of what a feature repository declares, as Feast's decorator does."""
    if not _HAS_CHECKS:
        for declared_class in (feast.Entity, feast.FeatureService, feast.FeatureView, feast.Field):
            declared_class.__init__ = _typechecked(declared_class.__init__)  # type: ignore[method-assign]
