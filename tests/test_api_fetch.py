"""Fetching what URLs point to: real servers on the loopback, and no way to them unless allowed."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from agent.api.fetch import Fetcher, FetchLimits, is_public
from agent.errors import RequestError
from tests.rig.attached import RED, picture
from tests.rig.chat_server import chat_server

PNG = picture(RED)
OPEN = FetchLimits(most_bytes=10_000, timeout_s=5.0, allow_private=True)
CLOSED = FetchLimits(most_bytes=10_000, timeout_s=5.0)


class Names(AbstractResolver):
    """What names resolve to, one answer after the other; the last one stays."""

    def __init__(self, **answers: list[str]) -> None:
        self._answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        given = self._answers.get(host)
        if given is None:
            raise OSError(f"no such name: {host}")
        address = given.pop(0) if len(given) > 1 else given[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
        ]

    async def close(self) -> None:
        """Nothing to close."""


@dataclass
class Site:
    """A web server on one address of the loopback."""

    host: str
    port: int = 0
    seen: list[str] = field(default_factory=list)
    answers: dict[str, Callable[[web.Request], Any]] = field(default_factory=dict)

    def url(self, path: str, host: str | None = None) -> str:
        return f"http://{host or self.host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.path)
        answer = self.answers[request.path](request)
        return answer if isinstance(answer, web.StreamResponse) else await answer


@asynccontextmanager
async def site(host: str) -> AsyncIterator[Site]:
    served = Site(host)
    app = web.Application()
    app.router.add_get("/{name:.*}", served.answer)
    served.answers["/red.png"] = lambda _: web.Response(body=PNG, content_type="text/html")
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    served.port = runner.addresses[0][1]
    try:
        yield served
    finally:
        await runner.cleanup()


@pytest.fixture
async def here() -> AsyncIterator[Site]:
    async with site("127.0.0.1") as served:
        yield served


@pytest.fixture
async def there() -> AsyncIterator[Site]:
    """A site whose address the tests declare to be public."""
    async with site("127.0.0.2") as served:
        yield served


def redirect(url: str) -> web.Response:
    return web.Response(status=302, headers={"Location": url})


def only_there(address: str) -> bool:
    return address == "127.0.0.2"


async def refused(fetcher: Fetcher, url: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await fetcher.fetch(url)
    return caught.value


# ---- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",  # metadata of AWS, Google, Azure
        "169.254.170.2",
        "100.100.100.200",  # metadata of Alibaba, within the addresses of carriers
        "100.64.0.1",
        "192.0.0.192",
        "168.63.129.16",  # Azure's own
        "0.0.0.0",
        "0.1.2.3",
        "255.255.255.255",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "localhost",
        "",
        "127.1",
        "0x7f000001",
    ],
)
def test_addresses_that_are_not_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"],
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


# ---- private addresses ------------------------------------------------------------------------


async def test_a_private_address_is_reached_only_when_allowed(here: Site) -> None:
    assert await Fetcher(OPEN).fetch(here.url("/red.png")) == PNG
    assert here.seen == ["/red.png"]
    error = await refused(Fetcher(CLOSED), here.url("/red.png"))
    assert error.code == "private_url" and "chat.allow_private_urls" in str(error)
    assert here.seen == ["/red.png"]


@pytest.mark.parametrize(
    "spelling",
    [
        "localhost",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:7f00:0001]",
        "[::]",
        "user:password@127.0.0.1",
        "example.org@127.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
    ],
)
async def test_no_spelling_leads_there(here: Site, spelling: str) -> None:
    error = await refused(Fetcher(CLOSED), here.url("/red.png", spelling))
    assert error.code in ("private_url", "url_not_fetched")
    assert here.seen == []


async def test_names_that_resolve_to_private_addresses(here: Site) -> None:
    names = Names(inside_test=["127.0.0.1"], metadata_test=["169.254.169.254"], six_test=["::1"])
    for name in ("inside.test", "metadata.test", "six.test"):
        error = await refused(Fetcher(CLOSED, names), here.url("/red.png", name))
        assert error.code == "private_url"
    assert here.seen == [] and len(names.asked) == 3
    assert (await refused(Fetcher(CLOSED, names), "http://nowhere.test/")).code == "url_not_fetched"


async def test_a_name_that_changes_its_address_gains_nothing(here: Site, there: Site) -> None:
    """The address that is connected to is the one that is checked, at each step anew."""
    there.answers["/first"] = lambda _: redirect(here.url("/red.png", "moving.test"))
    names = Names(moving_test=["127.0.0.2", "127.0.0.1"])
    fetcher = Fetcher(CLOSED, names, only_there)
    error = await refused(fetcher, there.url("/first", "moving.test"))
    assert error.code == "private_url"
    assert there.seen == ["/first"] and here.seen == []
    assert names.asked == ["moving.test", "moving.test"]


# ---- redirects --------------------------------------------------------------------------------


async def test_redirects_are_followed_and_checked_again(here: Site, there: Site) -> None:
    there.answers["/on"] = lambda _: redirect("/red.png")
    there.answers["/in"] = lambda _: redirect(here.url("/red.png"))
    there.answers["/file"] = lambda _: redirect("file:///etc/passwd")
    there.answers["/loop"] = lambda _: redirect("/loop")
    fetcher = Fetcher(CLOSED, public=only_there)
    assert await fetcher.fetch(there.url("/on")) == PNG
    assert (await refused(fetcher, there.url("/in"))).code == "private_url"
    assert here.seen == []
    assert (await refused(fetcher, there.url("/file"))).code == "url_not_fetched"
    assert "redirects more than 5 times" in str(await refused(fetcher, there.url("/loop")))
    assert there.seen.count("/loop") <= 6


# ---- size, time, type -------------------------------------------------------------------------


async def test_the_size_is_kept_whatever_is_stated(here: Site) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while sent < 50_000_000:
                await response.write(b"x" * 5000)
                sent += 5000
        except ConnectionError:
            pass
        return response

    here.answers["/stated"] = lambda _: web.Response(body=b"x" * 10_001)
    here.answers["/exact"] = lambda _: web.Response(body=b"x" * 10_000)
    fetcher = Fetcher(OPEN)
    assert len(await fetcher.fetch(here.url("/exact"))) == 10_000
    assert (await refused(fetcher, here.url("/stated"))).code == "file_too_large"
    here.answers["/endless"] = endless
    error = await refused(fetcher, here.url("/endless"))
    assert error.code == "file_too_large" and "10,000" in str(error)
    assert sent < 50_000_000


async def test_all_files_together_are_limited_while_they_come(here: Site) -> None:
    sent: list[int] = []
    gone = asyncio.Event()

    async def file(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(10_000):
                await response.write(b"x" * 5000)
                sent.append(5000)
        except ConnectionError:
            gone.set()
        return response

    here.answers["/file"] = file
    part = {"type": "image_url", "image_url": {"url": here.url("/file")}}
    limits = ("chat.allow_private_urls=true", "chat.max_body_bytes=1000000")
    async with chat_server(*limits) as server:
        messages = [{"role": "user", "content": [part] * 3}]
        error = await server.refusal(400, messages=messages)
        assert error["code"] == "file_too_large" and "in all" in error["message"]
        assert error["param"].startswith("messages[0].content[")
        async with asyncio.timeout(60):
            await gone.wait()
    # Each may hold 33 MB alone; three of 50 MB would have been read up to that.
    assert sum(sent) < 25_000_000


async def test_what_is_packed_is_not_unpacked(here: Site) -> None:
    packed = gzip.compress(b"\0" * 5_000_000)
    headers = {"Content-Encoding": "gzip"}
    here.answers["/bomb"] = lambda _: web.Response(body=packed, headers=headers)
    assert await Fetcher(OPEN).fetch(here.url("/bomb")) == packed


async def test_a_slow_server_is_not_waited_for(here: Site) -> None:
    over = asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    here.answers["/slow"] = slow
    limits = FetchLimits(most_bytes=100, timeout_s=0.2, allow_private=True)
    assert "within 0.2 s" in str(await refused(Fetcher(limits), here.url("/slow")))
    over.set()


async def test_servers_that_do_not_deliver(here: Site) -> None:
    here.answers["/gone"] = lambda _: web.Response(status=404)
    fetcher = Fetcher(OPEN)
    assert "answers 404" in str(await refused(fetcher, here.url("/gone")))
    error = await refused(fetcher, "http://127.0.0.1:1/")
    assert error.code == "url_not_fetched" and "127.0.0.1" not in str(error)
    for url in ("http://" + "a" * 9000, "gopher://x/", "http:///x", "//x/y", "http://a b/"):
        assert (await refused(fetcher, url)).code == "url_not_fetched"


async def test_the_whole_way_through_the_api(here: Site) -> None:
    part = [{"type": "image_url", "image_url": {"url": here.url("/red.png")}}]
    async with chat_server("chat.allow_private_urls=true") as server:
        # The type that the server declares is text/html.
        assert await server.answer(part) == "user: [red 40x30]"
        assert await server.answer(part * 6) == "user: " + " + ".join(["[red 40x30]"] * 6)
    fetched = len(here.seen)
    async with chat_server() as server:
        messages = [{"role": "user", "content": part}]
        error = await server.refusal(400, messages=messages)
        assert error["param"] == "messages[0].content[0].image_url"
        assert error["code"] == "private_url"
    assert len(here.seen) == fetched == 7
