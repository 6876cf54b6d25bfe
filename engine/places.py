"""Where an address is: country and network, from MaxMind database files, if there are any.

A file may tell the country, the network (ASN), or both; what no file tells is ''. Read into the page cache by the operating
system, not into ours. A new edition is read at the next start.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import maxminddb

from engine.errors import ConfigError
from engine.settings import Settings

_ASN_MAX = 256


class Places:
    def __init__(self, readers: list[Any]) -> None:
        self._readers = readers

    @classmethod
    def of(cls, settings: Settings) -> Places:
        """Raises ConfigError for a file that cannot be read."""
        files = {"PULSEGATE_GEOIP_FILE": settings.geoip_file, "PULSEGATE_GEOIP_ASN_FILE": settings.geoip_asn_file}
        return cls([_opened(name, path) for name, path in files.items() if path])

    def find(self, address: str) -> tuple[str, str]:
        """(country as ISO 3166 has it, `AS2860 Its name`)."""
        country = asn = ""
        try:
            place = ipaddress.ip_address(address)
        except ValueError:
            return "", ""
        place = getattr(place, "ipv4_mapped", None) or place
        for reader in self._readers:
            try:
                record = reader.get(place)
            except ValueError:  # an IPv6 address, a file about IPv4
                continue
            country, asn = country or _country(record), asn or _asn(record)
        return country, asn

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def _opened(name: str, path: str) -> Any:
    try:
        return maxminddb.open_database(path)
    except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
        raise ConfigError(f"{name}: {path} is no MaxMind database: {error}", field=name) from None


def _country(record: Any) -> str:
    country = record.get("country") if isinstance(record, dict) else None
    code = country.get("iso_code") if isinstance(country, dict) else None
    return code if isinstance(code, str) and len(code) == 2 and code.isprintable() else ""


def _asn(record: Any) -> str:
    """Beside the country, or among its `traits`."""
    for part in (record, record.get("traits")) if isinstance(record, dict) else ():
        if isinstance(part, dict) and isinstance(number := part.get("autonomous_system_number"), int):
            name = part.get("autonomous_system_organization")
            text = f"AS{number} {name}" if isinstance(name, str) and name.isprintable() else f"AS{number}"
            return text[:_ASN_MAX]
    return ""
