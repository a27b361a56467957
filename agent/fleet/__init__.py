"""Engines that compute for long, each in a process of its own, seen as any other `Engine`.

`messages` and `link` are what lies between, `worker` is the child's side; `host` starts and buries
a child, `life` follows one from start to end, `conversation` is one call's side, and `pool` keeps
a child running: `pool.start_engine`. This file hands nothing on, because the child comes by it too.
"""
