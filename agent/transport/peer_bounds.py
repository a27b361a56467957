"""Bounds that aiortc and aioice lack, on what is remembered of a peer that keeps to no rules.

A stranger's datagram is as good as any until it is looked at, and an empty one would end the call.
A peer that holds a call could make up sources, addresses and halves of messages without end, until
the server has no memory or no time for the calls of others.
"""

import asyncio
from typing import Any

import pylibsrtp

MOST_DATAGRAMS = 1024
"""That wait to be looked at; more are dropped, as a socket does."""
MOST_ADDRESSES = 128
"""From which a peer may come in one generation of ICE, those that it named included."""
MOST_SOURCES = 31
"""Streams of media in a call, which is what one report has room for."""
MOST_CHANNELS = 64
MOST_PIECES = 1024
"""Pieces of messages, or numbers behind a gap: a full window has 900 of the usual size."""

_QUEUE = "_queue"
_CHECK = "check_incoming"
_ADDRESSES = "_remote_candidates"
_DECRYPTS = "_rx_srtp"
_TAKE_PIECE = "_receive_data_chunk"
_WINDOW = "_advertised_rwnd"
_STREAMS = "_inbound_streams"
_BEHIND_GAP = "_sack_misordered"
_LAST = "_last_received_tsn"
_NUMBERS = 1 << 32


class _Datagrams(asyncio.Queue[Any]):
    """Of aioice's pairs of a datagram and a number; None says that there are no more."""

    def put_nowait(self, item: Any) -> None:
        if item is None or (item[0] and self.qsize() < MOST_DATAGRAMS):
            super().put_nowait(item)


class _Sources:
    """Decryption of what comes from the first sources that there are."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._known: set[bytes] = set()

    def unprotect(self, data: bytes) -> bytes:
        """RTP. `pylibsrtp.Error`."""
        return self._opened(data[8:12], self._session.unprotect, data)

    def unprotect_rtcp(self, data: bytes) -> bytes:
        """RTCP. `pylibsrtp.Error`."""
        return self._opened(data[4:8], self._session.unprotect_rtcp, data)

    def _opened(self, source: bytes, unprotect: Any, data: bytes) -> bytes:
        if source not in self._known and len(self._known) >= MOST_SOURCES:
            raise pylibsrtp.Error("one source too many")
        plain: bytes = unprotect(data)
        self._known.add(source)
        return plain


def bound_peer(peer: Any) -> None:
    """All of the below for a connection that is about to be answered."""
    ways = [each.receiver.transport for each in peer.getTransceivers()]
    if peer.sctp is not None:
        ways.append(peer.sctp.transport)
        bound_messages(peer.sctp)
    for dtls in dict.fromkeys(ways):
        setattr(dtls.transport._connection, _QUEUE, _Datagrams())
        bound_addresses(dtls.transport._connection)
        bound_sources(dtls)


def bound_addresses(connection: Any) -> None:
    """Of a peer that comes from one new address after the other, some are passed over.

    Each would be remembered, and sent checks to: whoever forges them lets others be flooded.
    """
    check = getattr(connection, _CHECK)

    def bounded(message: Any, address: tuple[str, int], protocol: Any) -> None:
        known = getattr(connection, _ADDRESSES)
        if len(known) < MOST_ADDRESSES or any(
            (each._network_host, each.port) == address for each in known
        ):
            check(message, address, protocol)

    setattr(connection, _CHECK, bounded)


def bound_sources(dtls: Any) -> None:
    """Once media can be decrypted, only that of so many sources is."""

    def note_state() -> None:
        session = getattr(dtls, _DECRYPTS)
        if session is not None and not isinstance(session, _Sources):
            setattr(dtls, _DECRYPTS, _Sources(session))

    dtls.on("statechange", note_state)


def bound_messages(sctp: Any) -> None:
    """Pieces of messages beyond the window that the peer was told of are dropped, not kept."""
    take = getattr(sctp, _TAKE_PIECE)

    async def bounded(piece: Any) -> None:
        if _has_room(sctp, piece):
            await take(piece)

    setattr(sctp, _TAKE_PIECE, bounded)


def _has_room(sctp: Any, piece: Any) -> bool:
    streams, behind_gap = getattr(sctp, _STREAMS), getattr(sctp, _BEHIND_GAP)
    stream = streams.get(piece.stream_id)
    if stream is None and len(streams) >= MOST_CHANNELS:
        return False
    if len(piece.user_data) > getattr(sctp, _WINDOW):
        return False
    waiting = len(stream.reassembly) if stream is not None else 0
    # Without what fills the gap the rest would wait for good.
    fills = behind_gap and piece.tsn == ((getattr(sctp, _LAST) or 0) + 1) % _NUMBERS
    return bool(fills or max(waiting, len(behind_gap)) < MOST_PIECES)


async def check_bounds(peer: Any, address: Any) -> None:
    """AttributeError where a place is missing that is bounded; `address` is any candidate."""
    peer.createDataChannel("any")
    dtls, sctp = peer.sctp.transport, peer.sctp
    connection = dtls.transport._connection
    await connection.add_remote_candidate(address)
    for part, *places in (
        (dtls, _DECRYPTS, "on"),
        (connection, _QUEUE, _CHECK),
        (getattr(connection, _ADDRESSES)[0], "_network_host", "port"),
        (sctp, _TAKE_PIECE, _WINDOW, _STREAMS, _BEHIND_GAP, _LAST),
        (sctp._get_inbound_stream(0), "reassembly"),
    ):
        for place in places:
            getattr(part, place)
