"""One child from start to end, seen from the event loop, which never waits for it.

Two threads: one starts the child, reads what it says until the link ends, and buries it; the
other one sends. They end with the child.
"""

import asyncio
import logging
import threading
from collections.abc import Callable

from agent.clock import SYSTEM_CLOCK, Clock
from agent.errors import CapacityError, EngineError
from agent.fleet.channel import Channel, ChannelClosed
from agent.fleet.host import Host
from agent.fleet.link import Link, LinkClosed, Parcel
from agent.fleet.messages import Chat, Message, Stop

log = logging.getLogger(__name__)

_MAX_WAITING = 4096
_MAX_WAITING_BYTES = 256 << 20
"""Half a minute of 16 calls that send pictures; more than that waits only for a child that hangs,
and what does not fit ends the call whose it is."""
_MAX_CHAT_BYTES = 256 << 20
"""What chats wait to send beside that, unless one alone is larger; more of them are put off."""
_RETRY_CHAT_S = 1.0
_MAX_NEWS = 4096


class Life:
    """One child. `begin` it, `tell` it, and when `ended` is done it is gone."""

    def __init__(
        self, host: Host, deliver: Callable[[Message], None], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._host = host
        self._hand_on = deliver
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """Done once the child is gone; says how it ended."""
        self.silent: asyncio.Future[None] = self._loop.create_future()
        """Done as soon as nothing more can come from it, which may be a moment earlier."""
        self.heard_s = clock.now_s()
        """When it last said anything."""
        self._out: Channel[Parcel] = Channel(_MAX_WAITING, _MAX_WAITING_BYTES, _MAX_CHAT_BYTES)
        self._news: Channel[Message] = Channel(_MAX_NEWS)
        self._link: Link | None = None
        self._cut = False
        self._lock = threading.Lock()
        self._waking = False
        self._reading = threading.Thread(target=self._read, name="engine-reader", daemon=True)

    def begin(self) -> None:
        """Start the child and what attends to it."""
        self._reading.start()

    def tell(self, message: Message, *, must: bool = False) -> None:
        """Send `message`; never waits. `EngineError` when the child takes nothing any more.

        `CapacityError` for a chat when those before it are still on their way. What the child
        `must` be told is kept however much waits.
        """
        if self._link is None:
            raise EngineError("the engine is not there yet")
        parcel = self._link.pack(message)
        is_chat = isinstance(message, Chat)
        if not self._out.offer(parcel, parcel.size_bytes, must=must, bulk=is_chat):
            if is_chat:
                raise CapacityError(
                    "the engine is still taking other chats in; try again later",
                    retry_after_s=_RETRY_CHAT_S,
                )
            raise EngineError("the engine no longer takes what it is told")

    def stop(self) -> None:
        """Ask the child to end; one that is loading is cut off."""
        try:
            self.tell(Stop(), must=True)
        except EngineError:
            self.cut()

    def cut(self) -> None:
        """Close the link: the child ends by itself, or is ended when it does not."""
        with self._lock:
            self._cut = True
            link = self._link
        self._out.close()
        self._news.close()
        if link is not None:
            link.close()

    def kill(self) -> None:
        """End the child at once."""
        self._host.kill()
        self.cut()

    async def over(self) -> str:
        """Wait until the child and its threads are gone; how it ended."""
        how = await asyncio.shield(self.ended)
        self._reading.join()
        return how

    # ---- the threads --------------------------------------------------------------------------

    def _read(self) -> None:
        how = "could not be started"
        try:
            link = self._host.start()
            try:
                self._attend(link)
            finally:
                link.close()
                self._on_loop(self._note_silence)
                how = self._host.bury()
        except OSError as error:
            how = f"could not be started: {error}"
        finally:
            self._on_loop(lambda: self._note_end(how))

    def _attend(self, link: Link) -> None:
        with self._lock:
            self._link, cut = link, self._cut
        if not cut:
            self._follow(link)

    def _follow(self, link: Link) -> None:
        """Read until the link ends, beside a thread that sends."""
        sender = threading.Thread(target=self._send, args=(link,), name="engine-sender")
        sender.daemon = True
        sender.start()
        try:
            while True:
                message = link.receive()
                self.heard_s = self._clock.now_s()
                self._news.put(message)
                self._wake()
        except (LinkClosed, ChannelClosed):
            pass
        finally:
            self._out.close()
            link.close()
            sender.join()

    def _send(self, link: Link) -> None:
        try:
            while True:
                link.send(self._out.get())
        except (LinkClosed, ChannelClosed):
            return

    def _wake(self) -> None:
        """One wake-up of the loop for everything that comes before it takes place."""
        with self._lock:
            waking, self._waking = self._waking, True
        if not waking:
            self._on_loop(self._deliver)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            log.debug("the event loop ended before its engine")

    # ---- on the loop --------------------------------------------------------------------------

    def _deliver(self) -> None:
        with self._lock:
            self._waking = False
        try:
            for message in self._news.drain():
                self._hand_on(message)
        except ChannelClosed:
            return

    def _note_silence(self) -> None:
        self._deliver()
        if not self.silent.done():
            self.silent.set_result(None)

    def _note_end(self, how: str) -> None:
        self._note_silence()
        if not self.ended.done():
            self.ended.set_result(how)
