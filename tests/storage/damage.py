"""Faults of the disk, made on purpose."""

from pathlib import Path

from sqlalchemy.engine import make_url


def cut_off_pages(sqlite_url: str, body: bytes) -> None:
    """Let a page of this stored body point to nowhere. The database is closed."""
    path = Path(make_url(sqlite_url).database or "")
    data = bytearray(path.read_bytes())
    start = next(i for i in range(0, len(data), 4096) if bytes(data[i + 4 : i + 4096]) in body)
    data[start : start + 4] = b"\xff\xff\xff\xff"  # the number of the next page
    path.write_bytes(data)
