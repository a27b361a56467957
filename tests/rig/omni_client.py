"""What the Python client of vLLM-Omni's duplex API says of its session before all else."""

CLIENTS_SESSION: dict[str, object] = {
    "model": "echo",
    "modalities": ["audio", "text"],
    "input_audio_format": "pcm16",
    "output_audio_format": "pcm16",
    "sample_rate_hz": 16_000,
    "audio": {"input": {"sample_rate_hz": 16_000}, "output": {"sample_rate_hz": 24_000}},
    "turn_detection": None,
    "overlap_policy": "listen_only",
    "extra_body": {"auto_response": True, "force_listen_count": 0},
    "instructions": "Be brief.",
}
