"""Chats against the outputs of the public reference, in float32 on the CPU.

Deliberate deviations, named where they show: every sound is encoded by itself, and nothing that a
user writes becomes a control token.
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.chat_types import (
    ChatMessage,
    ChatPart,
    ChatPicture,
    ChatRequest,
    ChatSound,
    ChatText,
    ChatVideo,
)
from agent.duplex.audio_encoder import BLOCK_FRAMES
from agent.duplex.chat import Chat
from agent.duplex.chat_prompt import chat_layout, lay_out_chat
from agent.duplex.content import Senses, perceive
from agent.duplex.lanes import Runner
from agent.duplex.model import DuplexModel
from agent.duplex.pictures import piece_grids
from agent.duplex.prompt import ChatLayout
from agent.duplex.work import Choose, HearRecording, Read, Work
from agent.errors import RequestError
from tests.rig import tiny_mind
from tests.rig import tiny_model as tiny

LIMIT = 1e-5
CASES = {case["name"]: case for case in tiny.golden_json("chat_cases.json")["cases"]}
GREEDY = [name for name, case in CASES.items() if "greedy" in case]
NOT_OFFERED = {
    "audio_stream_input": "a chat's sound is whole; seconds in marks of their own are of live calls"
}
FROM_OUTSIDE = {"listen_token_removed": "what a user writes about control tokens is no token"}


@functools.cache
def model() -> DuplexModel:
    return dataclasses.replace(tiny_mind.whole_mind(), vocabulary=tiny_mind.real_vocabulary())


def _part(part: Any) -> ChatPart:
    if isinstance(part, str):
        return ChatText(part)
    if "picture" in part:
        return ChatPicture(tiny.recipe().picture(*part["picture"]))
    return ChatSound(tiny.recipe().audio(*part["audio"]))


def _request(case: dict[str, Any]) -> ChatRequest:
    messages = [
        (one["role"], [one["content"]] if isinstance(one["content"], str) else one["content"])
        for one in case["messages"]
    ]
    return ChatRequest(
        tuple(ChatMessage(role, tuple(map(_part, content))) for role, content in messages),
        max_tokens=8,
        greedy=True,
        thinking=case["options"].get("enable_thinking", False),
        max_slices=case["options"].get("max_slice_nums"),
    )


def _layout(case: dict[str, Any], request: ChatRequest) -> ChatLayout:
    """The request's own layout, but for what only the reference offers."""
    options, usual = case["options"], chat_layout(request)
    return ChatLayout(
        joined=options.get("omni_mode", usual.joined),
        thinking=usual.thinking,
        spoken=options.get("use_tts_template", False) or usual.spoken,
        answer=not options.get("teacher_forcing", False),
        picture_ids=options.get("use_image_id", usual.picture_ids),
        max_tokens=options.get("max_inp_length", usual.max_tokens),
    )


@pytest.mark.parametrize("name", sorted(CASES.keys() - NOT_OFFERED.keys() - FROM_OUTSIDE.keys()))
def test_golden_chat_request(name: str) -> None:
    case = CASES[name]
    request = _request(case)
    vocabulary = tiny_mind.real_vocabulary()
    senses = Senses(request.max_slices)
    laid = lay_out_chat(vocabulary, request, senses, _layout(case, request))
    assert list(laid.ids) == case["input_ids"]
    assert [list(bound) for bound in laid.picture_bounds] == case["image_bounds"]
    assert [list(bound) for bound in laid.sound_bounds] == case["audio_bounds"]
    seen = [
        piece_grids(one.rgb.shape[1], one.rgb.shape[0], one.max_slices) for one in senses.pictures
    ]
    assert [len(grids) - 1 for grids in seen] == case.get("slices_per_image", [])
    assert [list(grid) for grids in seen for grid in grids] == case.get(
        "piece_patches_rows_cols", []
    )
    if not case["options"].keys() - {"enable_thinking", "max_slice_nums"}:
        assert lay_out_chat(vocabulary, request, Senses(request.max_slices)) == laid


def test_golden_control_tokens_of_a_user_are_left_out() -> None:
    """The deviation: the reference reads `<|listen|>` as a token and then deletes it."""
    request = _request(CASES["listen_token_removed"])
    laid = lay_out_chat(tiny_mind.real_vocabulary(), request, Senses())
    text = tiny_mind.real_vocabulary().text(laid.ids)
    assert text == tiny_mind.real_vocabulary().text(CASES["listen_token_removed"]["input_ids"])


# ---- vectors ------------------------------------------------------------------------------------


def _perceived(request: ChatRequest, layout: ChatLayout) -> tuple[Tensor, list[Tensor]]:
    """A prompt's vectors, and those of each recording."""
    senses = Senses(request.max_slices)
    laid = lay_out_chat(model().vocabulary, request, senses, layout)
    steps = perceive(model(), laid, senses, BLOCK_FRAMES)
    heard: list[Tensor] = []
    used = tiny_mind.runner(model())
    while True:
        try:
            work = next(steps)
        except StopIteration as stop:
            return stop.value, heard
        work.run(model(), used.slots)
        if isinstance(work, HearRecording):
            heard.append(work.vectors)


ALONE = ("audio_text", "audio_only", "image_audio", "video_omni_unmerged")
"""Cases in which the reference encodes every sound by itself and of equal lengths, as we do."""


