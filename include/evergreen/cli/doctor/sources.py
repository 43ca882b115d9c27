"""Check of raw data: whether what the sources of all models name can be reached, by the code that reads it."""

from __future__ import annotations

from evergreen import storage
from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed, UnreachableError
from evergreen.errors import EvergreenError, first_line
from evergreen.ingest import raw_files
from evergreen.ingest.raw_files import ExtractError
from evergreen.spec.loader import feature_spec, load_spec, model_names
from evergreen.spec.origins import Origin, RawFiles


def check_sources() -> CheckPassed:
    """Check the folder of raw files, and every database and table that a source reads."""
    from evergreen.ingest import extracts  # loads engines

    problems, fixes = [], []
    try:
        storage.list_names(raw_files.raw_folder())
    except (OSError, ValueError, ImportError) as error:
        raise UnreachableError(f"cannot be listed: {first_line(error)}", "correct EVERGREEN_RAW") from None
    checked: set[Origin] = set()
    for name in model_names():
        try:
            spec = feature_spec(load_spec(name))
        except EvergreenError:
            continue  # as the check of models says
        for source in spec.sources:
            origin = source.origin
            if isinstance(origin, RawFiles) or origin in checked:
                continue
            checked.add(origin)
            try:
                extracts.check_connection(origin, spec.calendar)
            except ExtractError as error:
                problems.append(f"{name}.{source.name}: {error}")
                fixes.append(error.fix)
            except OSError as error:
                problems.append(f"{name}.{source.name}: {first_line(error)}")
                fixes.append("start it, or correct its URL")
    if problems:
        raise CheckFailedError("; ".join(problems), "; ".join(dict.fromkeys(fixes)))
    noun = "query or table" if len(checked) == 1 else "queries and tables"
    reached = f"{len(checked)} {noun} can be reached" if checked else "no source is a query or a table"
    return CheckPassed(f"the folder of raw files can be listed; {reached}")
