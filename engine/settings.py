"""Settings: one frozen object, built from `PULSEGATE_*` once, at the composition root. Nothing else reads the environment.

Every field names its unit in its name (`_ms`, `_s`, `_bytes`) or its help. A secret may come from a file:
`PULSEGATE_JWT_SECRET_FILE=/run/secrets/jwt` stands for `PULSEGATE_JWT_SECRET`. A bad value raises
`ConfigError` that names the variable.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.connection import parse_url

from engine.errors import ConfigError
from engine.masked import MASK, masked


def _f(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    return field(
        default=default, metadata={"help": help, "low": low, "high": high, "secret": secret, "choices": choices}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings with their defaults; `pulsegate config` lists them."""

    # where things are
    redis_url: str = _f(
        "", "session Redis (redis://, rediss://, unix://); a cluster is recognised by itself; empty: embedded"
    )
    log_redis_url: str = _f(
        "",
        "log Redis: event log, projections, RQ's queues; never a cluster; empty: the session Redis, if that is no cluster",
    )
    prefix: str = _f("pg", "prefix of every key")
    partitions: int = _f(256, "partitions; fixed when the deployment is created", low=1, high=4096)
    plans_file: str = _f("plans.toml", "plans and their rules; reloaded when it changes")
    spool_dir: str = _f(
        "", "where heartbeats wait while Redis is away, and events while their outbox is full; empty: not kept"
    )
    spool_max_bytes: int = _f(
        256 * 2**20, "of either, per API process; beyond it the oldest is dropped and counted", low=0
    )

    # serving
    host: str = _f("127.0.0.1", "address to listen on")
    port: int = _f(8080, "port to listen on", low=0, high=65535)
    processes: int = _f(1, "API processes", low=1, high=256)
    cors_origins: tuple[str, ...] = _f(("*",), "origins that may call player routes, comma-separated, or *")
    metrics_public: bool = _f(True, "serve /metrics without a token")
    metrics_dir: str = _f("", "directory in which several API processes share their metrics; set by `pulsegate`")
    body_max_bytes: int = _f(64 * 1024, "largest request body", low=1024)
    inflight_max: int = _f(4096, "decisions under way per API process before it answers 429", low=1)
    private_files: bool = _f(
        True,
        "files and directories that Pulsegate makes are its user's only (0600, 0700); false: as the process's umask says",
    )
    account_inflight_max: int = _f(
        16, "decisions of one account under way per API process before that account alone is answered 429", low=1
    )
    connections_max: int = _f(
        20_000,
        "connections per API process, fewer where the system has fewer descriptors; beyond it idle ones are closed, then new ones answered 503",
        low=1,
    )
    head_max_bytes: int = _f(64 * 1024, "largest head of a request, its URL included; also trailers", low=1024)
    fields_max: int = _f(100, "header fields in a request", low=8, high=10_000)
    head_s: float = _f(
        10.0, "seconds for a request's head, and for the first byte on a new connection", low=0.1, high=600
    )
    body_s: float = _f(60.0, "seconds for a request's body, and for the caller to take an answer", low=0.1, high=3600)
    idle_s: float = _f(
        75.0,
        "seconds a connection may be idle between requests; a proxy before the API should close earlier",
        low=0.1,
        high=3600,
    )
    log_level: str = _f("info", "least severe log line written", choices=("debug", "info", "warning", "error"))

    # the decision; all of design section 6
    interval_ms: int = _f(10_000, "heartbeat interval promised to players", low=1000, high=120_000)
    lifetime_ms: int = _f(30_000, "a lease lives this long after its last heartbeat", low=1000)
    stale_intervals: float = _f(1.5, "silence after which a lease yields to who asks, in promised intervals", low=1)
    paused_keep_ms: int = _f(300_000, "a paused, beating session keeps its slot", low=0)
    paused_silent_ms: int = _f(60_000, "a paused, silent session keeps its slot", low=0)
    paused_end_ms: int = _f(1_800_000, "a paused view ends", low=1000)
    no_progress_ms: int = _f(1_800_000, "a view whose player beats without moving its position ends", low=1000)
    sticky_ms: int = _f(1_800_000, "an evicted session is told why", low=0)
    reopen_ms: int = _f(1_800_000, "a heartbeat after a time-out reopens the view within", low=0)
    guard_ms: int = _f(60_000, "a removed device may not turn on its remover for", low=0)
    straggle_ms: int = _f(
        5_000, "evidence for content the device has left belongs to the ended view for", low=0, high=60_000
    )
    left_ms: int = _f(60_000, "after that the account's next stragglers need a slot for", low=0)
    unproven_ms: int = _f(
        120_000, "a playing session whose backend evidence stopped this long ago is unproven", low=1000
    )
    supersede_burst: int = _f(60, "sessions a device may start in place of its own in a burst", low=1)
    supersede_refill_ms: int = _f(10_000, "one more of them every", low=1)
    record_keep_ms: int = _f(1_800_000, "finished sessions are remembered", low=1000)
    records_max: int = _f(64, "finished sessions remembered per account", low=1, high=1000)
    sessions_max: int = _f(
        32,
        "streams an account may run at once whatever its plan or token says; the next is refused by rule `account`",
        low=8,
        high=1000,
    )
    takeovers_max: int = _f(10, "takeovers per account and window", low=0)
    takeover_window_ms: int = _f(600_000, "window for takeovers_max", low=1000)
    request_ttl_ms: int = _f(600_000, "a request_id is remembered", low=1000)

    # resume and completion, by content length (engine/completion.py); a credits marker in the heartbeat wins
    resume_short_s: float = _f(300.0, "shorter titles are never resumable", low=0, high=86_400)
    resume_early_ratio: float = _f(0.05, "share of a title before which no position is kept", low=0, high=0.5)
    resume_early_s: float = _f(120.0, "at most this many seconds of it", low=0, high=86_400)
    completed_ratio: float = _f(0.9, "share of a title from which it is completed", low=0.5, high=0.99)
    completed_left_s: float = _f(180.0, "with less than this left it is completed, too", low=0, high=86_400)
    completed_least_ratio: float = _f(0.8, "but never before this share", low=0.5, high=0.99)
    completed_left_max_s: float = _f(600.0, "nor with more than this left", low=1, high=86_400)

    # projections
    resume_keep: int = _f(500, "titles whose resume position an account keeps; the oldest go", low=10, high=10_000)
    resume_wait_ms: int = _f(
        2_000, "who sets or hides a position waits at most this long for the workers", low=0, high=10_000
    )
    views_keep: int = _f(5_000, "views kept per account; the oldest go", low=10, high=1_000_000)
    views_keep_days: float = _f(30.0, "days for which ended views are kept, from their start", low=0.01, high=3650)

    # evidence without the player
    segment_ms: int = _f(30_000, "a segment request keeps a lease alive", low=1000)
    manifest_ms: int = _f(30_000, "a manifest request keeps a lease alive", low=1000)
    licence_ms: int = _f(600_000, "a DRM licence keeps a lease alive", low=1000)
    token_ms: int = _f(600_000, "a playback token keeps a lease alive", low=1000)
    unmatched: str = _f(
        "count", "backend evidence that matches no session: count it, or only observe", choices=("count", "observe")
    )

    # the edge
    edge_cookie: str = _f("pulsegate", "cookie that may carry the player's token")
    edge_query: str = _f("token", "query argument of the original URI that may carry it")
    edge_uri: str = _f(
        r"^/(?:t/(?P<token>[^/]+)/)?(?P<kind>live|vod)/(?P<content>[^/]+)",
        "regular expression over the original URI's path; groups token, device, content, kind, provider",
    )
    edge_manifest: str = _f(r"\.(m3u8|mpd)$", "regular expression: paths that are manifests; all others are segments")

    # who may ask
    jwt_secret: str = _f("", "HS256 secret, at least 32 bytes", secret=True)
    jwks_url: str = _f("", "JWKS for RS256, ES256, EdDSA: a URL or a file")
    jwt_audience: str = _f("", "audience a token must name; empty: not checked")
    jwt_issuer: str = _f("", "issuer a token must name; empty: not checked")
    jwt_service_audience: str = _f(
        "", "audience that only service tokens name; empty: they are told by their claim typ alone"
    )
    jwt_service_subjects: tuple[str, ...] = _f(
        (), "subjects of service tokens whose provider gives every token one, comma-separated; all others are players"
    )
    jwt_scope_prefix: str = _f("", "what the provider writes before each scope of a service token: pulsegate/, say")
    jwt_leeway_s: int = _f(5, "clock difference forgiven on exp and nbf", low=0, high=300)
    token_grace_s: int = _f(600, "an admitted session's heartbeats pass this long after expiry", low=0)
    token_cache: int = _f(100_000, "verified tokens remembered per process", low=0)

    # when Redis is away
    redis_timeout_ms: int = _f(180, "a decision waits this long for Redis, then fails open", low=10, high=10_000)
    redis_silent_ms: int = _f(
        1000,
        "a connection to Redis that says nothing for so long while decisions wait is given up, and opened again",
        low=10,
        high=10_000,
    )
    breaker_retry_ms: int = _f(500, "an open breaker tries again after", low=10)
    gone_after_ms: int = _f(3_000, "an API process silent this long has vanished", low=2000)

    # tracking events
    events_max: int = _f(500, "tracking events in one request", low=1, high=2000)
    events_body_max_bytes: int = _f(2**20, "largest body of POST /v1/events", low=1024)
    bad_max: int = _f(100_000, "rejected tracking events kept, about; the oldest go first", low=1)

    bad_max_bytes: int = _f(64 * 2**20, "bytes of them; as above", low=2**16)
    bad_account_bytes: int = _f(2**20, "bytes of them of one account; more of its are counted, not kept", low=2**16)

    # what one account may make stay in Redis, per API process (docs/security.md)
    quota_bytes: int = _f(
        4 * 2**20, "bytes an account may tell at once (events, reports); more is answered 429", low=2**16
    )
    quota_bytes_per_s: int = _f(8 * 1024, "bytes it may tell in the long run, a second", low=1)
    quota_beats_bytes: int = _f(
        256 * 1024,
        "bytes of an account's heartbeats and evidence appended in ten seconds; more are decided, but not appended",
        low=0,
    )
    quota_starts: int = _f(300, "views an account may start at once, refusals included; more are answered 429", low=1)
    quota_starts_per_min: int = _f(30, "views it may start in the long run, a minute", low=1)
    memory_high: float = _f(
        0.85,
        "share of Redis's memory above which only decisions write; everything else is answered 429",
        low=0.1,
        high=1,
    )

    # stock players' reports (docs/cmcd.md)
    cmcd: bool = _f(True, "collect CMCD event reports; off: their senders are answered 410 and fall silent")
    cmcd_body_max_bytes: int = _f(512 * 1024, "largest body of POST /v1/cmcd", low=1024)

    # where viewers are
    geoip_file: str = _f("", "MaxMind database file (.mmdb) with the country, the network, or both; empty: not known")
    geoip_asn_file: str = _f("", "another one with the network (ASN), where the first has none")
    proxies: int = _f(
        0,
        "proxies of ours before the API, whose X-Forwarded-For is believed; 0: the peer is the viewer",
        low=0,
        high=16,
    )

    # streams of lists
    streams_max: int = _f(1_000, "readers of /v1/trending/stream per API process; more are answered 503", low=0)
    streams_each_max: int = _f(
        10, "of them of one account, or of one service token; more are answered 429", low=1, high=1_000_000
    )
    stream_slow_s: float = _f(5.0, "a reader that takes nothing for so many seconds is disconnected", low=0.1, high=60)
    stream_max_s: float = _f(
        3_600.0, "a stream ends after so many seconds, and the reader connects again", low=0.01, high=86_400
    )

    # the lake
    lake_dir: str = _f("", "directory of the lake (Parquet files); `pulsegate run` sets it; empty: no lake")
    lake_roll_s: float = _f(5.0, "events gather this long before they are written to the lake", low=0, high=300)
    lake_roll_events: int = _f(50_000, "or until there are so many", low=1, high=500_000)
    quality_roll_s: float = _f(
        2.0, "facts of stream quality gather this long before they can be asked for", low=0, high=60
    )
    lake_compact_s: int = _f(
        600, "the small files of an hour are merged when nothing was added to it for so long", low=0
    )
    lake_file_bytes: int = _f(128 * 2**20, "size of the files that merging makes, about", low=2**20, high=2**32)

    # questions about quality and behaviour, answered by child processes of the API's (docs/quality.md)
    quality_processes: int = _f(
        1, "questions answered at a time, each by a process of its own, per API process", low=1, high=16
    )
    quality_threads: int = _f(2, "threads of such a process", low=1, high=64)
    quality_memory_bytes: int = _f(2**30, "memory a question may use", low=64 * 2**20)
    quality_timeout_s: float = _f(20.0, "time a question may take, waiting included", low=0.01, high=600)
    quality_queue: int = _f(16, "questions that wait per API process; more are answered 429", low=0, high=1_000)
    quality_idle_s: float = _f(300.0, "a process that nobody asked anything for so long ends", low=0.1, high=86_400)

    # background work
    ask_wait_s: float = _f(
        20.0, "seconds a request waits for work done by a worker (erase, audit) before it answers 202", low=0, high=60
    )
    outbox_high: int = _f(
        5_000, "events in an outbox above which plain heartbeats are thinned: no mirror is at work", low=10
    )
    outbox_max: int = _f(20_000, "events in an outbox above which lifecycle events wait on the API's disk", low=10)
    worker_processes: int = _f(7, "worker processes `pulsegate run` and `worker` start", low=1, high=64)
    export_processes: int = _f(1, "further worker processes for each sink: a slow one delays no other", low=0, high=64)
    ask_processes: int = _f(
        1,
        "further worker processes for what the API asks for (erase, audit); so many are done at a time",
        low=0,
        high=64,
    )
    ask_queue: int = _f(16, "such requests that wait in the deployment; more are answered 429", low=1, high=10_000)
    ask_token_max: int = _f(4, "of them of one token; more are answered 429", low=1, high=10_000)
    groups: int = _f(1, "groups of partitions, each of which has a tenure of its own in every job", low=1, high=64)
    dead_max: int = _f(10_000, "dead letters kept for each consumer and sink; beyond it the oldest go", low=10)
    dead_max_bytes: int = _f(64 * 2**20, "bytes of them; as above", low=2**16)
    log_keep_s: int = _f(
        600, "events stay in the log at least this long, and until every projection and the lake has them", low=0
    )
    tenure_s: float = _f(20.0, "seconds a tenure lasts before it hands over", low=1)

    # trending (docs/trending.md)
    trending_live_fast_s: float = _f(5.0, "half-life of what is observed of live channels, seconds", low=0, high=600)
    trending_vod_fast_s: float = _f(20.0, "half-life of what is observed of VOD titles, seconds", low=0, high=600)
    trending_slow_s: float = _f(
        1800.0,
        "half-life of the slow average, seconds: after about so long a surge is the new normal",
        low=60,
        high=86_400,
    )
    trending_margin: float = _f(
        0.2, "share above its usual audience that a content may have unsurprisingly", low=0, high=5
    )
    trending_softening: float = _f(10.0, "viewers added to the expectation under the root", low=1, high=10_000)
    trending_enter: float = _f(5.0, "score from which a content is listed", low=0.1, high=1000)
    trending_leave: float = _f(2.5, "score below which it is listed no more; below trending_enter", low=0, high=1000)
    trending_accounts_min: int = _f(10, "distinct accounts in five minutes without which nothing is listed", low=1)
    trending_newcomer: float = _f(20.0, "viewers expected of a content in its first day", low=0, high=1e6)
    trending_warmup_s: float = _f(
        60.0, "seconds for which counts are watched before anything is listed, once per deployment", low=0, high=86_400
    )
    trending_week_weight: float = _f(
        0.4, "weight of the newest week in the profile by hour of the week", low=0.01, high=1
    )
    trending_popular_s: float = _f(
        86_400.0, "window of popular: the mean age of an hour viewed", low=60, high=31_536_000
    )
    trending_forget_days: float = _f(15.0, "days unwatched after which a content is new again", low=8, high=365)
    trending_providers_max: int = _f(
        20, "providers with lists of their own, for each kind the most watched", low=0, high=500
    )
    trending_contents_max: int = _f(
        50_000, "contents known of a kind; those missed least go first", low=16, high=1_000_000
    )

    # alerts on stream quality (docs/alerts.md)
    alerts_file: str = _f("", "TOML file of alerts; empty: none")
    alerts_every_s: float = _f(15.0, "alerts are judged at this interval", low=1, high=3600)
    alerts_webhook_url: str = _f("", "where alerts are posted that fire or are over (https://…); empty: nowhere")
    alerts_webhook_secret: str = _f("", "key of their signatures, at least 32 bytes; empty: the webhook's", secret=True)
    # exports: the webhook (docs/exports.md)
    webhook_url: str = _f("", "where events are posted (https://…); empty: nowhere")
    webhook_secret: str = _f("", "key of the webhook's signatures, at least 32 bytes", secret=True)
    webhook_authorization: str = _f("", "value of the webhook's Authorization header; empty: none", secret=True)
    webhook_format: str = _f(
        "pulsegate",
        "how events are written: as they are, or in Segment's video vocabulary",
        choices=("pulsegate", "segment"),
    )
    webhook_types: tuple[str, ...] = _f((), "types of events that are sent, comma-separated; empty: all")
    webhook_heartbeats: bool = _f(False, "send heartbeats and evidence, too: most of the volume")
    webhook_batch: int = _f(100, "events in one request", low=1, high=10_000)
    webhook_body_max: int = _f(500_000, "bytes of one request; a larger event becomes a dead letter", low=1024)
    webhook_timeout_s: float = _f(5.0, "seconds for a whole request to a receiver, answer included", low=0.1, high=60)

    # simulations (docs/simulation.md)
    virtual_clock: bool = _f(
        False, "time stands still until POST /v1/clock moves it; for simulations only, never in production"
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str], **overrides: Any) -> Settings:
        """Builds from the environment; `overrides` (from the command line) win. Unknown PULSEGATE_* names are refused."""
        values: dict[str, Any] = {}
        fields = {f"PULSEGATE_{f.name.upper()}": f for f in dataclasses.fields(cls)}
        for name in env:
            if name == "PULSEGATE_TOKEN":  # what commands that call the API authenticate with, as curl's users do
                continue
            if name.startswith("PULSEGATE_") and name not in fields and name.removesuffix("_FILE") not in fields:
                raise ConfigError(f"{name} is not a setting; see `pulsegate config`", field=name)
        for name, spec in fields.items():
            raw = _from_file(env, name) if spec.metadata["secret"] and f"{name}_FILE" in env else env.get(name)
            if raw is not None:
                values[spec.name] = _convert(name, spec, raw)
        values.update({k: v for k, v in overrides.items() if v is not None})
        settings = cls(**values)
        settings.check()
        return settings

    def check(self) -> None:
        """Raises ConfigError for what no single field can tell."""
        if self.jwt_secret and len(self.jwt_secret.encode()) < 32:
            raise ConfigError("PULSEGATE_JWT_SECRET must be at least 32 bytes", field="PULSEGATE_JWT_SECRET")
        if self.lifetime_ms < self.stale_intervals * self.interval_ms:
            raise ConfigError(
                "PULSEGATE_LIFETIME_MS must be at least stale_intervals × interval_ms", field="PULSEGATE_LIFETIME_MS"
            )
        if self.completed_least_ratio > self.completed_ratio:
            raise ConfigError(
                "PULSEGATE_COMPLETED_LEAST_RATIO must be at most PULSEGATE_COMPLETED_RATIO",
                field="PULSEGATE_COMPLETED_LEAST_RATIO",
            )
        if self.completed_left_s > self.completed_left_max_s:
            raise ConfigError(
                "PULSEGATE_COMPLETED_LEFT_S must be at most PULSEGATE_COMPLETED_LEFT_MAX_S",
                field="PULSEGATE_COMPLETED_LEFT_S",
            )
        if self.jwt_service_audience and self.jwt_service_audience == self.jwt_audience:
            raise ConfigError(
                "PULSEGATE_JWT_SERVICE_AUDIENCE must not be the players' PULSEGATE_JWT_AUDIENCE",
                field="PULSEGATE_JWT_SERVICE_AUDIENCE",
            )
        for name in ("redis_url", "log_redis_url"):
            _check_redis_url(f"PULSEGATE_{name.upper()}", getattr(self, name))
        if self.webhook_url and not re.match(r"https?://[^/@\s]+(/|$)", self.webhook_url):
            raise ConfigError(
                "PULSEGATE_WEBHOOK_URL must be http(s)://host/…, without a password", field="PULSEGATE_WEBHOOK_URL"
            )
        if self.alerts_webhook_url and not re.match(r"https?://[^/@\s]+(/|$)", self.alerts_webhook_url):
            raise ConfigError(
                "PULSEGATE_ALERTS_WEBHOOK_URL must be an http:// or https:// URL", field="PULSEGATE_ALERTS_WEBHOOK_URL"
            )
        if self.alerts_webhook_url and len((self.alerts_webhook_secret or self.webhook_secret).encode()) < 32:
            raise ConfigError(
                "PULSEGATE_ALERTS_WEBHOOK_SECRET must have at least 32 bytes", field="PULSEGATE_ALERTS_WEBHOOK_SECRET"
            )
        if self.webhook_url and len(self.webhook_secret.encode()) < 32:
            raise ConfigError("PULSEGATE_WEBHOOK_SECRET must be at least 32 bytes", field="PULSEGATE_WEBHOOK_SECRET")
        if not self.trending_leave < self.trending_enter:
            raise ConfigError(
                "PULSEGATE_TRENDING_LEAVE must be below PULSEGATE_TRENDING_ENTER", field="PULSEGATE_TRENDING_LEAVE"
            )
        if self.virtual_clock and self.processes > 1:
            raise ConfigError(
                "PULSEGATE_VIRTUAL_CLOCK needs PULSEGATE_PROCESSES to be 1: one process moves the clock",
                field="PULSEGATE_VIRTUAL_CLOCK",
            )
        if not self.outbox_high <= self.outbox_max:
            raise ConfigError(
                "PULSEGATE_OUTBOX_HIGH must not exceed PULSEGATE_OUTBOX_MAX",
                field="PULSEGATE_OUTBOX_HIGH",
            )

    def tuning(self, began: int = 0, ended: int = 0) -> str:
        """What every script is told, in the order of lua/lib/tuning.lua: the last outage (ms), bounds, the rules' times."""
        values = (
            began, ended, self.outbox_max, self.lifetime_ms, self.stale_intervals, self.interval_ms, self.paused_keep_ms, self.paused_silent_ms,
            self.paused_end_ms, self.sticky_ms, self.reopen_ms, self.guard_ms, self.left_ms, self.straggle_ms, self.unproven_ms,
            self.supersede_burst, self.supersede_refill_ms, self.record_keep_ms, self.records_max, self.sessions_max, self.takeovers_max,
            self.takeover_window_ms, self.no_progress_ms,
        )  # fmt: skip
        return " ".join(str(v) for v in values)

    def to_env(self) -> dict[str, str]:
        """The same settings as environment variables, for a child process."""
        return {f"PULSEGATE_{f.name.upper()}": _as_text(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def describe(self) -> list[tuple[str, str, str]]:
        """(variable, value, help) of every setting; secrets are masked, also those within URLs."""
        rows = []
        for f in dataclasses.fields(self):
            value = _as_text(getattr(self, f.name))
            shown = MASK if f.metadata["secret"] and value else masked(value)
            rows.append((f"PULSEGATE_{f.name.upper()}", shown, f.metadata["help"]))
        return rows


def _check_redis_url(name: str, url: str) -> None:
    """Raises ConfigError, which does not repeat the URL: redis-py's error would, with a password that holds a `/`, say."""
    if not url:
        return
    try:
        parse_url(url)
    except ValueError:
        raise ConfigError(
            f"{name} must be redis://, rediss:// or unix://, its password percent-encoded", field=name
        ) from None


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _from_file(env: Mapping[str, str], name: str) -> str:
    if name in env:
        raise ConfigError(f"{name} and {name}_FILE are both set; keep one", field=name)
    try:
        return Path(env[f"{name}_FILE"]).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{name}_FILE cannot be read: {error.strerror}", field=f"{name}_FILE") from None


def _convert(name: str, spec: dataclasses.Field[Any], raw: str) -> Any:
    kind: Any = type(spec.default)
    try:
        if kind is bool:
            value: Any = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                raw.strip().lower()
            ]
        elif kind is tuple:
            value = tuple(part.strip() for part in raw.split(",") if part.strip())
        else:
            value = kind(raw)
    except (ValueError, KeyError):
        raise ConfigError(f"{name}={raw!r} is not a valid {kind.__name__}", field=name) from None
    low, high, choices = spec.metadata["low"], spec.metadata["high"], spec.metadata["choices"]
    if low is not None and not value >= low:
        raise ConfigError(f"{name}={raw} is below {low:g}", field=name)
    if high is not None and not value <= high:
        raise ConfigError(f"{name}={raw} is above {high:g}", field=name)
    if choices and value not in choices:
        raise ConfigError(f"{name}={raw!r} is none of {', '.join(choices)}", field=name)
    return value
