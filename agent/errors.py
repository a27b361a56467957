"""Every error of the agent, named for who must react, with the HTTP status it maps to.

AgentError
├ ConfigError            wrong or unknown setting, named           → exit 2 at start
│ └ CheckpointError      file missing, key or shape that differs   → exit 2 at start
├ RequestError           the client sent nonsense                  → 400, OpenAI-shaped body
│ └ UnsupportedError     the engine in use cannot do that          → 400, `unsupported_by_engine`
├ AuthError              no or wrong key, or one that may not      → 401, 403
├ CapacityError          no slot                                   → 503 + Retry-After
│ └ QuotaError           whoever asks has had their share          → 429 + Retry-After
├ MediaError             sound that is not what it claims to be   → dropped, the call goes on
├ SessionError           ends one call
│ ├ TransportClosed      the peer hung up or the connection broke
│ └ PeerTimeout          the peer vanished without a word
└ EngineError            ends one call unless said otherwise
  ├ ContextOverflow      a conversation does not fit into its slot any more
  ├ VocoderError         a turn cannot be voiced; it goes on in captions
  └ WorkerLost           the process of the engine died; it is started again
"""


class AgentError(Exception):
    """Base of everything that this package raises on purpose."""

    status = 500
    code: str | None = None


class ConfigError(AgentError):
    """A setting that is unknown, of the wrong type or out of range; the message names it."""


class CheckpointError(ConfigError):
    """A checkpoint that is missing, truncated or not the one that it claims to be."""


class RequestError(AgentError):
    """The client sent something that cannot be served as it stands.

    `param` names the offending field (dotted, as in ``session.audio.input.format``), `code` is
    the machine-readable reason of OpenAI's error object.
    """

    status = 400

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code if code is not None else type(self).code


class UnsupportedError(RequestError):
    """The request is well-formed, but the engine behind this call cannot do it."""

    code = "unsupported_by_engine"


class AuthError(AgentError):
    """No key, or one that does not open this door. `reason` is for the metrics."""

    status = 401
    reason = "key"


class CapacityError(AgentError):
    """Every slot is taken; try again in `retry_after_s` seconds."""

    status = 503
    code = "no_capacity"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaError(CapacityError):
    """Whoever asks has had their share; others have not. `reason` is for the metrics."""

    status = 429
    code = "rate_limit_exceeded"
    reason = "rate"


class MediaError(AgentError):
    """A packet or recording that is not what it claims to be; dropped where it is found."""


class SessionError(AgentError):
    """Ends one call; the server goes on."""


class TransportClosed(SessionError):
    """The peer hung up, or the connection to it broke."""


class PeerTimeout(SessionError):
    """The peer vanished: nothing was received from it for longer than the watchdog allows."""


class EngineError(AgentError):
    """The engine failed; ends the call unless a subclass says otherwise."""


class ContextOverflow(EngineError):
    """A conversation does not fit into its slot any more."""

    code = "context_overflow"


class VocoderError(EngineError):
    """A turn cannot be voiced; the call goes on, the turn in captions."""

    code = "vocoder_failed"


class WorkerLost(EngineError):
    """The process that ran the engine died, and its conversations with it; it is started again."""

    status = 503
    code = "worker_lost"


def root_cause(error: BaseException) -> BaseException:
    """The one error that says why: of a group, a lost connection before its consequences."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(member) for member in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, SessionError)), causes[0])
