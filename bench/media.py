"""The media plane, measured end to end: `python -m bench.media --json`.

Each figure is taken in a real Chromium whose page records, to the sample, what it plays and what
its user says. Where there is one, the stock aiortc path is measured in the same run, in `against`.
`--only` picks parts by the beginning of a row's name; `--quick` takes few measurements of each.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agent.types import SPEECH_RATE_HZ
from bench import media_loop, media_transport
from bench.media_page import ChromiumMissing, Rig, measuring_rig
from bench.media_quality import pesq_pieces
from bench.media_transport import own_peer, stock_peer
from bench.report import Report, Target, add_arguments, at_least, at_most
from tests.rig.lossy_packets import LossyRelay, RandomLoss, lossy_relay
from tests.rig.voices import talk

_FAR_DELAY_MS = 75.0
"""Each way."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured of each."""

    words: int = 36
    recovery_rounds: int = 3
    loss_s: float = 29.0
    flushes: int = 15
    pictures_s: float = 10.0
    interruptions: int = 12
    heard: int = 8


QUICK = Sizes(
    words=8, recovery_rounds=1, loss_s=8.5, flushes=3, pictures_s=3.0, interruptions=2, heard=2
)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, ready to print."""

    name: str
    value: float
    unit: str
    target: Target | None = None
    against: float | None = None
    n: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that come from one measurement."""

    names: tuple[str, ...]
    unit: str
    measure: Callable[[Rig, Sizes], Awaitable[list[Row]]]


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def _both(
    name: str, percent: int, target: Target | None, own: Sequence[float], stock: Sequence[float]
) -> Row:
    """A percentile in milliseconds of ours, against that of the stock peer."""
    value, against = _percentile(own, percent), _percentile(stock, percent)
    return Row(f"{name}_p{percent}_ms", value, "ms", target, against, len(own))


def _make_uneven(relay: LossyRelay) -> None:
    """20 ms and 0–50 ms of jitter, both ways."""
    relay.to_client.follow(RandomLoss(seed=21, delay_ms=20, jitter_ms=50))
    relay.to_server.follow(RandomLoss(seed=22, delay_ms=20, jitter_ms=50))


# ---- parts ---------------------------------------------------------------------------------------


async def _latency(rig: Rig, sizes: Sizes) -> list[Row]:
    own, stock = [
        await media_transport.latencies(rig, make, sizes.words) for make in (own_peer, stock_peer)
    ]
    return [
        _both("uplink", 50, at_most(30), own.uplink_ms, stock.uplink_ms),
        _both("uplink", 95, at_most(45), own.uplink_ms, stock.uplink_ms),
        _both("downlink", 50, None, own.downlink_ms, stock.downlink_ms),
        _both("downlink", 95, at_most(70), own.downlink_ms, stock.downlink_ms),
        _both("downlink_from_send", 95, None, own.sent_ms, stock.sent_ms),
    ]


async def _jitter(rig: Rig, sizes: Sizes) -> list[Row]:
    results = []
    for make in (own_peer, stock_peer):
        async with lossy_relay() as relay:
            _make_uneven(relay)
            results.append(await media_transport.latencies(rig, make, sizes.words, relay))
    own, stock = results
    return [
        _both("uplink_jitter", 95, None, own.uplink_ms, stock.uplink_ms),
        _both("downlink_jitter", 95, at_most(150), own.downlink_ms, stock.downlink_ms),
    ]


async def _recovery(rig: Rig, sizes: Sizes) -> list[Row]:
    worst = []
    for make in (own_peer, stock_peer):
        async with lossy_relay() as relay:
            rounds = sizes.recovery_rounds
            worst.append(max(await media_transport.recoveries_s(rig, make, relay, rounds)))
    n = 2 * sizes.recovery_rounds
    return [Row("uplink_recovery_s", worst[0], "s", at_most(1), worst[1], n)]


def _loss(percent: int, pesq_target: float | None) -> Callable[[Rig, Sizes], Awaitable[list[Row]]]:
    async def measure(rig: Rig, sizes: Sizes) -> list[Row]:
        speech = talk(sizes.loss_s, SPEECH_RATE_HZ)
        results, scores = [], []
        for make in (own_peer, stock_peer):
            async with lossy_relay() as relay:
                result = await media_transport.under_loss(rig, make, relay, percent / 100, speech)
            results.append(result)
            scores.append(pesq_pieces(speech, result.played))
        own, stock = results
        slots = int(sizes.loss_s * 50)
        kept = f"slots_kept_loss{percent}"
        rows = [
            Row(kept, own.slots_kept, "share", at_least(0.995), stock.slots_kept, slots),
            Row(f"uplink_drift_loss{percent}_ms", own.drift_ms, "ms", None, stock.drift_ms),
            Row(f"downlink_loss{percent}_kbps", own.kbps, "kbit/s", None, stock.kbps),
        ]
        target = None if pesq_target is None else at_least(pesq_target)
        medians = [_percentile(pieces, 50) for pieces in scores]
        rows.append(
            Row(f"pesq_loss{percent}", medians[0], "MOS", target, medians[1], len(scores[0]))
        )
        return rows

    return measure


