"""What Pulsegate writes is for its own user only: events name viewers, the spool holds their tokens' claims, the secret signs them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engine.settings import Settings

UMASK = 0o077


def keep_private(settings: Settings) -> None:
    """From now on this process and its children make files 0600 and directories 0700, unless the operator has said otherwise."""
    if settings.private_files:
        os.umask(UMASK)


def close(directory: Path, settings: Settings) -> None:
    """Takes a directory that is there already away from everybody else, and with it all that is below it."""
    if settings.private_files:
        # Another user's, lent to us: that is the operator's own arrangement.
        with contextlib.suppress(PermissionError):
            directory.chmod(0o700)
