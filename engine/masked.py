"""URLs as they may be shown: in `pulsegate config`, in errors, in logs."""

from __future__ import annotations

import re

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)(?:([^?#]*)@)?([^?#@]*)(\?[^#]*)?(#.*)?$", re.DOTALL)
MASK = "***"


def masked(url: str) -> str:
    """The URL without what may be a secret: the password, a user's name alone (which is some services' key), query and fragment. A
    text that is no URL is returned as it is."""
    found = _URL.match(url)
    if found is None:
        return url
    scheme, who, rest, query, fragment = found.groups()
    user = f"{who.partition(':')[0]}:{MASK}@" if who and ":" in who else f"{MASK}@" if who else ""
    return scheme + user + rest + (f"?{MASK}" if query else "") + (f"#{MASK}" if fragment else "")
