"""CosyVoice2's blocks as graphs make them: over memory that stays in place, a stream at a time."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from weakref import ref

import numpy as np
import pytest
import torch

from agent.errors import VocoderError
from agent.vocoder.conformer import Encoder, RelativeAttention
from agent.vocoder.cosyvoice2 import UPSTREAM, ChunkSettings, Cosyvoice2, Cosyvoice2Voice
from agent.vocoder.cosyvoice2_flow import BLOCK_TOKENS, Cosyvoice2Flow, FlowState, flow_noise
from agent.vocoder.encoder_recorded import RecordedEncoder
from agent.vocoder.unet_memory import UnetMemory
from tests.rig.tiny_cosyvoice2 import CPU, Ear, Ears, golden_prompt, tiny_weights
from tests.rig.unwritten import fill_new_memory
from tests.rig.written_anew import Recorder, WrittenAnew

TOKENS = [(37 * index) % 6561 for index in range(110)]
STEPS = 2
ROOMY = (100, 500)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing here is large enough for two threads, which beside others wait for one another.
    torch.set_num_threads(1)
    fill_new_memory(monkeypatch)


class Counting(Recorder):
    """Knows how often each of its graphs was started."""

    def __init__(self) -> None:
        self.starts: list[int] = []

    def record(self, call: object) -> WrittenAnew:
        """See `Recorder`."""
        assert callable(call)
        place = len(self.starts)
        self.starts.append(0)

        def counted() -> tuple[torch.Tensor, ...]:
            self.starts[place] += 1
            made: tuple[torch.Tensor, ...] = call()
            return made

        return super().record(counted)


def speaking(
    settings: ChunkSettings, capacities: Sequence[int]
) -> tuple[Cosyvoice2, list[Ear], list[int]]:
    """A vocoder of graphs whose turns end in ears, and how often each graph was started."""
    flow = Cosyvoice2Flow(tiny_weights(), flow_noise(0, 80, CPU), STEPS)
    ears, recorder = Ears(), Counting()
    flow.record(recorder, capacities)
    return Cosyvoice2(flow, ears, settings, lambda: flow), ears.each, recorder.starts


def says(vocoder: Cosyvoice2, voice: Cosyvoice2Voice, tokens: Sequence[int] = TOKENS) -> None:
    """A turn in pieces of six tokens; its ear has what was heard."""
    stream = vocoder.open(voice)
    for at in range(0, len(tokens), 6):
        stream.push(tokens[at : at + 6])
    stream.finish()


def expected(vocoder: Cosyvoice2, voice: Cosyvoice2Voice, tokens: Sequence[int]) -> torch.Tensor:
    """The mel of the turn at once, by the modules."""
    with torch.inference_mode():
        known = (voice.mel, voice.speaker)
        made = vocoder.flow.whole([*voice.tokens, *tokens], *known, in_blocks=True)
    return made.mel[:, voice.mel.shape[1] :]


# With 3 a turn of upstream's ends in a block and three more, which are not its lookahead.
@pytest.mark.parametrize("tokens", [1, 3, 24, 47, 50, 52, 110])
@pytest.mark.parametrize(
    ("prompt", "settings"),
    [(2, ChunkSettings()), (44, ChunkSettings(first_hop_tokens=4)), (50, UPSTREAM)],
    ids=["default", "early", "upstream"],
)
def test_blocks_in_graphs_are_what_the_modules_say_of_the_whole(
    prompt: int, settings: ChunkSettings, tokens: int
) -> None:
    vocoder, ears, starts = speaking(settings, ROOMY)
    voice = vocoder.voice(golden_prompt(prompt), "anna")
    says(vocoder, voice, TOKENS[:tokens])
    assert torch.allclose(ears[-1].mel, expected(vocoder, voice, TOKENS[:tokens]), atol=2e-5)
    assert sum(starts) > 0


def test_each_block_is_made_by_the_smallest_graph_that_has_room() -> None:
    vocoder, _, starts = speaking(ChunkSettings(), ROOMY)
    voice = vocoder.voice(golden_prompt(50), "anna")
    before = [*starts]
    says(vocoder, voice, TOKENS[:100])
    # Behind 50, 100, 150 and 200 remembered frames, and 250 at the end, whose encoder has no graph;
    # the larger of both were recorded first.
    assert [now - then for now, then in zip(starts, before, strict=True)] == [3, 2, 2, 2]


def test_a_stream_that_remembers_more_than_graphs_do_goes_on_by_the_modules() -> None:
    vocoder, ears, starts = speaking(ChunkSettings(), (100,))
    voice = vocoder.voice(golden_prompt(50), "anna")
    before = [*starts]
    says(vocoder, voice)
    # Behind 50 and 100 frames, which come together.
    assert [now - then for now, then in zip(starts, before, strict=True)] == [2, 2]
    assert torch.allclose(ears[-1].mel, expected(vocoder, voice, TOKENS), atol=2e-5)


def test_streams_that_take_turns_say_what_each_says_alone() -> None:
    vocoder, ears, _ = speaking(ChunkSettings(), ROOMY)
    voices = [vocoder.voice(golden_prompt(tokens), "anna") for tokens in (50, 28)]
    for voice in voices:
        says(vocoder, voice)
    alone = [ear.mel for ear in ears[-2:]]
    streams = [vocoder.open(voice) for voice in voices]
    for at in range(0, len(TOKENS), 9):
        for stream in streams:
            stream.push(TOKENS[at : at + 9])
    for stream in streams:
        stream.finish()
    assert all(torch.equal(ear.mel, mel) for ear, mel in zip(ears[-2:], alone, strict=True))
    assert alone[0].shape == alone[1].shape and not torch.allclose(*alone, atol=1e-3)


def test_what_is_infinite_in_one_stream_stays_there() -> None:
    vocoder, ears, _ = speaking(ChunkSettings(first_hop_tokens=12), ROOMY)
    voice = vocoder.voice(golden_prompt(38), "anna")
    # The voice's last 13 tokens and three are less than a block: behind them is what was there.
    says(vocoder, voice, TOKENS[:3])
    sound = ears[-1].mel
    broken = replace(voice, speaker=torch.full_like(voice.speaker, torch.inf))
    with pytest.raises(VocoderError, match="not finite"):
        vocoder.open(broken).push(TOKENS[:53])
    says(vocoder, voice, TOKENS[:3])
    assert torch.equal(ears[-1].mel, sound)


def infinite(state: FlowState) -> FlowState:
    """All that the layers remember is infinite."""
    encoder, steps = state.encoder, state.memory.steps
    of_tokens, of_frames = (
        tuple(
            (torch.full_like(key, torch.inf), torch.full_like(value, torch.inf))
            for key, value in one
        )
        for one in (encoder.token_layers, encoder.mel_layers)
    )
    memory = UnetMemory(
        tuple(
            replace(one, voice=tuple(torch.full_like(part, torch.inf) for part in one.voice))
            for one in steps
        )
    )
    return replace(
        state, encoder=replace(encoder, token_layers=of_tokens, mel_layers=of_frames), memory=memory
    )


def test_what_is_infinite_farther_back_than_a_stream_remembers_is_not_seen() -> None:
    vocoder, ears, _ = speaking(ChunkSettings(), (150,))
    voice, longer = (vocoder.voice(golden_prompt(tokens), "anna") for tokens in (20, 50))
    says(vocoder, voice, TOKENS[:60])
    sound = ears[-1].mel
    with pytest.raises(VocoderError, match="not finite"):
        vocoder.open(replace(longer, state=infinite(longer.state))).push(TOKENS[:53])
    says(vocoder, voice, TOKENS[:60])
    assert torch.equal(ears[-1].mel, sound)


def test_what_the_graphs_cannot_hold_is_said_by_the_modules_in_float32() -> None:
    half = Cosyvoice2Flow(tiny_weights(), flow_noise(0, 80, CPU), STEPS).in_dtype(torch.float16)
    recorder = Counting()
    half.record(recorder, ROOMY)
    vocoder = Cosyvoice2(half, Ears(), ChunkSettings(), cache(lambda: half.in_dtype(torch.float32)))
    voice = vocoder.voice(golden_prompt(20), "anna")
    loud = replace(voice, speaker=1e5 * voice.speaker.sign())
    stream = vocoder.open(loud)
    stream.push(TOKENS[:40])
    tried = sum(recorder.starts)
    stream.push(TOKENS[40:90])
    stream.finish()
    # The first chunk has two blocks: the encoder and the solve of each were tried once.
    assert sum(recorder.starts) == tried == 4
    with torch.inference_mode():
        known = (loud.mel, loud.speaker)
        exact = vocoder._exact().whole([*loud.tokens, *TOKENS[:90]], *known, in_blocks=True)
    assert torch.allclose(stream._tail.mel, exact.mel[:, loud.mel.shape[1] :], atol=1e-3)


def without_tables() -> Encoder:
    """The weights that all tests share may have long ones by now."""
    encoder = copy.deepcopy(tiny_weights().encoder)
    for module in encoder.modules():
        if isinstance(module, RelativeAttention):
            module.table = None
    return encoder


def test_graphs_of_all_capacities_read_the_same_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, made = without_tables(), list[int]()
    make = RelativeAttention._make_table

    def counted(attention: RelativeAttention, reach: int) -> torch.Tensor:
        made.append(reach)
        return make(attention, reach)

    monkeypatch.setattr(RelativeAttention, "_make_table", counted)
    RecordedEncoder(encoder, BLOCK_TOKENS, Recorder(), ROOMY)
    assert len(made) == len(encoder.tables) > 0


def test_the_tables_that_graphs_read_stay_when_longer_ones_are_made() -> None:
    encoder = without_tables()
    recorded = RecordedEncoder(encoder, BLOCK_TOKENS, Recorder(), (100,))
    read = [ref(table) for table in encoder.tables]
    encoder.whole(torch.zeros(1, 300, encoder.config.width))
    assert len(encoder.tables) == len(read) > 0
    assert not any(made is table() for made, table in zip(encoder.tables, read, strict=True))
    assert all(table() is not None for table in read), f"{recorded} reads them"


def test_a_clone_goes_on_by_itself() -> None:
    vocoder, _, _ = speaking(ChunkSettings(), ROOMY)
    voice = vocoder.voice(golden_prompt(44), "anna")
    stream, alone = vocoder.open(voice), vocoder.open(voice)
    for one in (stream, alone):
        one.push(TOKENS[:31])
    other = stream.clone()
    other.push(TOKENS[5:60])
    assert np.array_equal(stream.push(TOKENS[31:90]), alone.push(TOKENS[31:90]))
    assert not np.array_equal(other.finish(), alone.finish())
