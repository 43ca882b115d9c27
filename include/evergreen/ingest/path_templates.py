"""From a period to the path of its files, and back. The one place that knows how a template is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache, cached_property

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


_MAX_REMEMBERED = 65_536


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
        """Return the day of a path of a file, or of the folder that it begins with; None if it belongs to none."""
        if path not in self._days:
            if len(self._days) >= _MAX_REMEMBERED:
                self._days.clear()
            self._days[path] = self._match_day(path)
        return self._days[path]

    def _match_day(self, path: str) -> date | None:
        match = self._whole.match(path)
        if not match:
            return None
        letters = match.groupdict()
        try:
            return date(*(int(letters[letter]) for letter in "Ymd"))
        except ValueError:
            return None

    @cached_property
    def _days(self) -> dict[str, date | None]:
        """What polls have seen: they see it again and again."""
        return {}

    @cached_property
    def _segments(self) -> tuple[list[str], str]:
        *folders, name = self.text.split("/")
        return folders, name

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        folder, separator, name = self.text.rpartition("/")
        if "%" not in name and "*" not in name:  # the folder says all
            return re.compile(self._expression(folder + separator))
        return re.compile(self._expression(self.text) + r"\Z")

    def _name_or_pattern(self, segment: str) -> str | re.Pattern[str]:
        return re.compile(self._expression(segment)) if "%" in segment or "*" in segment else segment

    @staticmethod
    def _expression(text: str) -> str:
        pieces, letters, end = [], set[str](), 0
        for match in PLACEHOLDER.finditer(text):
            pieces.append(re.escape(text[end : match.start()]).replace(r"\*", "[^/]*"))
            letter, end = match[1], match.end()
            pieces.append(f"(?P={letter})" if letter in letters else f"(?P<{letter}>{PLACEHOLDERS[letter]})")
            letters.add(letter)
        return "".join(pieces) + re.escape(text[end:]).replace(r"\*", "[^/]*")


@cache
def period_template(text: str) -> PeriodTemplate:
    """Return the template, which remembers what it has found."""
    return PeriodTemplate(text)
