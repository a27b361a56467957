"""The lanes of `agent.duplex.lanes` on a CUDA device: CUDA graphs over static caches.

What is computed is what the modules say, in the same precisions; `EagerLane` is the measure. Here
alone is Triton imported, and only when a lane is made: machines without it run eagerly.
"""
