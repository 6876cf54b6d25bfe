"""The composition root of `pulsegate ingest-log`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import Any

import httpx
import msgspec

from engine.cdnlog import options
from engine.cdnlog.batch import Batch, Entry
from engine.cdnlog.errors import IngestError
from engine.cdnlog.ingest import Counts, Ingest, Send
from engine.cdnlog.kept import BadLines, Checkpoint, Mark
from engine.cdnlog.post import TIMEOUT_S, Poster
from engine.cdnlog.process import Pace, say
from engine.cdnlog.signals import Parser
from engine.cdnlog.tail import Tail
from engine.errors import ConfigError


def run(args: argparse.Namespace, pace: Pace | None = None) -> int:
    """0 when all was delivered, else 1. Prints the summary. Raises ConfigError for an option."""
    rules = options.rules_of(args)
    options.check(args)
    checkpoint = Checkpoint(args.checkpoint) if args.checkpoint and not args.dry_run else None
    mark = checkpoint.load() if checkpoint else None
    counts, pace, bad = Counts(), pace or Pace(), BadLines(_bad_path(args))
    parser = Parser(rules, mark.columns if mark and mark.columns else args.fields.split())
    batch = Batch(round(args.coalesce_s * 1000), args.batch_size)
    linger_s = args.linger_s if args.follow or args.file == "-" else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(pace)
        stack.callback(bad.close)
        send = _print if args.dry_run else _poster(args, stack, pace, counts)
        try:
            source = stack.enter_context(contextlib.closing(_tail(args, mark)))
            Ingest(source, parser, batch, send, bad, pace, counts, checkpoint, linger_s).run()
        except IngestError as error:
            say(error.message)
            counts.undelivered = counts.lines - counts.signals - counts.coalesced - counts.skipped - counts.bad
            return 1
        finally:
            _summarise(counts, bad)
    return 0


def _summarise(counts: Counts, bad: BadLines) -> None:
    if counts.bad:
        why = ", ".join(f"{reason} {count}" for reason, count in counts.bad_by.most_common())
        say(f"{counts.bad} bad lines kept{f' in {bad.path}' if bad.path else ''}: {why}")
    print(msgspec.json.encode(counts).decode(), flush=True)


def _tail(args: argparse.Namespace, mark: Mark | None) -> Tail:
    keep_rest = bool(args.checkpoint) and not args.file.endswith(".gz")
    tail = Tail(args.file, follow=args.follow, mark=mark, keep_rest=keep_rest)
    if tail.strayed:
        say(f"the file of --checkpoint is gone or truncated; starting at the beginning of {args.file}")
    return tail


def _poster(args: argparse.Namespace, stack: contextlib.ExitStack, pace: Pace, counts: Counts) -> Send:
    raw = options.read_secret("--token-file", args.token_file) or os.environ.get("PULSEGATE_TOKEN", "").encode()
    token = raw.decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError("--token-file, or PULSEGATE_TOKEN, must hold a service token", field="--token-file")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    client = stack.enter_context(httpx.Client(headers=headers, timeout=TIMEOUT_S))
    return Poster(client, args.url, None if args.follow else args.retries, pace, counts)


def _bad_path(args: argparse.Namespace) -> str | None:
    if args.bad:
        return str(args.bad)
    return None if args.file == "-" or args.dry_run else f"{args.file}.bad"


def _print(entries: list[Entry]) -> list[Any]:
    try:
        for entry in entries:
            print(json.dumps(entry.signal, ensure_ascii=False))
        sys.stdout.flush()
    except BrokenPipeError:
        # `… | head` has seen enough; what is still buffered must go somewhere when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise IngestError("standard output was closed") from None
    return []
