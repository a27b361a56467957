"""The way between the server and an engine: whole messages, in order, in both directions.

Sound and pictures cross outside of the pickle, straight from the array that holds them into the
one that is made for them, so that packing a message costs the event loop the same for a word as
for a film.

A ring of shared memory (a memfd, which a crash cannot leak) was measured beside the socket: a
unit with a picture of 6 MB took the loop 0.19 ms instead of 0.24 ms and 5.6 ms instead of 5.9 ms
there and back (medians of 100 on a disturbed machine of two cores), since a ring is copied twice,
too. That difference is not worth a second way with an allocator of its own.
"""

import io
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from agent import errors
from agent.errors import AgentError, EngineError
from agent.fleet.channel import Channel, ChannelClosed
from agent.fleet.messages import Message

_HEAD = struct.Struct("=IQ")
_LENGTH = struct.Struct("=Q")
_PIECES_AT_ONCE = 512
"""The kernel takes 1024 of them in one call."""
_SOCKET_BUFFER_BYTES = 4 << 20
"""A picture fits; what the kernel allows beyond its own limit is cut there."""
_MAX_WAITING = 1024

Piece: TypeAlias = bytes | memoryview


class LinkClosed(EngineError):
    """The other side is gone, or this one was closed."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message ready to be sent; `size_bytes` is what it holds on to until then."""

    size_bytes: int
    content: Any


class Link(Protocol):
    """One side of the way. One thread sends, one receives, anybody closes."""

    def pack(self, message: Message) -> Parcel:
        """Make ready what `send` takes, on any thread: 16 µs for a unit, 50 with eight pictures."""

    def send(self, parcel: Parcel) -> None:
        """Hand over; waits while the other side does not read. `LinkClosed`."""

    def receive(self) -> Message:
        """Wait for the next message. `LinkClosed` after the last."""

    def close(self) -> None:
        """End both directions; whoever waits in `send` or `receive` gets `LinkClosed`."""


# ---- between processes ------------------------------------------------------------------------


class SocketLink:
    """A `Link` over one end of a pair of stream sockets."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)

    def pack(self, message: Message) -> Parcel:
        """See `Link`."""
        buffers: list[memoryview] = []
        content = io.BytesIO()
        _Pickler(content, lambda buffer: buffers.append(buffer.raw())).dump(message)
        body = content.getbuffer()
        lengths = b"".join(_LENGTH.pack(buffer.nbytes) for buffer in buffers)
        head = _HEAD.pack(len(buffers), body.nbytes) + lengths
        pieces: list[Piece] = [head, body, *buffers]
        return Parcel(sum(len(piece) for piece in pieces), pieces)

    def send(self, parcel: Parcel) -> None:
        """See `Link`."""
        pieces: list[Piece] = [piece for piece in parcel.content if len(piece)]
        try:
            while pieces:
                sent = self._end.sendmsg(pieces[:_PIECES_AT_ONCE])
                pieces = _after(pieces, sent)
        except OSError as error:
            raise LinkClosed("the other side of the link is gone") from error

    def receive(self) -> Message:
        """See `Link`."""
        count, size = _HEAD.unpack(self._take(_HEAD.size))
        lengths = self._take(count * _LENGTH.size)
        body = self._take(size)
        buffers = [self._take(length) for (length,) in _LENGTH.iter_unpack(lengths)]
        message: Message = pickle.loads(body, buffers=buffers)
        return message

    def close(self) -> None:
        """See `Link`."""
        try:
            # Closing alone would leave a thread that waits in the kernel waiting.
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._end.close()

    def _take(self, size: int) -> bytearray:
        taken = bytearray(size)
        view, at = memoryview(taken), 0
        while at < size:
            try:
                count = self._end.recv_into(view[at:], 0, socket.MSG_WAITALL)
            except OSError as error:
                raise LinkClosed("this side of the link was closed") from error
            if not count:
                raise LinkClosed("the other side of the link is gone")
            at += count
        return taken


def _after(pieces: list[Piece], sent: int) -> list[Piece]:
    """What is left of `pieces` after the first `sent` bytes."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []


class _Pickler(pickle.Pickler):
    """Arrays go beside the pickle, and errors as what the other side knows them by."""

    def __init__(self, content: io.BytesIO, beside: Callable[[pickle.PickleBuffer], None]) -> None:
        super().__init__(content, protocol=5, buffer_callback=beside)

    def reducer_override(self, value: object) -> Any:
        """Called for everything that is no plain number, text or tuple."""
        if isinstance(value, np.ndarray) and not value.flags.forc:
            # A picture whose rows lie apart would go into the pickle, at 9 ms instead of 0.2.
            return np.ascontiguousarray(value).__reduce_ex__(5)
        return _reduce_error(value) if isinstance(value, BaseException) else NotImplemented


def _reduce_error(error: BaseException) -> tuple[object, ...]:
    """An error that needs keywords to be made, and one whose class only the engine has."""
    if not isinstance(error, AgentError):
        return _error, (EngineError, ("the engine failed; its log says more",), {})
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return _error, (kind, error.args, dict(vars(error)))


def _error(
    kind: type[AgentError], arguments: tuple[object, ...], fields: dict[str, object]
) -> AgentError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(fields)
    return error


# ---- within one process -----------------------------------------------------------------------


class QueueLink:
    """A `Link` between two threads of one process; nothing is copied. Make both by `pair`."""

    def __init__(self, out: Channel[Message], into: Channel[Message]) -> None:
        self._out = out
        self._into = into

    @classmethod
    def pair(cls) -> tuple["QueueLink", "QueueLink"]:
        """Both ends."""
        there: Channel[Message] = Channel(_MAX_WAITING)
        back: Channel[Message] = Channel(_MAX_WAITING)
        return cls(there, back), cls(back, there)

    def pack(self, message: Message) -> Parcel:
        """See `Link`."""
        return Parcel(0, message)

    def send(self, parcel: Parcel) -> None:
        """See `Link`."""
        try:
            self._out.put(parcel.content)
        except ChannelClosed as error:
            raise LinkClosed("the link was closed") from error

    def receive(self) -> Message:
        """See `Link`."""
        try:
            return self._into.get()
        except ChannelClosed as error:
            raise LinkClosed("the link was closed") from error

    def close(self) -> None:
        """See `Link`."""
        self._out.close()
        self._into.close()
