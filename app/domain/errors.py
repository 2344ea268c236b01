"""Every error that Planwave raises on purpose.

PlanwaveError
├── LeaseLost             another worker drives the run now; what this one did is dropped
├── ConfigurationError    a setting or start-up option that cannot work
├── StorageUnavailable    the database is away or locked; try again
│   ├── StorageFull       it has no room for the write
│   └── StorageConflict   it gave up the transaction in favour of another; the same once more may pass
├── ModelError            a model call that gave nothing usable
│   ├── TransportFault    the endpoint did not answer properly; the same call may work later
│   ├── CallRefused       the endpoint will never answer this call (400, 404, 422 ...)
│   │   ├── FormatRefused it refuses the response format asked for; ask with a simpler one
│   │   ├── ToolsRefused  it takes no tools; ask with them described in words
│   │   └── AuthFailed    401 or 403
│   └── SpoiledAnswer     an answer came, and cannot be used
│       └── ModelDeclined the model or its filter will not do it; asking again is no use
└── ToolError             a tool call that gave no result
    ├── ToolRetry         the model reads why, and may do better
    └── ToolFailed        nothing that the model says will help
"""

from app.domain.usage import Usage


class PlanwaveError(Exception):
    """The root; `code` is stable and may be shown to clients."""

    code = "internal_error"


class LeaseLost(PlanwaveError):
    """The run is no longer ours: the fence found another token."""

    code = "lease_lost"


class ConfigurationError(PlanwaveError):
    """A setting or start-up option that cannot work; the message says what to change."""

    code = "configuration"


class StorageUnavailable(PlanwaveError):
    """The database cannot be reached or cannot take the write now."""

    code = "storage_unavailable"


class StorageFull(StorageUnavailable):
    """The disk is full, or as much of it as the database may have: reads work, writes do not."""

    code = "storage_full"


class StorageConflict(StorageUnavailable):
    """A deadlock or a serialization failure: nothing was written, and the same transaction may pass the next time."""


class ModelError(PlanwaveError):
    """A model call without a usable answer. `kind` says which sort and is stored with the attempt."""

    code = "model_error"

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind


class TransportFault(ModelError):
    """Connection errors, 408, 409, 429, 5xx, bodies that are no completion: worth another try, later."""

    def __init__(self, message: str, *, kind: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, kind=kind)
        self.retry_after_seconds = retry_after_seconds


class CallRefused(ModelError):
    """The endpoint refuses this very request; the same request would be refused again."""


class FormatRefused(CallRefused):
    """The endpoint does not take this response format; `level` is how strict it was (see `llm.chat.FormatLevel`)."""

    def __init__(self, message: str, *, kind: str, level: int) -> None:
        super().__init__(message, kind=kind)
        self.level = level


class ToolsRefused(CallRefused):
    """The endpoint, or the model behind it, does not take tools."""


class AuthFailed(CallRefused):
    """The endpoint does not accept our credentials."""


class SpoiledAnswer(ModelError):
    """Empty, cut off or shaped wrongly: the model may do better when asked again. `usage` was spent all the same.

    `content` is what came of an answer that was cut off at a length limit.
    """

    def __init__(self, message: str, *, kind: str, usage: Usage | None = None, content: str = "") -> None:
        super().__init__(message, kind=kind)
        self.usage = usage or Usage()
        self.content = content


class ModelDeclined(SpoiledAnswer):
    """A refusal or a content filter: the same question would be declined again."""


class ToolError(PlanwaveError):
    """A tool call without a result. `kind` says which sort and is stored with the call; the model reads the message.

    `may_have_acted` is False only where the call certainly changed nothing outside. `answered` is False where the tool
    itself has said nothing: its time ran out, its server went away, it broke. Nobody knows what such a call did.
    """

    code = "tool_error"

    def __init__(
        self, message: object, *, kind: object = "tool_error", may_have_acted: bool = True, answered: bool = True
    ) -> None:
        super().__init__(message)
        self.message = str(message)  # authors of tools give the error that they have caught
        self.kind = str(kind)
        self.may_have_acted = may_have_acted
        self.answered = answered


class ToolRetry(ToolError):
    """Other arguments, or the same later, may work: the model is told and goes on."""


class ToolFailed(ToolError):
    """The tool will not work for this task now: the attempt is spoiled."""
