"""Names the volume that was full when a write failed: most such errors name no file, some not even the cause."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT = re.compile(rb"^\d+ \d+ ([^ ]+) [^ ]+ ([^ ]+) .*? - ([^ ]+)", re.MULTILINE)  # device, mount point, file system
_ESCAPED_BYTE = re.compile(rb"\\([0-7]{3})")  # one that would end a field
_POD_VARIABLE = "KUBERNETES_SERVICE_HOST"  # set in every container of a pod
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point
_MAX_PATH_LENGTH = 200  # so that the fix still fits into the pod's status
_MAKE_ROOM = "make room; nothing is lost"

# Of libraries whose errors carry no errno. Believed only where a volume is full: a disk that fails, or a server, may
# say the same.
_NO_SPACE = re.compile(
    r"no space left on device|disk quota exceeded"
    r"|\d+ requested and \d+ written"  # NumPy
    r"|FileStream\.Write incomplete"  # XGBoost
    r"|PytorchStreamWriter failed writing",
    re.IGNORECASE,
)
# PyTorch and NCCL allocate a segment as a whole: one that does not fit fails while the volume still has room.
_NO_SHARED_MEMORY = re.compile(
    r"(shared memory ?\(shm\)|</torch_).*no space left on device"
    r"|raise your shared memory limit"  # a data loader's worker was killed
    r"|creating shared memory segment",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Volume:
    """A mounted file system, with its size and the space that this user may still fill, in bytes."""

    path: str
    device: str
    in_memory: bool
    size: int
    free: int

    @property
    def is_full(self) -> bool:
        """Whether next to nothing is free: file systems refuse a write before they are full to the last byte."""
        return self.free < min(2**20, self.size / 100)

    @property
    def belongs_to_attempt(self) -> bool:
        """Whether this attempt alone fills it, and the next one would again."""
        return self.in_memory and _POD_VARIABLE in os.environ

    @property
    def fix(self) -> str:
        if not self.belongs_to_attempt:
            return _MAKE_ROOM
        if self.path == _SHARED_MEMORY:
            return "raise resources.shm_gib"
        return "give that volume more in EVERGREEN_PODS__TEMPLATE"

    def __str__(self) -> str:
        return f"{format_path(self.path)} ({_format_size(self.size)}{' of memory' if self.in_memory else ''})"


class OutOfSpaceError(Exception):
    """A write found no space: on `volumes`, which are empty if unknown, for `file`, if that is known."""

    def __init__(self, volumes: Iterable[Volume], file: str | None = None):
        self.volumes, self.file = tuple(volumes), file
        super().__init__(self.volumes, file)

    @property
    def is_retryable(self) -> bool:
        """Whether another attempt may find space: not if the attempt itself fills every volume."""
        return not self.volumes or not all(volume.belongs_to_attempt for volume in self.volumes)

    def __str__(self) -> str:
        file = format_path(self.file) if self.file else "its files"
        if not self.volumes:
            return f"no space is left for {file}: {_MAKE_ROOM}"
        subject = f" for {file}" if self.file else ""
        fixes = dict.fromkeys(volume.fix for volume in self.volumes)
        return f"no space is left{subject} on {', '.join(map(str, self.volumes))}: {', or '.join(fixes)}"


@contextmanager
def identify_full_volume() -> Iterator[None]:
    """Raise OutOfSpaceError for an error of a full volume, at once: handlers further out may remove what filled it."""
    try:
        yield
    except Exception as error:
        if out_of_space := find_out_of_space(error):
            raise out_of_space from error
        raise


def find_out_of_space(error: BaseException) -> OutOfSpaceError | None:
    """The write that found no space, if `error` or what it was raised from says so; None otherwise."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OutOfSpaceError):
            return cause
        is_certain = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_certain or _NO_SPACE.search(str(cause)) or _NO_SHARED_MEMORY.search(str(cause)):
            out_of_space = _locate(cause)
            if is_certain or out_of_space.volumes:
                return out_of_space
        cause = cause.__cause__
    return None


def writable_volumes() -> list[Volume]:
    """The volumes that this process may write to, by path."""
    volumes: dict[str, Volume] = {}
    with suppress(OSError):
        for device, escaped_path, file_system in _MOUNT.findall(_MOUNTS.read_bytes()):
            path = os.fsdecode(_ESCAPED_BYTE.sub(lambda match: bytes([int(match[1], 8)]), escaped_path))
            with suppress(OSError):  # another mount hides it, or this user may not see it
                status = os.statvfs(path)
                size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
                if status.f_files and not status.f_favail:
                    free = 0  # no inode is left
                if size and os.path.isdir(path) and os.access(path, os.W_OK):
                    in_memory = file_system in (b"tmpfs", b"hugetlbfs")
                    volumes[path] = Volume(path, device.decode(), in_memory, size, free)
    return [volumes[path] for path in sorted(volumes)]


def format_path(path: str) -> str:
    """`path` on one line that every terminal and log can show, at most `_MAX_PATH_LENGTH` characters of it."""
    text = path if path.isprintable() else ascii(path)
    return text if len(text) <= _MAX_PATH_LENGTH else f"…{text[-_MAX_PATH_LENGTH:]}"


def _locate(error: BaseException) -> OutOfSpaceError:
    volumes = writable_volumes()
    if isinstance(error, OSError):
        for name in (error.filename2, error.filename):  # a copy names two, its source first
            if isinstance(name, str | bytes | os.PathLike):
                file = os.fsdecode(name)
                return OutOfSpaceError(_volume_holding(file, volumes), file)
    if _NO_SHARED_MEMORY.search(str(error)):
        return OutOfSpaceError(_volume_holding(_SHARED_MEMORY, volumes))
    full_by_device = {volume.device: volume for volume in reversed(volumes) if volume.is_full}
    return OutOfSpaceError(reversed(full_by_device.values()))


def _volume_holding(file: str, volumes: list[Volume]) -> list[Volume]:
    """The volume that `file` is on; empty if it is not among `volumes`."""
    path = Path(os.path.realpath(file))
    parents = [volume for volume in volumes if path.is_relative_to(volume.path)]
    return sorted(parents, key=lambda volume: len(Path(volume.path).parts))[-1:]


def _format_size(size: int) -> str:
    for unit, unit_bytes in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= unit_bytes:
            return f"{size / unit_bytes:.4g} {unit}"
    return f"{size / 2**10:.4g} KiB"
