"""The ICE side of one peer: candidates that come late, and restarts when its network changes.

A restart makes a second connection, by which all goes once it stands; until then, and when it
never does, the first one carries the call.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from agent.clock import Clock
from agent.errors import QuotaError, RequestError
from agent.transport.ice_fragment import (
    Credentials,
    Fragment,
    IceSection,
    bad_fragment,
    media_lines,
    read_offer,
    written,
)
from agent.transport.ice_inside import (
    SecondWay,
    add_candidates,
    hides_address,
    local_side,
    read_candidates,
    ways_of,
)
from agent.transport.restart_offer import answer_again, check_same_media

log = logging.getLogger(__name__)

MOST_RESTARTS = 30
RESTARTS_WITHIN_S = 60.0
"""Each takes sockets, and where there is a TURN server a place there; more are refused."""
MOST_CANDIDATES = 64
"""Of one generation: each is an address that checks are sent to. More are passed over."""
_LINGER_S = 1.0
"""What the peer sends by the old way before it knows the new one still comes in."""

Start = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]


class OtherIceSession(RequestError):
    """It is meant for a generation that is over, or has not begun."""

    status = 412
    code = "other_ice_session"


class TooManyRestarts(QuotaError):
    """ICE was restarted too often in a short time."""

    code = "restart_limit_exceeded"
    reason = "restarts"


class NotConnected(RequestError):
    """There is no connection yet that could be restarted."""

    status = 409
    code = "not_connected"


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the call began with, as SDP."""

    offer: str
    answer: str


@dataclass(slots=True)
class _Way:
    """One transport of the peer, named for its first section."""

    mid: str
    mids: frozenset[str]
    transport: Any
    remote: Credentials
    told: int = 0
    second: SecondWay | None = None

    @property
    def connection(self) -> Any:
        """Where candidates of this generation go."""
        return self.second.connection if self.second else self.transport._connection

    @property
    def local(self) -> IceSection:
        """This side."""
        return local_side(self.connection, self.mid)


