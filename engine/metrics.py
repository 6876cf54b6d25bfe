"""Metrics in Prometheus' terms. With several API processes each writes to files in `PULSEGATE_METRICS_DIR` and a
scrape of any of them adds them up (prometheus-client's multiprocess mode).

The hot path counts in plain Python numbers; `flush` moves them into the Prometheus metrics about once a second
and before a scrape, because an `inc` costs as much as a Redis reply.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client import Counter as PromCounter
from prometheus_client.metrics import MetricWrapperBase

from engine.lag import Flow

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


_ALLOWED = ("allow", "", "")


class Metrics:
    """One per process; pass a directory (already in `PROMETHEUS_MULTIPROC_DIR`) when there are several."""

    def __init__(self, multiprocess_dir: str = "") -> None:
        self._dir = multiprocess_dir
        self.registry = r = CollectorRegistry()
        self.decisions = PromCounter(
            "pulsegate_decisions", "Decisions by outcome, reason and rule.", ["outcome", "reason", "rule"], registry=r
        )
        self.ended = PromCounter(
            "pulsegate_removed_streams", "Streams ended so that another may start, by reason.", ["reason"], registry=r
        )
        self.unstated = PromCounter(
            "pulsegate_unstated_attributes",
            "Streams that left an attribute out which a rule selects on.",
            ["attribute"],
            registry=r,
        )
        self.requests = PromCounter(
            "pulsegate_requests", "Answers by route and status.", ["route", "status"], registry=r
        )
        self.duration = Histogram(
            "pulsegate_request_seconds", "Time to answer, by route.", ["route"], buckets=LATENCY_BUCKETS_S, registry=r
        )
        self.redis_duration = Histogram(
            "pulsegate_redis_seconds",
            "Time of a script call as the API sees it.",
            buckets=LATENCY_BUCKETS_S,
            registry=r,
        )
        self.edge_without_content = PromCounter(
            "pulsegate_edge_without_content",
            "Edge requests whose URI names no content: they refresh, but start nothing. Many: see PULSEGATE_EDGE_URI.",
            registry=r,
        )
        self.overloaded = PromCounter("pulsegate_overloaded", "Requests answered 429.", registry=r)
        self.over_quota = PromCounter(
            "pulsegate_over_quota",
            "What was refused or left out because an account, or Redis, has no room for it, by what.",
            ["what"],
            registry=r,
        )
        self.memory = Gauge(
            "pulsegate_redis_memory_ratio",
            "Share of its memory that a Redis uses; of several nodes the fullest.",
            ["redis"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.memory_high = Gauge(
            "pulsegate_redis_memory_high",
            "1 while one is above PULSEGATE_MEMORY_HIGH.",
            registry=r,
            multiprocess_mode="max",
        )
        self.degraded = PromCounter("pulsegate_degraded", "Answers given without Redis.", registry=r)
        self.spooled = PromCounter(
            "pulsegate_spooled_heartbeats", "Heartbeats kept while Redis was away, by fate.", ["fate"], registry=r
        )
        self.spilled = PromCounter(
            "pulsegate_spilled_events",
            "Events kept on disk while their outbox was full, by fate.",
            ["fate"],
            registry=r,
        )
        self.tracking_received = PromCounter(
            "pulsegate_tracking_received",
            "Tracking events whose fate was answered: accepted + duplicate + rejected.",
            registry=r,
        )
        self.tracking = PromCounter("pulsegate_tracking_events", "Tracking events by fate.", ["fate"], registry=r)
        self.bad = PromCounter(
            "pulsegate_bad_events",
            "Rejected tracking events: kept, or lost with the log Redis away.",
            ["fate"],
            registry=r,
        )
        self.cmcd = PromCounter(
            "pulsegate_cmcd_reports",
            "CMCD reports answered: accepted, duplicate, newer (a version we do not know), or why one is bad.",
            ["fate"],
            registry=r,
        )
        self.cmcd_keys = PromCounter(
            "pulsegate_cmcd_dropped_keys", "Known CMCD keys whose values were ill-typed.", ["key"], registry=r
        )
        self.redis_up = Gauge(
            "pulsegate_redis_up", "1 if every session Redis node answers.", registry=r, multiprocess_mode="min"
        )
        self.leases = Gauge(
            "pulsegate_leases", "Leases held, by rule.", ["rule"], registry=r, multiprocess_mode="mostrecent"
        )
        self.outbox = Gauge(
            "pulsegate_outbox_events", "Events waiting in all outboxes.", registry=r, multiprocess_mode="mostrecent"
        )
        self.thinned = Gauge(
            "pulsegate_thinned_partitions",
            "Partitions whose plain heartbeats are thinned.",
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.lost = Gauge(
            "pulsegate_lost_events", "Events lost ever: outbox and spill were full.", registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.thinned_events = PromCounter(
            "pulsegate_thinned_events",
            "Plain heartbeats and evidence not appended: the outbox is too long.",
            registry=r,
        )
        self.mirrored = Gauge(
            "pulsegate_mirrored_events",
            "Events appended to the event log ever.",
            ["topic"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.lag_events = Gauge(
            "pulsegate_lag_events", "Events in the log that a consumer or sink has not handled.", ["consumer"], registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.lag_seconds = Gauge(
            "pulsegate_lag_seconds",
            "Age of the oldest of them.",
            ["consumer"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.handled = Gauge(
            "pulsegate_handled_events", "Events a consumer or sink has handled ever.", ["consumer"], registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.dead = Gauge(
            "pulsegate_dead_letters", "Events kept that a consumer or sink could not handle.", ["consumer"], registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.tenures = Gauge(
            "pulsegate_tenures",
            "Groups of partitions that somebody works on.",
            ["job"],
            registry=r,
            multiprocess_mode="mostrecent",
        )
        self.bad_kept = Gauge(
            "pulsegate_bad_events_kept", "Rejected tracking events kept.", registry=r, multiprocess_mode="mostrecent"
        )
        self.skipped = Gauge(
            "pulsegate_skipped", "What a job could not read in Redis and left out, ever.", ["job"], registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.trending = Gauge(
            "pulsegate_trending_seconds", "What the last publication of lists took, with the claims before it.", registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.connections = Gauge(
            "pulsegate_connections", "Connections that are open.", registry=r, multiprocess_mode="livesum"
        )
        self.stream_readers = Gauge(
            "pulsegate_stream_readers", "Readers of /v1/trending/stream.", registry=r, multiprocess_mode="livesum"
        )
        self.slow_readers = PromCounter(
            "pulsegate_slow_readers", "Readers of a stream that took nothing for too long.", registry=r
        )
        self.questions = Gauge(
            "pulsegate_questions", "Questions on quality and behaviour that wait or are being answered.", registry=r,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.plans_broken = Gauge(
            "pulsegate_plans_broken", "1 while the plans file cannot be read.", registry=r, multiprocess_mode="max"
        )
        self._decided: Counter[tuple[str, str, str]] = Counter()
        self._routes: dict[str, _Local] = {}
        self._redis = _Local()

    def decided(self, outcome: str, reason: str, rule: str, ended: Sequence[str]) -> None:
        self._decided[outcome, reason, rule] += 1
        for why in ended:
            self.ended.labels(why).inc()

    def allowed(self) -> None:
        """The usual decision: nothing to explain, nobody removed."""
        self._decided[_ALLOWED] += 1

    def tracked(self, accepted: int, duplicates: int, rejected: int) -> None:
        self.tracking_received.inc(accepted + duplicates + rejected)
        for fate, count in (("accepted", accepted), ("duplicate", duplicates), ("rejected", rejected)):
            self.tracking.labels(fate).inc(count)

    def answered(self, route: str, status: int, seconds: float) -> None:
        local = self._routes.get(route)
        if local is None:
            local = self._routes[route] = _Local()
        local.add(seconds)
        local.statuses[status] += 1

    def redis_took(self, seconds: float) -> None:
        self._redis.add(seconds)

    def flush(self) -> None:
        for key, count in self._decided.items():
            self.decisions.labels(*key).inc(count)
            if key[0] == "degraded":
                self.degraded.inc(count)
        self._decided.clear()
        for route, local in self._routes.items():
            for status, count in local.statuses.items():
                self.requests.labels(route, str(status)).inc(count)
            local.statuses.clear()
            local.move_to(self.duration.labels(route))
        self._redis.move_to(self.redis_duration)

    def flows(self, flow: Flow) -> None:
        """The state of the background work."""
        for topic, count in flow.mirrored.items():
            self.mirrored.labels(topic).set(count)
        for job, owners in flow.owners.items():
            self.tenures.labels(job).set(owners)
        for lag in flow.lags:
            self.lag_events.labels(lag.name).set(lag.events)
            self.lag_seconds.labels(lag.name).set(lag.seconds)
            self.handled.labels(lag.name).set(lag.handled)
            self.dead.labels(lag.name).set(lag.dead)
            self.tenures.labels(lag.job).set(lag.owners)
        for job, count in flow.skipped.items():
            self.skipped.labels(job).set(count)
        self.bad_kept.set(flow.bad)
        if flow.trending_s is not None:
            self.trending.set(flow.trending_s)

    def render(self) -> bytes:
        """The scrape: this process's metrics, or those of all of them."""
        self.flush()
        if not self._dir:
            return generate_latest(self.registry)
        merged = CollectorRegistry()
        multiprocess.MultiProcessCollector(merged, self._dir)  # type: ignore[no-untyped-call]
        return generate_latest(merged)

    def leave(self) -> None:
        """Withdraws this process's live gauges when it stops in order."""
        self.flush()
        if self._dir:
            multiprocess.mark_process_dead(os.getpid(), self._dir)  # type: ignore[no-untyped-call]


class _Local:
    """A histogram in plain numbers, moved into prometheus-client's buckets in one go."""

    __slots__ = ("buckets", "statuses", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.total = 0.0
        self.statuses: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self.total += seconds

    def move_to(self, histogram: MetricWrapperBase) -> None:
        for bucket, count in zip(histogram._buckets, self.buckets, strict=True):  # type: ignore[attr-defined]
            if count:
                bucket.inc(count)
        histogram._sum.inc(self.total)  # type: ignore[attr-defined]
        self.buckets = [0] * len(self.buckets)
        self.total = 0.0
