"""Finds the volume that was full when a write failed: most such errors name no file, some not even the cause."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_POD_VARIABLE = "KUBERNETES_SERVICE_HOST"  # set by Kubernetes in every container; never inherited by local trainers
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point
_MEMORY_FILE_SYSTEMS = ("tmpfs", "hugetlbfs")
_MAX_NAME_LENGTH = 200  # of a file, so that the fix still fits into a container's termination message
_FREE_DISK_FIX = "make room; nothing is lost"

# Messages of libraries whose errors carry no errno. They count only where a volume is full: a broken disk, or a
# server, may report the same.
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
    """A mounted file system, with its size and the bytes that are free to this user."""

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
    def is_private(self) -> bool:
        """Whether only this attempt fills it, so that the next one would fill it again."""
        return self.in_memory and _POD_VARIABLE in os.environ

    @property
    def fix(self) -> str:
        if not self.is_private:
            return _FREE_DISK_FIX
        if self.path == _SHARED_MEMORY:
            return "raise resources.shm_gib"
        return "give that volume more in EVERGREEN_PODS__TEMPLATE"

    def __str__(self) -> str:
        return f"{_printable(self.path)} ({_format_size(self.size)}{' of memory' if self.in_memory else ''})"


class OutOfSpaceError(Exception):
    """A write found no space.

    Attributes:
        volumes: the full volumes; empty if they are not known.
        file: the file to be written, if that is known.
    """

    def __init__(self, volumes: Iterable[Volume], file: str | None = None):
        self.volumes, self.file = tuple(volumes), file
        super().__init__(self.volumes, file)

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may find space: not if the full volumes all belong to the attempt itself."""
        return not self.volumes or not all(volume.is_private for volume in self.volumes)

    def __str__(self) -> str:
        file = f" for {_printable(self.file)}" if self.file else "" if self.volumes else " for its files"
        where = f" on {', '.join(map(str, self.volumes))}" if self.volumes else ""
        fixes = dict.fromkeys(volume.fix for volume in self.volumes) or [_FREE_DISK_FIX]
        return f"no space is left{file}{where}: {', or '.join(fixes)}"


@contextmanager
def locate_full_volume() -> Iterator[None]:
    """Find the full volume as soon as a write fails, before clean-up removes what filled it.

    Raises:
        OutOfSpaceError: in place of an error that reports missing space.
    """
    try:
        yield
    except Exception as error:
        if out_of_space := find_out_of_space(error):
            raise out_of_space from error
        raise


def find_out_of_space(error: BaseException) -> OutOfSpaceError | None:
    """Return what `error`, or one of its causes, reports about missing space, or None."""
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


def mounted_volumes() -> list[Volume]:
    """Return the volumes that this process may write to, by path."""
    volumes: dict[str, Volume] = {}
    with suppress(OSError):
        for line in _MOUNTS.read_bytes().splitlines():
            device, path, file_system = _parse_mount(line)
            with suppress(OSError):  # mounted over, or not accessible to this user
                status = os.statvfs(path)
                size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
                if status.f_files and not status.f_favail:
                    free = 0  # no inode is left, so no file can be created
                if size and os.path.isdir(path) and os.access(path, os.W_OK):
                    volumes[path] = Volume(path, device, file_system in _MEMORY_FILE_SYSTEMS, size, free)
    return [volumes[path] for path in sorted(volumes)]


def _printable(name: str) -> str:
    """Return `name` in one line that every terminal and log can show, shortened at its start."""
    safe = name if name.isprintable() else ascii(name)
    return safe if len(safe) <= _MAX_NAME_LENGTH else f"…{safe[-_MAX_NAME_LENGTH:]}"


def _locate(error: BaseException) -> OutOfSpaceError:
    volumes = mounted_volumes()
    if file := _target_file(error):
        return OutOfSpaceError(_containing_volume(file, volumes), file)
    if _NO_SHARED_MEMORY.search(str(error)):
        return OutOfSpaceError(_containing_volume(_SHARED_MEMORY, volumes))
    full = {volume.device: volume for volume in reversed(volumes) if volume.is_full}  # each device once
    return OutOfSpaceError(reversed(full.values()))


def _target_file(error: BaseException) -> str | None:
    """Return the file that was written: of two, as in a copy, the second."""
    if isinstance(error, OSError):
        for name in (error.filename2, error.filename):
            if isinstance(name, str | bytes | os.PathLike):
                return os.fsdecode(name)
    return None


def _containing_volume(file: str, volumes: list[Volume]) -> list[Volume]:
    """Return the volume that contains `file`, or none."""
    real = Path(os.path.realpath(file))
    candidates = [volume for volume in volumes if real.is_relative_to(volume.path)]
    return sorted(candidates, key=lambda volume: len(Path(volume.path).parts))[-1:]


def _parse_mount(line: bytes) -> tuple[str, str, str]:
    """Return device, mount point and file system of a line of mountinfo, which escapes bytes that end a field."""
    mount, _, file_system = line.partition(b" - ")
    fields = mount.split(b" ")
    path = re.sub(rb"\\([0-7]{3})", lambda escaped: bytes([int(escaped[1], 8)]), fields[4])
    return fields[2].decode(), os.fsdecode(path), file_system.split(b" ")[0].decode()


def _format_size(size: int) -> str:
    for unit, bytes_per_unit in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= bytes_per_unit:
            return f"{size / bytes_per_unit:.4g} {unit}"
    return f"{size / 2**10:.4g} KiB"
