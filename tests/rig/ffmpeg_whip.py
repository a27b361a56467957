"""FFmpeg's own WHIP client, as PyAV brings it: publishes a test picture and a voice.

Run as a program: `python -m tests.rig.ffmpeg_whip URL FOLDER`. "speak" on standard input lets it
say a sentence, "stop" or the end lets it go, which sends the DELETE.
"""

import datetime
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.rig.voices import say

RATE_HZ, FRAME_SAMPLES, FRAMES_S = 48_000, 960, 25
WIDTH, HEIGHT = 320, 240


def main(url: str, folder: Path) -> None:
    """Publish until told to stop, in real time."""
    speak, stop = threading.Event(), threading.Event()
    threading.Thread(target=_obey, args=(speak, stop), daemon=True).start()
    with av.open(url, "w", format="whip", options=_certificate(folder)) as output:
        audio = output.add_stream("libopus", rate=RATE_HZ, layout="stereo")
        video = output.add_stream("libx264", rate=FRAMES_S)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}
        voice = np.zeros(0, np.float32)
        began_s, number = time.monotonic(), 0
        while not stop.is_set():
            if speak.is_set():
                speak.clear()
                voice = say("The quick brown fox jumps over the dog.", RATE_HZ, level_dbfs=-20)
            output.mux(video.encode(_picture(number)))
            for at in (2 * number, 2 * number + 1):
                piece, voice = voice[:FRAME_SAMPLES], voice[FRAME_SAMPLES:]
                output.mux(audio.encode(_sound(piece, at)))
            number += 1
            time.sleep(max(0.0, began_s + number / FRAMES_S - time.monotonic()))


def _obey(speak: threading.Event, stop: threading.Event) -> None:
    for line in sys.stdin:
        (speak if line.strip() == "speak" else stop).set()
    stop.set()


def _picture(number: int) -> av.VideoFrame:
    rgb = np.full((HEIGHT, WIDTH, 3), 5 * number % 250, np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    frame.pts, frame.time_base = number, Fraction(1, FRAMES_S)
    return frame


def _sound(piece: np.ndarray, at: int) -> av.AudioFrame:
    padded = np.zeros(FRAME_SAMPLES, np.float32)
    padded[: len(piece)] = piece
    stereo = np.repeat((padded * 32767).astype(np.int16), 2)[None, :]
    frame = av.AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
    frame.sample_rate, frame.pts = RATE_HZ, at * FRAME_SAMPLES
    frame.time_base = Fraction(1, RATE_HZ)
    return frame


def _certificate(folder: Path) -> dict[str, str]:
    """For DTLS: where FFmpeg has GnuTLS, its own is of a curve that OpenSSL refuses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "publisher")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    return {"cert_file": str(folder / "certificate.pem"), "key_file": str(folder / "key.pem")}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
