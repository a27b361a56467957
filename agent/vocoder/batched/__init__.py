"""Many streams' chunks at once, on a GPU: token2wav as CUDA graphs whose work is always the same.

A chunk of any length up to a full hop fills the same buffers; what is longer than it, and what a
stream remembers, a `layout` of numbers says, the plan, which the kernels read. So one graph serves
every voice, every length and every moment of a turn. `places` hands out the room for what streams
remember, `turn` and `window` count what is where without touching the device, `encoder`, `dit` and
`hift` say what is computed, `machine` records it, and `batches` begins it for many streams.

Whatever does not fit goes the way of the modules one folder up, which are the measure.
"""
