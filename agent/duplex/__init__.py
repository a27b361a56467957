"""MiniCPM-o 4.5, natively: the model that listens, looks and speaks at the same time.

`config` reads the checkpoint's own config.json. The senses turn the outside into vectors of the
LLM's width: `pictures`, `vision` and `resampler` for the camera, `mel` and `audio_encoder` for the
microphone. Weights are modules and hold nothing of a conversation; what a conversation remembers
lies in small objects of its own, and to reset it one drops them. Nothing is imported here, so that
reading a config costs no torch.
"""
