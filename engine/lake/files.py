"""Every change the lake makes to the disk. Object storage would replace this module (docs/lake.md).

What is here is durable when it returns: contents are synced before a name shows them, the folder after.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp"


def _nothing(step: str) -> None: ...


checkpoint: Callable[[str], None] = _nothing
"""Called before every change to the disk, with its name. Tests stop the process here."""


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, seen under its name only once it is whole and on disk. An error leaves nothing behind."""
    _make_folder(path.parent)
    beside = path.with_name(f".{path.name}{TEMPORARY}")
    checkpoint("create")
    try:
        with beside.open("xb") as handle:
            yield handle
            checkpoint("sync")
            handle.flush()
            os.fsync(handle.fileno())
        checkpoint("rename")
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write(path: Path, content: bytes) -> None:
    with writing(path) as handle:
        handle.write(content)


def create(path: Path, content: bytes) -> bool:
    """Writes a file that must not exist yet; of several who try, one gets True.

    False if it does exist, or if a sweep took this for what a dead writer left: then it is worth another look.
    """
    beside = path.with_name(f".{os.getpid()}-{os.urandom(6).hex()}{TEMPORARY}")
    write(beside, content)
    try:
        checkpoint("link")
        os.link(beside, path)
    except (FileExistsError, FileNotFoundError):
        return False
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def remove(path: Path) -> None:
    checkpoint("remove")
    path.unlink(missing_ok=True)


def touch(path: Path, now_ms: int) -> None:
    """Sets a file's age to nothing."""
    checkpoint("touch")
    with suppress(FileNotFoundError):
        os.utime(path, (now_ms / 1000, now_ms / 1000))


def age_ms(path: Path, now_ms: int) -> int:
    """ms since a file was written or touched; -1 if it is gone."""
    try:
        return now_ms - path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return -1


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Whether nobody else on this machine is within the same `only_one`."""
    _make_folder(path.parent)
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    checkpoint("folder")
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    checkpoint("sync folder")
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
