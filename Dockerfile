# Builds: docker build -t voice-agent .
# Key:    docker run --rm -v voice-agent:/data voice-agent keys add me
# Runs:   docker run --gpus all --network host -v voice-agent:/data -v /path/to/weights:/weights:ro voice-agent
#
# It listens on every address, so it does not start without a key. Where everybody who reaches it
# may use it, append `serve --no-auth` instead of making one.
#
# Host networking, because media goes over UDP ports that the system picks for each call: they
# cannot be published one by one. Without it, configure a TURN server (rtc.ice_servers).
# Weights are mounted and never part of the image.

# torch's wheels bring CUDA's libraries; the base image brings what the driver is found by.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# The versions of Ubuntu's packages are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# 1000 is taken by Ubuntu's own user.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin agent \
    && install --directory --owner=agent --group=agent --mode=0700 /data

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY assets assets
COPY web web
RUN python3 -m venv /opt/voice-agent \
    && /opt/voice-agent/bin/pip install --no-cache-dir . \
    && rm -rf /src/*

# The user `agent`, by number so that the host can check that it is not root.
USER 10001
WORKDIR /data
ENV PATH=/opt/voice-agent/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VOICE_AGENT__SERVER__DATA_FOLDER=/data \
    VOICE_AGENT__MODEL__FOLDER=/data/models \
    VOICE_AGENT__SERVER__HOST=0.0.0.0
VOLUME ["/data"]
EXPOSE 8006

# Over TLS or, behind a proxy (--http), without. The certificate is self-signed and made for this
# machine's names: it is not what is checked here.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u\nfor s in 'https', 'http':\n    try:\n        u.urlopen(s + '://127.0.0.1:' + os.environ.get('VOICE_AGENT__SERVER__PORT', '8006') + '/healthz', timeout=4, context=ssl._create_unverified_context())\n        break\n    except u.HTTPError:\n        raise\n    except OSError:\n        if s == 'http': raise"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["voice-agent"]
CMD ["serve"]
