"""Between the wire and the engine: echo, speech detection, one-second units, barge-in, playout.

Knows neither the transport nor any model. Everything here is synchronous and counts samples:
`front_end` joins the way in, `playout` is the way out, the rest are their parts. Nothing is
imported here, so that `agent.media.audio` costs numpy alone.
"""
