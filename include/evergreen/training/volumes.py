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
_IN_POD = "KUBERNETES_SERVICE_HOST"  # Kubernetes sets it in every container; a process on this machine is not given it
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point
_IN_MEMORY = ("tmpfs", "hugetlbfs")
_LONGEST_NAME = 200  # of a file, so that the way out still fits into a container's last words

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
    """A mounted file system, with its size and what of it is free to this user, in bytes."""

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
    def is_own(self) -> bool:
        """Whether this attempt alone fills it, and the next one would again."""
        return self.in_memory and _IN_POD in os.environ

    @property
    def way_out(self) -> str:
        if not self.is_own:
            return "make room; nothing is lost"
        if self.path == _SHARED_MEMORY:
            return "raise resources.shm_gib"
        return "give that volume more in EVERGREEN_PODS__TEMPLATE"

    def __str__(self) -> str:
        return f"{printable(self.path)} ({_amount(self.size)}{' of memory' if self.in_memory else ''})"


class OutOfSpaceError(Exception):
    """A write found no space.

    Attributes:
        volumes: where; several if more than one is full, none if it is not known.
        file: that was to be written, if that is known.
    """

    def __init__(self, volumes: Iterable[Volume], file: str | None = None):
        self.volumes, self.file = tuple(volumes), file
        super().__init__(self.volumes, file)

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may find space: not if all there is belongs to the attempt itself."""
        return not self.volumes or not all(volume.is_own for volume in self.volumes)

    def __str__(self) -> str:
        file = f" for {printable(self.file)}" if self.file else "" if self.volumes else " for its files"
        where = f" on {', '.join(map(str, self.volumes))}" if self.volumes else ""
        ways_out = dict.fromkeys(volume.way_out for volume in self.volumes) or ["make room; nothing is lost"]
        return f"no space is left{file}{where}: {', or '.join(ways_out)}"


@contextmanager
def full_volume_named() -> Iterator[None]:
    """Look which volume is full at once: on its way out, an error removes what filled it.

    Raises:
        OutOfSpaceError: in place of an error that says so.
    """
    try:
        yield
    except Exception as error:
        if found := out_of_space(error):
            raise found from error
        raise


def out_of_space(error: BaseException) -> OutOfSpaceError | None:
    """What `error`, or what it was raised from, says of a write that found no space; None: nothing."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OutOfSpaceError):
            return cause
        is_certain = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_certain or _NO_SPACE.search(str(cause)) or _NO_SHARED_MEMORY.search(str(cause)):
            found = _located(cause)
            if is_certain or found.volumes:
                return found
        cause = cause.__cause__
    return None


def mounted() -> list[Volume]:
    """The volumes that this process may write to, by path."""
    found: dict[str, Volume] = {}
    with suppress(OSError):
        for line in _MOUNTS.read_bytes().splitlines():
            device, path, file_system = _fields(line)
            with suppress(OSError):  # mounted over, or nothing for this user
                status = os.statvfs(path)
                size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
                if status.f_files and not status.f_favail:
                    free = 0  # no file can be made any more
                if size and os.path.isdir(path) and os.access(path, os.W_OK):
                    found[path] = Volume(path, device, file_system in _IN_MEMORY, size, free)
    return [found[path] for path in sorted(found)]


def printable(name: str) -> str:
    """`name` in one line that every terminal and log takes, of bearable length."""
    safe = name if name.isprintable() else ascii(name)
    return safe if len(safe) <= _LONGEST_NAME else f"…{safe[-_LONGEST_NAME:]}"


def _located(error: BaseException) -> OutOfSpaceError:
    volumes = mounted()
    if file := _file(error):
        return OutOfSpaceError(_holding(file, volumes), file)
    if _NO_SHARED_MEMORY.search(str(error)):
        return OutOfSpaceError(_holding(_SHARED_MEMORY, volumes))
    full = {volume.device: volume for volume in reversed(volumes) if volume.is_full}  # each device once
    return OutOfSpaceError(reversed(full.values()))


def _file(error: BaseException) -> str | None:
    """The file that was written: of two, as in a copy, the second."""
    if isinstance(error, OSError):
        for name in (error.filename2, error.filename):
            if isinstance(name, str | bytes | os.PathLike):
                return os.fsdecode(name)
    return None


def _holding(file: str, volumes: list[Volume]) -> list[Volume]:
    """The volume that holds `file`, if it is one of those."""
    real = Path(os.path.realpath(file))
    holding = [volume for volume in volumes if real.is_relative_to(volume.path)]
    return sorted(holding, key=lambda volume: len(Path(volume.path).parts))[-1:]


def _fields(line: bytes) -> tuple[str, str, str]:
    """Device, mount point and file system of a line of mountinfo, which escapes bytes that would end a field."""
    mount, _, file_system = line.partition(b" - ")
    fields = mount.split(b" ")
    path = re.sub(rb"\\([0-7]{3})", lambda escaped: bytes([int(escaped[1], 8)]), fields[4])
    return fields[2].decode(), os.fsdecode(path), file_system.split(b" ")[0].decode()


def _amount(size: int) -> str:
    for unit, bytes_of_unit in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:.4g} {unit}"
    return f"{size / 2**10:.4g} KiB"
