"""Benchmarks: `python -m bench.<name> --json`. Every figure is measured in the run that prints it.

`bench.media` measures transport and playout in a real Chromium, beside a stock aiortc peer.
"""
