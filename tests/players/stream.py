"""A tiny film as HLS and DASH: the same fMP4 segments, two renditions of the picture, one of the sound."""

from __future__ import annotations

import subprocess
from pathlib import Path

SEGMENT_S = 2
VIDEO = "chunk-stream[01]-"
"""How the names of the picture's segments begin (a regular expression); five digits from 00001 and `.m4s` follow."""


def make(ffmpeg: str, directory: Path, seconds: int = 40) -> None:
    """Writes `master.m3u8`, `manifest.mpd` and what they name into `directory`; takes one or two seconds."""
    directory.mkdir(parents=True, exist_ok=True)
    rates = []
    for index, rate in enumerate(("150k", "400k")):
        rates += [f"-b:v:{index}", rate, f"-maxrate:v:{index}", rate, f"-bufsize:v:{index}", rate]
    command = [
        ffmpeg, "-v", "error", "-nostdin", "-y",
        "-f", "lavfi", "-i", f"testsrc=size=320x180:rate=12:duration={seconds}",
        # A little shorter than the picture: a last segment of some ms would keep hls.js from the end of the film.
        "-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds - 0.1:g}",
        "-map", "0:v", "-map", "0:v", "-map", "1:a",
        "-c:v", "libx264", "-profile:v", "baseline", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-threads", "1",
        "-g", str(12 * SEGMENT_S), "-keyint_min", str(12 * SEGMENT_S), "-sc_threshold", "0", *rates,
        "-c:a", "aac", "-b:a", "48k", "-ac", "1",
        "-f", "dash", "-seg_duration", str(SEGMENT_S), "-use_template", "1", "-use_timeline", "0", "-hls_playlist", "1",
        "-adaptation_sets", "id=0,streams=v id=1,streams=a", str(directory / "manifest.mpd"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)
