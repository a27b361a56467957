"""Transports: how sound, pictures and events reach a peer. Each implements `interfaces.Transport`.

`rtc` is WebRTC, and the only importer of aiortc.
"""