class PeerIce:
    """To be made once an offer is answered; ends with the tasks that it has started."""

    def __init__(
        self, peer: Any, agreed: Agreed, clock: Clock, connect_timeout_s: float, start: Start
    ) -> None:
        """`start` runs a task that ends with the call. ValueError when the offer names no ICE."""
        said = read_offer(agreed.offer)
        self._ways = [
            _Way(mids[0], frozenset(mids), transport, _credentials(said, mids[0]))
            for transport, mids in ways_of(peer)
        ]
        self._agreed = agreed
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._start = start
        self._generation = 1
        self._begun_s: deque[float] = deque(maxlen=MOST_RESTARTS)
        self._changing = asyncio.Lock()
        self._restarting: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Try the candidates of the offer. ValueError."""
        await self._add(self._read(read_offer(self._agreed.offer)))

    @property
    def tag(self) -> str:
        """Another one for each generation: letters, digits and a dash."""
        return f"{self._generation}-{self._ways[0].connection.local_username}"

    def is_new(self, fragment: Fragment) -> bool:
        """Whether it has credentials that are not those of this generation."""
        said = [(way, fragment.of(way.mid).credentials) for way in self._ways]
        return any(remote is not None and remote != way.remote for way, remote in said)

    # ---- what the peer signals ----------------------------------------------------------------

    async def trickle(self, fragment: Fragment) -> None:
        """Try these candidates, too. `OtherIceSession`; `RequestError`, and none is tried."""
        if self.is_new(fragment):
            raise OtherIceSession("the credentials are not those of this ICE session")
        await self._add(self._read_checked(fragment))

    async def restart(self, fragment: Fragment) -> str:
        """The peer comes by another way from now on: this side's fragment.

        Candidates for the way there is already are trickled. `NotConnected`, `TooManyRestarts`,
        `RequestError`.
        """
        await self._begin_or_trickle(fragment)
        lines = media_lines(self._agreed.answer, self._local)
        return written(list(zip(lines, self._local.sections, strict=True)))

    async def answer_again(self, offer: str) -> str:
        """The answer to a later offer, which may restart ICE and nothing more. `RequestError`,
        `TooManyRestarts`."""
        check_same_media(offer, self._agreed.offer)
        try:
            said = read_offer(offer)
        except ValueError as error:
            raise bad_fragment(str(error)) from error
        await self._begin_or_trickle(said)
        answer = answer_again(self._agreed.answer, offer, self._local)
        self._agreed = replace(self._agreed, answer=answer)
        return answer

    async def _begin_or_trickle(self, fragment: Fragment) -> None:
        async with self._changing:
            if self.is_new(fragment):
                await self._begin_generation(fragment)
            else:
                await self._add(self._read_checked(fragment))

    # ---- a new generation ---------------------------------------------------------------------

    async def _begin_generation(self, fragment: Fragment) -> None:
        fresh = [self._fresh(way, fragment) for way in self._ways]
        candidates = self._read_checked(fragment)
        self._expect_rest()
        await self._give_up_restart()
        seconds = await self._second_ways()
        for way, second, remote in zip(self._ways, seconds, fresh, strict=True):
            way.second, way.remote, way.told = second, remote, 0
        self._generation += 1
        self._restarting = self._start(self._carry_out())
        await self._add(candidates)

    def _expect_rest(self) -> None:
        """One more restart begins. `TooManyRestarts`."""
        now_s = self._clock.now_s()
        if len(self._begun_s) == MOST_RESTARTS and now_s - self._begun_s[0] < RESTARTS_WITHIN_S:
            raise TooManyRestarts(
                f"the call's ICE may be restarted {MOST_RESTARTS} times within "
                f"{RESTARTS_WITHIN_S:.0f} s; wait before you do so again, the call goes on",
                retry_after_s=self._begun_s[0] + RESTARTS_WITHIN_S - now_s,
            )
        self._begun_s.append(now_s)

    def _fresh(self, way: _Way, fragment: Fragment) -> Credentials:
        remote = fragment.of(way.mid).credentials
        if remote is None:
            raise bad_fragment("a restart needs a=ice-ufrag and a=ice-pwd")
        if way.transport.state != "completed":
            raise NotConnected("the call is not connected yet, so there is nothing to restart")
        return remote

    async def _second_ways(self) -> list[SecondWay]:
        """One beside each, with this side's candidates."""
        seconds = []
        async with AsyncExitStack() as undo:
            for way in self._ways:
                seconds.append(SecondWay(way.transport))
                undo.push_async_callback(seconds[-1].give_up)
                await seconds[-1].gather()
            undo.pop_all()
        return seconds

    async def _give_up_restart(self) -> None:
        """Of two restarts, the later one counts."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait((self._restarting,))

    async def _carry_out(self) -> None:
        seconds = [(way, way.second) for way in self._ways if way.second]
        stands = False
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await asyncio.gather(*(two.connect(way.remote) for way, two in seconds))
            for way, second in seconds:
                second.take_over()
                way.second = None
            stands = True
            await self._clock.sleep_until(self._clock.now_s() + _LINGER_S)
        except (ConnectionError, TimeoutError):
            log.info("an ICE restart came to nothing; the call goes on as it was")
        finally:
            for way, second in seconds:
                way.second = None if way.second is second else way.second
                await (second.retire() if stands else second.give_up())

    # ---- what a fragment says -----------------------------------------------------------------

    @property
    def _local(self) -> Fragment:
        """This side, a section for each way."""
        return Fragment(tuple(way.local for way in self._ways))

    def _read_checked(self, fragment: Fragment) -> list[tuple[_Way, Sequence[Any]]]:
        try:
            return self._read(fragment)
        except ValueError as error:
            raise bad_fragment(str(error)) from error

    def _read(self, fragment: Fragment) -> list[tuple[_Way, Sequence[Any]]]:
        """The candidates for each way, less those of sections that the answer refused."""
        found: list[tuple[_Way, Sequence[Any]]] = []
        for section in fragment.sections:
            owner = next((way for way in self._ways if section.mid in way.mids), None)
            if owner is not None or not section.mid:
                found.append((owner or self._ways[0], read_candidates(section.candidates)))
        return found

    async def _add(self, found: Sequence[tuple[_Way, Sequence[Any]]]) -> None:
        for way, candidates in found:
            some = candidates[: MOST_CANDIDATES - way.told]
            way.told += len(some)
            hidden = [each for each in some if hides_address(each)]
            await add_candidates(way.connection, [each for each in some if each not in hidden])
            if hidden:
                self._start(add_candidates(way.connection, hidden))


def _credentials(said: Fragment, mid: str) -> Credentials:
    credentials = said.of(mid).credentials
    if credentials is None:
        raise ValueError("it names no a=ice-ufrag and a=ice-pwd")
    return credentials
