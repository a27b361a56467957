"""A call by its id: looked at, accepted, steered through the network, ended.

One resource serves two kinds of clients. OpenAI's post to `…/hangup`, `…/accept` and so on; those
of WHIP (RFC 9725) send PATCH for late candidates and ICE restarts, and DELETE in the end.
"""

from aiohttp import hdrs, web

from agent.api.bodies import as_json, expect_type, read_text
from agent.api.caller import caller_of
from agent.api.calls import Calls
from agent.api.realtime import CALLS, CALLS_PATH, ICE_FRAGMENT, SDP
from agent.errors import RequestError
from agent.session import Session
from agent.transport.ice_fragment import read_fragment
from agent.transport.peer_ice import OtherIceSession, PeerIce

JSON = "application/json"
_ANY = "*"


class PreconditionMissing(RequestError):
    """Which ICE session is meant has to be said."""

    status = 428
    code = "precondition_required"


class NotByTelephone(RequestError):
    """Only a telephone call could be passed on."""

    code = "not_a_sip_call"


def add_routes(router: web.UrlDispatcher) -> None:
    """Add this file's endpoints."""
    one = f"{CALLS_PATH}/{{call_id}}"
    router.add_get(one, show)
    router.add_patch(one, change_way)
    router.add_delete(one, hang_up)
    router.add_post(f"{one}/hangup", hang_up)
    router.add_post(f"{one}/reject", hang_up)
    router.add_post(f"{one}/accept", accept)
    router.add_post(f"{one}/refer", refer)


async def show(request: web.Request) -> web.Response:
    """How the call stands, and the session object in force."""
    call_id = request.match_info["call_id"]
    stands = _calls(request).stands(call_id, caller_of(request))
    body = {
        "id": call_id,
        "object": "realtime.call",
        "status": "in_progress" if stands else "connecting",
        "session": _session(request).document,
    }
    return web.json_response(body)


async def hang_up(request: web.Request) -> web.Response:
    """200 once the call is gone."""
    await _calls(request).hang_up(request.match_info["call_id"], caller_of(request))
    return web.Response(status=200)


async def refer(request: web.Request) -> web.Response:
    """Never: no call here came by telephone."""
    _session(request)
    raise NotByTelephone(
        "only a SIP call can be transferred, and this one came over WebRTC or WebSocket; "
        "hang it up and let the client call elsewhere"
    )


async def accept(request: web.Request) -> web.Response:
    """200 once the session in the body is in force; the call itself was accepted before."""
    session = _session(request)
    expect_type(request, JSON)
    with _calls(request).reading(caller_of(request)):
        text = await read_text(request, "session")
    _expect_object(text)
    _update(session, text)
    return web.Response(status=200)


def _expect_object(text: str) -> None:
    if not isinstance(as_json(text, "session"), dict):
        raise RequestError("session is no JSON object", param="session", code="invalid_type")


def _update(session: Session, document: str) -> None:
    """Change the session as the client itself could. `RequestError`, and nothing has changed."""
    refusals: list[dict[str, object]] = []
    session.receive(f'{{"type":"session.update","session":{document}}}', refusals.append)
    for refusal in refusals:
        error = refusal["error"]
        assert isinstance(error, dict), "that is what a refusal holds"
        raise RequestError(str(error["message"]), param=error.get("param"), code=error.get("code"))


# ---- its way through the network --------------------------------------------------------------


async def change_way(request: web.Request) -> web.Response:
    """Late candidates, or an ICE restart: a fragment (RFC 9725), or a whole new offer."""
    calls, call_id = _calls(request), request.match_info["call_id"]
    calls.owned_by(call_id, caller_of(request))
    kind = expect_type(request, ICE_FRAGMENT, SDP)
    wanted = _wanted(request)
    if kind == ICE_FRAGMENT and not wanted:
        raise PreconditionMissing(
            'send If-Match with the ETag of the call, or "*" to restart ICE', param="If-Match"
        )
    with calls.reading(caller_of(request)):
        text = await read_text(request, "sdp")
    ice = calls.ice_of(call_id, caller_of(request))
    if wanted and wanted != {_ANY} and ice.tag not in wanted:
        raise OtherIceSession(
            f"If-Match does not name the ICE session that there is, which is {ice.tag}",
            param="If-Match",
        )
    return await (_take_offer(ice, text) if kind == SDP else _take_fragment(ice, text, wanted))


async def _take_fragment(ice: PeerIce, text: str, wanted: set[str]) -> web.Response:
    fragment = read_fragment(text)
    if wanted == {_ANY} and ice.is_new(fragment):
        local = await ice.restart(fragment)
        return web.Response(body=local.encode(), content_type=ICE_FRAGMENT, headers=_tag(ice))
    await ice.trickle(fragment)
    return web.Response(status=204, headers=_tag(ice))


async def _take_offer(ice: PeerIce, offer: str) -> web.Response:
    answer = await ice.answer_again(offer)
    return web.Response(body=answer.encode(), content_type=SDP, headers=_tag(ice))


def _tag(ice: PeerIce) -> dict[str, str]:
    return {str(hdrs.ETAG): f'"{ice.tag}"'}


def _wanted(request: web.Request) -> set[str]:
    """The tags of If-Match, less their quotes; weak ones match nothing."""
    said = request.headers.getall(hdrs.IF_MATCH, [])
    words = [word.strip() for each in said for word in each.split(",") if word.strip()]
    return {word[1:-1] if word[:1] == word[-1:] == '"' else word for word in words}


def _calls(request: web.Request) -> Calls:
    return request.app[CALLS]


def _session(request: web.Request) -> Session:
    return _calls(request).owned_by(request.match_info["call_id"], caller_of(request))
