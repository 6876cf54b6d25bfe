"""What Pulsegate writes is for its own user only: events name viewers, the spool holds their tokens' claims, the secret signs them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from engine.settings import Settings

UMASK = 0o077


def keep_private(settings: Settings) -> None:
    """From now on this process and its children make files 0600 and directories 0700, unless the operator has said otherwise."""
    if settings.private_files:
        os.umask(UMASK)


def close(directories: Iterable[Path], settings: Settings) -> None:
    """Takes directories of ours that are there already away from everybody else, and with them all that is below."""
    for directory in directories if settings.private_files else ():
        # Not there yet, or another user's, lent to us: that is the operator's own arrangement.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            directory.chmod(0o700)
