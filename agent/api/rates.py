"""How often somebody may ask: a bucket of tokens for each, filled again as time passes."""

from collections import OrderedDict
from dataclasses import dataclass

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import QuotaError


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Rates:
    """Buckets by name, at most `most`: beyond it the one that was used longest ago is forgotten.

    It would be full by then, unless more than `most` come within a minute: then names are cheap for
    whoever comes, and no count by name could hold them.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK, most: int = 4096) -> None:
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        """How many buckets there are."""
        return len(self._buckets)

    def take(self, name: str, per_minute: int, what: str = "requests") -> None:
        """One more of `name`, who may have so many at once and so many in each minute.

        `QuotaError`, which takes nothing and says when the next one may come.
        """
        bucket = self._filled(name, per_minute)
        if bucket.tokens < 1:
            wait_s = (1 - bucket.tokens) * 60 / per_minute
            raise QuotaError(
                f"rate limit reached: {per_minute} {what} a minute; try again later",
                retry_after_s=wait_s,
            )
        bucket.tokens -= 1

    def left(self, name: str, per_minute: int) -> tuple[int, float]:
        """How many more of `name` may come now, and after how many seconds all may again."""
        bucket = self._filled(name, per_minute)
        return int(bucket.tokens), (per_minute - bucket.tokens) * 60 / per_minute

    def _filled(self, name: str, per_minute: int) -> _Bucket:
        now_s = self._clock.now_s()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(float(per_minute), now_s)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        gained = max(0.0, now_s - bucket.at_s) * per_minute / 60
        bucket.tokens = min(float(per_minute), bucket.tokens + gained)
        bucket.at_s = now_s
        return bucket
