"""Kernels of the vocoder's static form, in Triton; imported only where graphs are recorded.

What they compute is what the modules beside them say; they know no stream, only rows of buffers and
the batch's plan (`agent.vocoder.static_plan`).
"""
