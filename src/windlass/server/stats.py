"""Counters of one process, for metrics and diagnostics: bounded, and cheap enough for every request."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable

from windlass.accounts.records import RequestRecord
from windlass.core import clock
from windlass.server.http import Call

__all__ = ["BUCKETS", "Client", "Series", "Stats"]

#: Upper bounds of the histograms in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_CLIENTS, _SERIES, _NAMES = 1000, 2000, 4


class Client:
    """A client that was seen: where from, with which key, how often, and when last (UTC nanoseconds)."""

    __slots__ = ("address", "key", "last_seen", "requests", "tenant")

    def __init__(self, address: str, key: str, tenant: str) -> None:
        self.address, self.key, self.tenant = address, key, tenant
        self.requests = self.last_seen = 0


class Series:
    """What was counted of the requests with the same labels. Money in nano-dollars, time in microseconds.

    `duration` and `first` count by `BUCKETS`; `first_us` is the sum of the times to the first content, `own` and
    `waited` together are the sum of the durations.
    """

    __slots__ = (
        "attempts", "cache_creation", "cache_read", "cost", "count", "duration", "first", "first_us", "input", "output",
        "own", "reasoning", "unknown_cost", "waited",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = self.attempts = self.input = self.output = self.cache_read = self.cost = 0
        self.cache_creation = self.reasoning = self.unknown_cost = 0
        self.own = self.waited = self.first_us = 0
        self.duration = [0] * (len(BUCKETS) + 1)
        self.first = [0] * (len(BUCKETS) + 1)


class Stats:
    """Count what happens. Labels that clients make up are never kept: a series has names of ours only.

    `ours` tells whether a provider or a "provider:model" stands in the configuration; of other targets only the
    provider is kept.
    """

    def __init__(self, ours: Callable[[str], bool]) -> None:
        self._ours = ours
        self.started = clock.now_ns()
        self.total = self.successful = self.failed = 0
        self.active = 0
        self.refusals: dict[int, int] = {}
        self.clients: OrderedDict[tuple[str, str], Client] = OrderedDict()
        #: (endpoint, target, status, outcome) -> what was counted.
        self.series: dict[tuple[str, str, int, str], Series] = {}

    def entered(self, call: Call) -> None:
        """Count a request that came in."""
        self.active += 1
        self.total += 1
        identity = call.identity
        key = (call.peer, identity.key_id)
        client = self.clients.get(key)
        if client is None:
            client = self.clients[key] = Client(call.peer, identity.name, identity.tenant)
            if len(self.clients) > _CLIENTS:
                self.clients.popitem(last=False)
        else:
            self.clients.move_to_end(key)
        client.requests += 1
        client.last_seen = clock.now_ns()

    def left(self, call: Call) -> None:
        """Count a request that was answered."""
        self.active -= 1
        if 200 <= call.status < 400:
            self.successful += 1
        else:
            self.failed += 1

    def refused(self, status: int) -> None:
        """Count a request that did not come in."""
        self.refusals[status] = self.refusals.get(status, 0) + 1

    def observe(self, record: RequestRecord) -> None:
        """Take the record of a model request."""
        key = (record.endpoint, record.target, record.status, record.outcome)
        series = self.series.get(key)
        if series is None:
            series = self._series(record)
        series.count += 1
        series.attempts += record.attempts
        series.input += record.input_tokens
        series.output += record.output_tokens
        series.cache_read += record.cache_read_tokens
        series.cache_creation += record.cache_creation_tokens
        series.reasoning += record.reasoning_tokens
        if record.cost is None:
            series.unknown_cost += 1
        else:
            series.cost += record.cost
        waited = record.upstream_us or 0
        series.waited += waited
        series.own += record.duration_us - waited
        series.duration[bisect_left(BUCKETS, record.duration_us / 1e6)] += 1
        if record.first_token_us is not None:
            series.first_us += record.first_token_us
            series.first[bisect_left(BUCKETS, record.first_token_us / 1e6)] += 1

    def _series(self, record: RequestRecord) -> Series:
        """Return the series of labels that are not there yet, or that a client made up."""
        key = (record.endpoint, self.label(record.target), record.status, record.outcome)
        if key not in self.series and len(self.series) >= _SERIES:
            key = (record.endpoint, "other", record.status, record.outcome)
        return self.series.setdefault(key, Series())

    def label(self, target: str) -> str:
        """Return a target's name as a label; a broken stream that others continued has their names too."""
        names = target.split(", ")
        if not target or (len(names) <= _NAMES and all(map(self._ours, names))):
            return target
        provider = target.partition(":")[0]
        return f"{provider}:other" if self._ours(provider) else "other"
