"""Reads UBJSON as XGBoost writes it, without XGBoost: its own reader believes what a file says about itself."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

# Types of numbers by their marks. All are big-endian.
_NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_INTEGERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}
_CONSTANTS = {b"T": True, b"F": False, b"Z": None}
_MAX_DEPTH = 32
# A value takes a byte in the file, and a hundred of memory. An array of numbers is one value.
_MAX_VALUES = 1 << 22


def parse_ubjson(data: bytes) -> dict[str, Any]:
    """Return the object that `data` holds; arrays of numbers are arrays of NumPy.

    Raises:
        ValueError: it is no such object, goes on after its end, or gives a name twice.
    """
    if not data.startswith(b"{"):
        raise ValueError("is no UBJSON object")
    reader = _Reader(data)
    reader.take(1)
    document = reader.read_object(0)
    if reader.position != len(data):
        raise ValueError("goes on after its end")
    return document


class _Reader:
    def __init__(self, data: bytes):
        self._data = data
        self.position = 0
        self._count = 0

    def take(self, size: int) -> bytes:
        start = self.position
        if size < 0 or size > len(self._data) - start:
            raise ValueError("ends too early")
        self.position += size
        return self._data[start : self.position]

    def read_object(self, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while (mark := self.take(1)) != b"}":
            name = self._text(mark)
            if name in result:
                raise ValueError(f"gives {name[:60]!r} twice")
            result[name] = self._value(self.take(1), depth + 1)
        return result

    def _value(self, mark: bytes, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("is nested too deeply")
        self._count += 1
        if self._count > _MAX_VALUES:
            raise ValueError(f"has more than {_MAX_VALUES:,} values")
        if mark == b"{":
            return self.read_object(depth)
        if mark == b"[":
            return self._array(depth)
        if mark == b"S":
            return self._text(self.take(1))
        if mark in _NUMBERS:
            size = np.dtype(_NUMBERS[mark])
            return np.frombuffer(self.take(size.itemsize), size)[0].item()
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        raise ValueError("has a value of no known type")

    def _array(self, depth: int) -> Any:
        mark = self.take(1)
        if mark == b"$":
            number = _NUMBERS.get(self.take(1))
            if number is None or self.take(1) != b"#":
                raise ValueError("has an array of no known type")
            dtype = np.dtype(number)
            numbers = np.frombuffer(self.take(self._length(self.take(1)) * dtype.itemsize), dtype)
            return numbers.astype(dtype.newbyteorder("="))
        if mark == b"#":
            # Each value takes a byte at least, so a false length ends at the end of the file.
            return [self._value(self.take(1), depth + 1) for _ in range(self._length(self.take(1)))]
        values: list[Any] = []
        while mark != b"]":
            values.append(self._value(mark, depth + 1))
            mark = self.take(1)
        return values

    def _text(self, mark: bytes) -> str:
        return self.take(self._length(mark)).decode()

    def _length(self, mark: bytes) -> int:
        if mark not in _INTEGERS:
            raise ValueError("has a length that is no number")
        form = _INTEGERS[mark]
        (length,) = struct.unpack(form, self.take(struct.calcsize(form)))
        if length < 0:
            raise ValueError("has a negative length")
        return int(length)