@pytest.mark.parametrize("name", ALONE)
def test_golden_chat_hears(name: str) -> None:
    golden, case = tiny.golden_tensors("chat_tiny.safetensors"), CASES[name]
    request = _request(case)
    _, heard = _perceived(request, _layout(case, request))
    prefix = f"{name}.audio_vectors."
    assert len(heard) == sum(key.startswith(prefix) for key in golden)
    for index, vectors in enumerate(heard):
        key = f"{prefix}{index}"
        assert tiny.compare(key, vectors, golden[key]) < LIMIT


def test_golden_film() -> None:
    """A film is the reference's omni mode: its sound one recording, dealt out by the second."""
    case = CASES["video_omni"]
    parts = [part for part in case["messages"][0]["content"] if isinstance(part, dict)]
    if any(one["audio"][0] != 1 for one in parts if "audio" in one):
        pytest.skip("these golden files have no film with a second of sound to each picture")
    film = ChatVideo(
        tuple(tiny.recipe().picture(*one["picture"]) for one in parts if "picture" in one),
        np.concatenate([tiny.recipe().audio(*one["audio"]) for one in parts if "audio" in one]),
    )
    words = ChatText(case["messages"][0]["content"][-1])
    request = ChatRequest((ChatMessage("user", (film, words)),))
    laid = lay_out_chat(model().vocabulary, request, Senses())
    assert list(laid.ids) == case["input_ids"]
    assert [list(bound) for bound in laid.sound_bounds] == case["audio_bounds"]
    (heard,) = _perceived(request, chat_layout(request))[1]
    key = "video_omni.audio_vectors.0"
    assert tiny.compare(key, heard, tiny.golden_tensors("chat_tiny.safetensors")[key]) < LIMIT


@pytest.mark.parametrize("name", ["two_short_audios_one_message", "merged_audio_shortfall"])
def test_golden_sounds_of_a_message_are_encoded_one_by_one(name: str) -> None:
    """The deviation: joined, two sounds gave the reference one vector more than their places, or
    one less, which ended in an error."""
    case = CASES[name]
    request = _request(case)
    embeddings, heard = _perceived(request, chat_layout(request))
    bounds = case["audio_bounds"]
    assert [len(one) for one in heard] == [stop - start for start, stop in bounds]
    assert sum(map(len, heard)) != sum(case["audio_vectors_per_waveform"])
    for (start, stop), vectors in zip(bounds, heard, strict=True):
        assert torch.equal(embeddings[start:stop], vectors)


# ---- answers ------------------------------------------------------------------------------------


def _drive(used: Runner, steps: Generator[Work, None, Any], golden: list[int], states: list) -> Any:
    """Run, but let every token be the golden one; `states` gets what it was drawn from."""
    while True:
        try:
            work = next(steps)
        except StopIteration as stop:
            return stop.value
        work.run(used.model, used.slots)
        if isinstance(work, Choose | Read) and (choice := work.choice) is not None:
            states.append(
                (
                    work.state,
                    choice.sampler.penalised(used.model.llm.logits(work.state), choice.drawing),
                    work.token,
                )
            )
            work.token = golden[len(states) - 1]


@pytest.mark.parametrize("name", GREEDY)
def test_golden_chat_greedy(name: str) -> None:
    case, golden = CASES[name], tiny.golden_tensors("chat_tiny.safetensors")
    request, greedy = _request(case), case["greedy"]
    layout = _layout(case, request)
    key = f"{name}.inputs_embeds"
    embeddings, _ = _perceived(request, layout)
    assert tiny.compare(key, embeddings, golden[key]) < LIMIT
    used = tiny_mind.runner(model())
    chat = Chat(used, request, layout)
    states: list[tuple[Tensor, Tensor, int]] = []
    _drive(used, chat.begin(), greedy["ids"], states)
    piece = _drive(used, chat.advance(), greedy["ids"], states)
    assert piece.tokens == len(greedy["ids"]) and piece.finish == "length"
    assert piece.text == model().vocabulary.text(greedy["ids"]).rstrip("\ufffd")
    _check_greedy(name, greedy, states)


def _check_greedy(
    name: str, greedy: dict[str, Any], states: list[tuple[Tensor, Tensor, int]]
) -> None:
    raw = torch.stack([model().llm.logits(state) for state, _, _ in states])
    size = float(raw.abs().max())
    first = torch.tensor(greedy["first_top_logits"])
    assert (raw[0][greedy["first_top_ids"]] - first).abs().max() < LIMIT * size
    assert (raw[0].topk(8).values - first).abs().max() < LIMIT * size
    assert abs(float(raw[0].logsumexp(-1)) - greedy["first_logsumexp"]) < LIMIT * size
    largest = raw.topk(2).values
    margins = torch.tensor(greedy["raw_top1_top2_margin"])
    assert (largest[:, 0] - largest[:, 1] - margins).abs().max() < LIMIT * size
    for (_, penalised, token), golden in zip(states, greedy["ids"], strict=True):
        close = float(penalised.max() - penalised[golden]) < LIMIT * size
        assert close, (token, golden)


def test_a_prompt_that_the_reference_would_cut_is_refused() -> None:
    """The deviation: cut on the right, a prompt loses the question."""
    case = CASES["truncated_prompt"]
    kept = case["options"]["max_inp_length"]
    assert len(case["input_ids"]) == kept
    with pytest.raises(RequestError, match="leave messages out"):
        Chat(tiny_mind.runner(model(), context_tokens=kept + 1), _request(case))