async def _far_loss(rig: Rig, sizes: Sizes) -> list[Row]:
    """5 % loss on a way so long that what is asked for again comes too late."""
    speech = talk(sizes.loss_s, SPEECH_RATE_HZ)
    scores = []
    for make in (own_peer, stock_peer):
        async with lossy_relay() as relay:
            result = await media_transport.under_loss(rig, make, relay, 0.05, speech, _FAR_DELAY_MS)
        scores.append(pesq_pieces(speech, result.played))
    own, stock = [_percentile(pieces, 50) for pieces in scores]
    return [Row("pesq_loss5_far", own, "MOS", None, stock, len(scores[0]))]


async def _flush(rig: Rig, sizes: Sizes) -> list[Row]:
    own, stock = [
        await media_transport.flushes_ms(rig, make, sizes.flushes)
        for make in (own_peer, stock_peer)
    ]
    return [_both("flush", 50, None, own, stock), _both("flush", 95, at_most(100), own, stock)]


async def _picture(rig: Rig, sizes: Sizes) -> list[Row]:
    own, stock = [
        await media_transport.picture_ages_ms(rig, make, sizes.pictures_s)
        for make in (own_peer, stock_peer)
    ]
    return [_both("picture_age", 95, at_most(150), own, stock)]


async def _heard(rig: Rig, sizes: Sizes) -> list[Row]:
    errors = await media_loop.heard_errors_ms(rig, sizes.heard)
    async with lossy_relay() as relay:
        _make_uneven(relay)
        errors += await media_loop.heard_errors_ms(rig, sizes.heard, relay)
    return [
        Row("heard_error_p50_ms", _percentile(errors, 50), "ms", at_most(60), n=len(errors)),
        Row("heard_error_p95_ms", _percentile(errors, 95), "ms", at_most(150), n=len(errors)),
    ]


def _barge_in(
    level_db: int, targets: tuple[Target, Target | None]
) -> Callable[[Rig, Sizes], Awaitable[list[Row]]]:
    async def measure(rig: Rig, sizes: Sizes) -> list[Row]:
        result = await media_loop.barge_ins(rig, level_db, sizes.interruptions)
        name, n = f"barge_in_{level_db}db", len(result.latency_ms)
        return [
            Row(f"{name}_p50_ms", _percentile(result.latency_ms, 50), "ms", targets[0], n=n),
            Row(f"{name}_p95_ms", _percentile(result.latency_ms, 95), "ms", targets[1], n=n),
            Row(f"{name}_ended_p50_ms", _percentile(result.ended_ms, 50), "ms", n=n),
            Row(f"{name}_missed", result.missed, "times", n=n),
            Row(f"{name}_unprovoked", result.unprovoked, "times", n=n + result.unprovoked),
            Row(f"{name}_erle_db", _percentile(result.erle_db, 50), "dB", n=len(result.erle_db)),
        ]

    return measure


PARTS = (
    Part(("uplink_p50_ms", "uplink_p95_ms", "downlink_p95_ms"), "ms", _latency),
    Part(("uplink_recovery_s",), "s", _recovery),
    Part(("slots_kept_loss1", "pesq_loss1"), "", _loss(1, None)),
    Part(("slots_kept_loss5", "pesq_loss5"), "", _loss(5, 3.6)),
    Part(("slots_kept_loss10", "pesq_loss10"), "", _loss(10, 3.1)),
    Part(("pesq_loss5_far",), "", _far_loss),
    Part(("downlink_jitter_p95_ms",), "ms", _jitter),
    Part(("flush_p95_ms",), "ms", _flush),
    Part(("heard_error_p50_ms", "heard_error_p95_ms"), "ms", _heard),
    Part(
        ("barge_in_8db_p50_ms", "barge_in_8db_p95_ms"),
        "ms",
        _barge_in(8, (at_most(250), at_most(400))),
    ),
    Part(("barge_in_2db_p50_ms",), "ms", _barge_in(2, (at_most(300), None))),
    Part(("picture_age_p95_ms",), "ms", _picture),
)


# ---- running -------------------------------------------------------------------------------------


async def rows(sizes: Sizes, only: str = "") -> AsyncIterator[Row]:
    """The rows of each part, as they come."""
    wanted = [part for part in PARTS if any(name.startswith(only) for name in part.names)]
    async with measuring_rig() as rig:
        for part in wanted:
            for row in await part.measure(rig, sizes):
                yield row


async def _print_all(report: Report, sizes: Sizes, only: str) -> None:
    async for row in rows(sizes, only):
        report.row(row.name, row.value, row.unit, target=row.target, against=row.against, n=row.n)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.media", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a few measurements of each, to try")
    parser.add_argument("--only", default="", metavar="NAME", help="rows that begin with NAME")
    options = parser.parse_args(arguments)
    report = Report(as_json=options.json)
    try:
        asyncio.run(_print_all(report, QUICK if options.quick else Sizes(), options.only))
    except ChromiumMissing as missing:
        report.not_measured(options.only or "media", "", str(missing))
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
