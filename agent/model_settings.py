"""The settings of a model and of turn-based chats with it; see `agent.settings` for all others."""

from typing import Literal

from pydantic import Field

from agent.setting_kinds import Device, Section


class ModelSection(Section):
    """The weights of an engine that has any, and how they are run."""

    # Layer rules keep this file from reading the defaults of `ModelSettings`; a test does.
    source: str = Field(
        default="",
        max_length=4096,
        description="The model: a folder, or an id such as `openbmb/MiniCPM-o-4_5`, which is "
        "downloaded once. Empty looks for it where such downloads are kept.",
    )
    revision: str = Field(
        default="", max_length=256, description="Branch, tag or commit of an id; empty is `main`."
    )
    folder: str = Field(
        default="",
        max_length=4096,
        description="Where downloads are kept; empty is Hugging Face's own cache.",
    )
    extra_weights: str = Field(
        default="",
        max_length=4096,
        description="A safetensors file whose tensors replace those of the same name.",
    )
    device: Device = Field(default="auto", description="`auto` is the first GPU, else the CPU.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="`auto` is bfloat16 on a GPU and float32 on the CPU."
    )
    slots: int = Field(
        default=4, ge=1, le=256, description="Conversations at a time; each takes GPU memory."
    )
    context_tokens: int = Field(
        default=8192,
        ge=1024,
        le=40_960,
        description="How much a conversation remembers; the model was trained with 8192.",
    )
    window: Literal["off", "basic", "context"] = Field(
        default="basic",
        description="What a full conversation forgets: nothing, so that it ends; its oldest units; "
        "or those, what the agent said in them kept as text.",
    )
    attention: Literal["sdpa", "eager"] = Field(
        default="sdpa", description="torch's fused attention, or the plain formula."
    )
    rope_precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the position frequencies."
    )
    graphs: bool = Field(
        default=True,
        description="On a GPU, record the model's work at the start as CUDA graphs: many times "
        "faster. Without, everything is started piece by piece.",
    )
    quantisation: Literal["none", "int8", "fp8", "int4"] = Field(
        default="none",
        description="Store the language model's weights in fewer bits: it takes less memory and "
        "says less exactly what it was trained to.",
    )
    vision: bool = Field(
        default=True, description="Load what sees; without, calls have no camera: 1 GB less."
    )
    parity: bool = Field(
        default=False, description="Bring back the mistakes of the published demo."
    )


class VocoderSection(Section):
    """What gives the model its voice."""

    # Layer rules keep this file from reading the defaults of `VoiceSettings`; a test does.
    name: Literal["auto", "token2wav", "cosyvoice2", "off"] = Field(
        default="auto",
        description="`auto` is token2wav where the model comes with it; `off` leaves captions.",
    )
    folder: str = Field(
        default="",
        max_length=4096,
        description="The vocoder's files; empty is `token2wav` among the model's assets.",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto", description="Of its flow; `auto` is float16 on a GPU, float32 on the CPU."
    )
    steps: int = Field(
        default=10, ge=1, le=50, description="Steps of its flow; 5 are faster and rougher than 10."
    )
    memory: Literal["prompt_plus_recent", "reference"] = Field(
        default="prompt_plus_recent",
        description="What a turn keeps in sight: the voice and the last two seconds, or what the "
        "published demo keeps.",
    )
    crossfade: Literal["unity", "reference"] = Field(
        default="unity", description="How pieces of sound are joined; `reference` clicks."
    )
    first_hop_tokens: int = Field(
        default=22,
        ge=4,
        le=22,
        description="Speech tokens, 40 ms each, in a turn's first piece of sound; three more are "
        "waited for. A call's come 25 at a time, so fewer serve read texts and half duplex alone.",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of all that is random in it.")
    prepared_voices: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Voices kept ready in the device's memory, 0.2 GB each, beside those of calls.",
    )
    graphs: bool = Field(
        default=True,
        description="On a GPU, record the vocoder's work at the start as CUDA graphs: 60 ms less "
        "for a second of token2wav's sound, 100 of CosyVoice2's.",
    )


class VoicesSection(Section):
    """Reference voices that users add."""

    folder: str = Field(
        default="", max_length=4096, description="Where they are kept; empty is the data folder's."
    )
    max_voices: int = Field(default=64, ge=0, le=10_000, description="How many may be added.")
    max_file_bytes: int = Field(
        default=20_971_520, ge=1024, le=268_435_456, description="Largest recording."
    )
    max_recording_s: float = Field(
        default=120.0, ge=3, le=600, description="Longest recording; 3 to 15 s of it are used."
    )


class ChatSettings(Section):
    """Turn-based answers (`/v1/chat/completions`, `voice-agent chat`) and what they may cost."""

    max_chats: int = Field(default=4, ge=1, le=64, description="Chats answered at a time.")
    max_waiting: int = Field(
        default=16, ge=0, le=1000, description="Chats that may wait for that; more get a 503."
    )
    retry_after_s: int = Field(
        default=5, ge=1, le=3600, description="When a refused client is told to try again."
    )
    max_out_of_band: int = Field(
        default=2,
        ge=0,
        le=64,
        description="Out-of-band responses of calls answered at a time; 0: none is.",
    )
    out_of_band_timeout_s: float = Field(
        default=60.0, ge=1, le=600, description="One that is not done by then is given up."
    )
    max_body_bytes: int = Field(
        default=67_108_864, ge=1024, le=1_073_741_824, description="Largest request body."
    )
    max_item_bytes: int = Field(
        default=33_554_432,
        ge=1024,
        le=1_073_741_824,
        description="Largest file, attached or fetched.",
    )
    max_pictures: int = Field(
        default=32, ge=0, le=256, description="Pictures in a request, those of videos not counted."
    )
    max_sounds: int = Field(default=16, ge=0, le=256, description="Recordings in a request.")
    max_videos: int = Field(default=4, ge=0, le=64, description="Videos in a request.")
    max_picture_pixels: int = Field(
        default=50_000_000, ge=1024, le=89_000_000, description="Width times height of a picture."
    )
    max_sound_s: float = Field(
        default=600.0, ge=1, le=7200, description="Length of all recordings in a request."
    )
    max_video_s: float = Field(
        default=120.0, ge=1, le=3600, description="Length of all videos in a request."
    )
    fetch_timeout_s: float = Field(
        default=15.0, ge=1, le=300, description="How long the file behind a URL may take to come."
    )
    allow_private_urls: bool = Field(
        default=False,
        description="Fetch files from addresses that are not public, this machine's included.",
    )
    keep_alive_s: float = Field(
        default=10.0,
        ge=0.1,
        le=300,
        description="A stream that has nothing to say yet shows so often that it lives.",
    )
