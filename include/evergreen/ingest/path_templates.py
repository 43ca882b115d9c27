"""From a period to the path of its files, and back. The one place that knows how a template is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property, lru_cache

from evergreen.spec.origins import PLACEHOLDER, PLACEHOLDERS, RawFiles


def source_template(source: str, files: RawFiles, *, daily: bool) -> str:
    """Return the template of a source's paths, below the folder of raw data."""
    return files.path or (f"{source}/day=%Y-%m-%d/{source}.parquet" if daily else f"{source}/{source}.parquet")


def period_path(template: str, day: date | None) -> str:
    """Return the path of a period's files; of a folder, with `/` at its end."""
    return datetime.combine(day, time()).strftime(template) if day else template


def name_pattern(name: str) -> re.Pattern[str]:
    """Return what the name of a part has to match."""
    return re.compile("[^/]*".join(map(re.escape, name.split("*"))))


@dataclass(frozen=True)
class PeriodTemplate:
    """A template, to be found in listings."""

    text: str

    @cached_property
    def folders(self) -> tuple[str | re.Pattern[str], ...]:
        """The name of each folder on the way to the files, or what it has to match."""
        return tuple(map(self._name_or_pattern, self._segments[0]))

    @cached_property
    def file(self) -> str | re.Pattern[str] | None:
        """The same for the names of the files; None if all files below the last folder count."""
        return self._name_or_pattern(self._segments[1]) if self._segments[1] else None

    @cached_property
    def fixed_folders(self) -> str:
        """The folders at its start that are the same for all periods, joined by `/`."""
        names: list[str] = []
        for segment in self._segments[0]:
            if "%" in segment:
                break
            names.append(segment)
        return "/".join(names)

    def day_of(self, path: str) -> date | None:
        """Return the day that a path, or the beginning of it, belongs to; None if it belongs to none."""
        return _find_day(self, path)

    def match_day(self, path: str) -> date | None:
        """Do what `day_of` does, which remembers it."""
        match = self._whole.match(path)
        if not match:
            return None
        letters = match.groupdict()
        try:
            return date(*(int(letters[letter]) for letter in "Ymd"))
        except (ValueError, KeyError):
            return None

    @cached_property
    def _segments(self) -> tuple[list[str], str]:
        *folders, name = self.text.split("/")
        return folders, name

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        end = "" if self.text.endswith("/") else r"\Z"
        return re.compile(self._expression(self.text) + end)

    def _name_or_pattern(self, segment: str) -> str | re.Pattern[str]:
        return re.compile(self._expression(segment)) if "%" in segment or "*" in segment else segment

    @staticmethod
    def _expression(text: str) -> str:
        pieces, seen, end = [], set[str](), 0
        for match in PLACEHOLDER.finditer(text):
            pieces.append(re.escape(text[end : match.start()]).replace(r"\*", "[^/]*"))
            letter, end = match[1], match.end()
            pieces.append(f"(?P={letter})" if letter in seen else f"(?P<{letter}>{PLACEHOLDERS[letter]})")
            seen.add(letter)
        return "".join(pieces) + re.escape(text[end:]).replace(r"\*", "[^/]*")


@lru_cache(maxsize=65_536)  # polls see the same paths again and again
def _find_day(template: PeriodTemplate, path: str) -> date | None:
    return template.match_day(path)
