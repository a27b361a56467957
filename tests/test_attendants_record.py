"""Which sound belongs to which item, by the clock of the microphone."""

import numpy as np

from agent.attendants.record import CallRecord, Utterance
from agent.commands import ClearInput, CommitInput
from agent.types import UNIT_SAMPLES, FloatArray, SpeechEnded, SpeechStarted, Unit

BUFFER = "input_audio_buffer"


class Watched:
    """A record that keeps what was said; each second of the microphone holds its own number."""

    def __init__(self) -> None:
        self.said: dict[str, FloatArray] = {}
        self._units = 0
        self.record = CallRecord()
        self.record.on_utterance.append(self._keep)
        transcription = {"audio": {"input": {"transcription": {"model": "any"}}}}
        self.record.told_client({"type": "session.created", "session": transcription})

    def _keep(self, utterance: Utterance) -> None:
        self.said[utterance.item_id] = utterance.sound

    def told(self, event: str, item_id: str, **fields: int) -> None:
        self.record.told_client({"type": f"{BUFFER}.{event}", "item_id": item_id, **fields})

    def listen(self, seconds: int) -> None:
        for _ in range(seconds):
            sound = np.full(UNIT_SAMPLES, self._units, np.float32)
            self.record.told_engine(Unit(self._units, sound, UNIT_SAMPLES))
            self._units += 1

    def speak(self, item_id: str, start: int, end: int, told_ms: int) -> None:
        """From `start` to `end`, which the client is told as something else."""
        self.told("speech_started", item_id, audio_start_ms=told_ms)
        self.record.told_engine(SpeechStarted(start))
        self.told("speech_stopped", item_id, audio_end_ms=told_ms)
        self.told("committed", item_id)
        self.record.told_engine(SpeechEnded(end))


def test_a_client_s_own_clock_says_nothing_of_where_the_sound_is() -> None:
    call = Watched()
    call.listen(4)
    call.speak("item_1", 2 * UNIT_SAMPLES, 3 * UNIT_SAMPLES, told_ms=0)
    assert np.array_equal(call.said["item_1"], np.full(UNIT_SAMPLES, 2, np.float32))


def test_what_the_client_commits_begins_where_the_microphone_does() -> None:
    call = Watched()
    call.listen(3)
    call.told("committed", "item_1")
    call.record.told_engine(ClearInput(2 * UNIT_SAMPLES))
    call.record.told_engine(CommitInput("item_1", 3 * UNIT_SAMPLES))
    assert np.array_equal(call.said["item_1"], np.full(UNIT_SAMPLES, 2, np.float32))


def test_a_silence_that_was_waited_out_keeps_nothing_waiting() -> None:
    call = Watched()
    call.listen(2)
    call.told("timeout_triggered", "item_1", audio_start_ms=0, audio_end_ms=1000)
    call.told("committed", "item_1")
    call.speak("item_2", UNIT_SAMPLES, 2 * UNIT_SAMPLES, told_ms=1000)
    assert list(call.said) == ["item_2"]
