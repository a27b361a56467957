"""Speech tokens to 24 kHz sound, natively: token2wav and CosyVoice2. Nothing is imported here.

Weights are modules, shared by all streams and never changed; what a stream remembers lies in small
objects of its own. `voice` makes of a few seconds of reference audio what the others speak with.
"""
