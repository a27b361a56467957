"""Where the weights come from: a folder, the caches of Hugging Face and ModelScope, a download.

    choice = choose(config)  # which engine, and why
    settings = engine_settings(config, choice)  # downloads what is not here yet

`sources` finds a checkpoint, `hub` is the only place that knows huggingface_hub, `download` and
`cache` bring its files here so that they survive interruptions, `gpus` asks what a GPU has free.
Nothing in here imports torch into this process, and nobody's code is downloaded or run.
"""

from agent.model_hub.choice import choose, engine_settings

__all__ = ["choose", "engine_settings"]
