"""Which files may be in a registered model: formats that hold data and run no code when they are loaded.

A list of what is known, not of what is bad: a file that is not on it is refused by its name. And a file must
be what its name says, since libraries look at the content: a pickle that is called `model.ubj` is a pickle.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evergreen.errors import Fault

_TEXT_FILES = frozenset({"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"})  # what MLflow writes
_PICKLE_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".sav"}
)
_FIX_USE_KNOWN_FORMAT = (
    "known are XGBoost's UBJSON (.ubj), ONNX, JSON, and MLflow's own MLmodel, YAML and requirements.txt"
)
_FIX_SAVE_IN_NATIVE_FORMAT = "save the model in its library's own format, such as .ubj for XGBoost or .onnx"

# Opcodes by which unpickling imports or calls something; the others only build plain values.
_CODE_OPCODES = frozenset(
    {
        "GLOBAL",
        "STACK_GLOBAL",
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "REDUCE",
        "BUILD",
        "EXT1",
        "EXT2",
        "EXT4",
    }
)
# What joblib and NumPy may wrap a pickle in.
_PICKLE_WRAPPER_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x04\x22M\x18", b"\x93NUMPY")
_ZLIB_MAGIC = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def iter_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Everything in `folder` that is no folder: its path relative to `folder`, with slashes, and where it lies."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def format_faults(folder: Path) -> list[Fault]:
    """What in `folder` may not be in a model: one fault per file, empty if all are known formats."""
    found = ((name, format_problem(path)) for name, path in iter_files(folder))
    return [Fault(name, *wrong) for name, wrong in found if wrong]


def format_problem(path: Path) -> tuple[str, str] | None:
    """What is wrong with a file, and the way out; None if it may be in a model."""
    if path.is_symlink() or not path.is_file():
        return "is a link or a device, not a file", "log the file itself"
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        return "is of a format that can run code when it is loaded", _FIX_SAVE_IN_NATIVE_FORMAT
    check = _text_problem if path.name in _TEXT_FILES else _CONTENT_CHECKS.get(path.suffix)
    if check is None:
        return "is of no known format", _FIX_USE_KNOWN_FORMAT
    if disguised := _pickle_problem(path):
        return disguised, _FIX_SAVE_IN_NATIVE_FORMAT
    if not_so := check(path):
        return not_so, "log the model again from one file that loads by itself"
    return None


def _pickle_problem(path: Path) -> str | None:
    """How the file bears a pickle, whatever its name."""
    with path.open("rb") as stream:
        head = stream.read(16)
        if head[:1] == b"\x80" and head[1:2] <= b"\x05":
            return f"is a pickle named {path.suffix or path.name}: it can run code when it is loaded"
        if head.startswith((*_PICKLE_WRAPPER_MAGIC, *_ZLIB_MAGIC)):
            return f"is a compressed or NumPy file named {path.suffix or path.name}: it may hold a pickle"
        stream.seek(0)
        if _is_code_pickle(stream.read(_MAX_TEXT_PICKLE_BYTES)):
            return f"is a pickle named {path.suffix or path.name}: it can run code when it is loaded"
    try:
        # Found from the end of the file, so also behind something harmless.
        with zipfile.ZipFile(path) as archive:
            inside = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if not inside:
        return None  # the end mark of an archive, which numbers of a model may look like
    pickles = [name for name in inside if Path(name).suffix in _PICKLE_SUFFIXES]
    holds = f" that holds {pickles[0]}" if pickles else ""
    return f"is a zip archive{holds}, named {path.suffix or path.name}: it can run code when it is loaded"


_MAX_TEXT_PICKLE_BYTES = 1 << 20


def _is_code_pickle(content: bytes) -> bool:
    """Whether it is a pickle of the protocols without a first byte of their own (0 and 1) that calls something."""
    seen = set()
    try:
        for opcode, _, _ in pickletools.genops(content):
            seen.add(opcode.name)
    except Exception:  # whatever bytes make it stumble: it is no pickle
        return False
    return bool(seen & _CODE_OPCODES)


def _ubjson_problem(path: Path) -> str | None:
    with path.open("rb") as stream:
        return None if stream.read(1) == b"{" else "is no UBJSON object"


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
    # What lies outside is neither hashed nor signed, and may be any file that the reader can read.
    if outside := next(_external_data_locations(model), None):
        return f"has numbers of the model outside of it, in {outside}"
    return None


def _external_data_locations(message: Any) -> Iterator[str]:
    """Where tensors lie that are not in the file, wherever in the message the tensor is."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.external_data or message.data_location == onnx.TensorProto.EXTERNAL:
            places = [entry.value for entry in message.external_data if entry.key == "location"]
            yield ", ".join(places) or "a place that it does not name"
        return
    for field, value in message.ListFields():
        if field.message_type:
            for part in value if field.is_repeated else [value]:
                yield from _external_data_locations(part)


def _json_problem(path: Path) -> str | None:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "is no JSON"
    return None


def _text_problem(path: Path) -> str | None:
    try:
        return "is no text" if "\0" in path.read_text(encoding="utf-8") else None
    except UnicodeDecodeError:
        return "is no text"


_CONTENT_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".ubj": _ubjson_problem,
    ".onnx": _onnx_problem,
    ".json": _json_problem,
    ".sig": _json_problem,  # a signature is a JSON document too
    ".yaml": _text_problem,
    ".yml": _text_problem,
}
