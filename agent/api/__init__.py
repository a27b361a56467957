"""HTTP: the page, the protocol's endpoints, health and metrics. Only here is aiohttp known."""
