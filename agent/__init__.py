"""A real-time voice and video agent: WebRTC in, a full-duplex engine, a natural voice out.

Reading order: `types` and `interfaces` (the words and the seams), `session` (one call), then
`media`, `realtime`, `engines`, `transport` and `api`, each of which stands alone.
"""

from agent import torchaudio_import

torchaudio_import.install()

__version__ = "0.1.0"
