"""File formats allowed in a registered model: they hold data and run no code when they are loaded.

An allow list: a file of any other name is invalid. And the content must match the name, since libraries look at the
content: a pickle that is called `model.ubj` is a pickle.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from evergreen import storage
from evergreen.errors import Fault
from evergreen.scoring.lightgbm_file import parse_lightgbm
from evergreen.scoring.xgboost_file import parse_xgboost

_TEXT_FILES = frozenset({"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"})  # what MLflow writes
_PICKLE_SUFFIXES = frozenset(
    [".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".sav"]
)
_FIX_USE_KNOWN_FORMAT = "use XGBoost's UBJSON (.ubj), LightGBM's text (.lgb), ONNX, JSON, or what MLflow writes itself"
_FIX_SAVE_IN_NATIVE_FORMAT = "save the model in its library's own format: model.ubj, model.lgb or model.onnx"

# Opcodes by which unpickling imports or calls something; the others only build plain values.
_CODE_OPCODES = frozenset(
    ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4"]
)
# Beginnings of the formats that joblib and NumPy may wrap a pickle in; the last line is zlib.
_PICKLE_WRAPPER_MAGIC = (
    *(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x04\x22M\x18", b"\x93NUMPY"),
    *(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"),
)
_MAX_TEXT_PICKLE_BYTES = 1 << 20
_MAX_TEXT_BYTES = 1 << 20
_MAX_JSON_BYTES = 1 << 24
_MAX_TREES_BYTES = 1 << 29
_MAX_FILES = 100


def iter_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield everything in `folder` that is no folder: its path relative to `folder`, with slashes, and its path."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def format_faults(folder: Path) -> list[Fault]:
    """Return one fault per file in `folder` that is not allowed in a model, whoever has written it."""
    files = list(iter_files(folder))
    if len(files) > _MAX_FILES:
        return [Fault("the folder", f"has {len(files):,} files, more than any model", _FIX_USE_KNOWN_FORMAT)]
    problems = ((name, format_problem(path) or _name_problem(name, path)) for name, path in files)
    return [Fault(_printable(name), *problem) for name, problem in problems if problem]


def format_problem(path: Path) -> tuple[str, str] | None:
    """Return the problem of a file and its fix; None if it is allowed in a model."""
    if path.is_symlink() or not path.is_file():
        return "is a link or a device, not a file", "log the file itself"
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        return "is of a format that can run code when it is loaded", _FIX_SAVE_IN_NATIVE_FORMAT
    check = _text_problem if path.name in _TEXT_FILES else _CONTENT_CHECKS.get(path.suffix)
    if check is None:
        return "is of no known format", _FIX_USE_KNOWN_FORMAT
    if problem := _pickle_problem(path):
        return problem, _FIX_SAVE_IN_NATIVE_FORMAT
    if problem := check(path):
        return problem, "log the model again from one file that loads by itself"
    return None


def _name_problem(name: str, path: Path) -> tuple[str, str] | None:
    try:
        storage.check_relative_path(name)
    except ValueError:
        return "has a name that no file of a model has", "name it by ASCII letters, digits, and . _ - + ="
    if not storage.is_plain_file(path):
        return "has a second name outside of the model (a hard link)", "log the file itself"
    return None


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _pickle_problem(path: Path) -> str | None:
    """Return how the file contains a pickle, whatever its name; None if it does not."""
    name = path.suffix or path.name
    pickle = f"is a pickle named {name}: it can run code when it is loaded"
    with path.open("rb") as stream:
        head = stream.read(16)
        if head[:1] == b"\x80" and head[1:2] <= b"\x05":
            return pickle
        if head.startswith(_PICKLE_WRAPPER_MAGIC):
            return f"is a compressed or NumPy file named {name}: it may hold a pickle"
        stream.seek(0)
        if _is_code_pickle(stream.read(_MAX_TEXT_PICKLE_BYTES)):
            return pickle
    try:
        # Read from the end of the file, so also after harmless content.
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if not inside:
        return None  # the end mark of an archive, which numbers of a model may look like
    pickles = [file for file in inside if Path(file).suffix in _PICKLE_SUFFIXES]
    content = f" that holds {pickles[0]}" if pickles else ""
    return f"is a zip archive{content}, named {name}: it can run code when it is loaded"


def _is_code_pickle(content: bytes) -> bool:
    """Return whether it is a pickle of a protocol without a first byte of its own (0 or 1) that calls something."""
    try:
        opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    except Exception:  # of any class: it is no pickle
        return False
    return bool(opcodes & _CODE_OPCODES)


def _parsing_problem(parse: Callable[[bytes], object], path: Path) -> str | None:
    if path.stat().st_size > _MAX_TREES_BYTES:
        return f"has more than {_MAX_TREES_BYTES:,} bytes of trees"
    try:
        parse(path.read_bytes())
    except UnicodeDecodeError:
        return "is no text"
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _onnx_problem(path: Path) -> str | None:
    content = path.read_bytes()
    # A protobuf whose first field, number 1 and a varint, is the version of the format.
    if not content.startswith(b"\x08"):
        return "is no ONNX model"
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return "is no ONNX model"
    # An external file is neither hashed nor signed, and may be any file that the reader can read.
    if location := next(_external_data_locations(model), None):
        return f"has numbers of the model outside of it, in {location}"
    return None


def _external_data_locations(message: Any) -> Iterator[str]:
    """Yield the locations of tensors that are not in the file, at any depth of the message."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.external_data or message.data_location == onnx.TensorProto.EXTERNAL:
            locations = [entry.value for entry in message.external_data if entry.key == "location"]
            yield ", ".join(locations) or "a place that it does not name"
        return
    for field, value in message.ListFields():
        if field.message_type:
            for part in value if field.is_repeated else [value]:
                yield from _external_data_locations(part)


def _json_problem(path: Path) -> str | None:
    if path.stat().st_size > _MAX_JSON_BYTES:
        return f"has more than {_MAX_JSON_BYTES:,} bytes of JSON"
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "is no JSON"
    return None


def _text_problem(path: Path) -> str | None:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        return f"has more than {_MAX_TEXT_BYTES:,} bytes of text"
    try:
        return "is no text" if "\0" in path.read_text(encoding="utf-8") else None
    except UnicodeDecodeError:
        return "is no text"


_CONTENT_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".ubj": partial(_parsing_problem, parse_xgboost),
    ".lgb": partial(_parsing_problem, parse_lightgbm),
    ".onnx": _onnx_problem,
    ".json": _json_problem,
    ".sig": _json_problem,  # a signature is a JSON document too
    ".yaml": _text_problem,
    ".yml": _text_problem,
}
