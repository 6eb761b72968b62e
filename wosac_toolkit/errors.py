"""The errors a user can cause, each told in one line: what, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable


class WosacError(ValueError):
    """Base of all errors that input or usage can cause.

    Args:
        what: what is wrong, in plain words, without a full stop.
        where: file, record, scenario id, rollout, object id: whatever places it.
        mend: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__((f"{where}: " if where else "") + what + (f" ({mend})" if mend else ""))

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call the class with the joined message alone, and lose the parts when
        # the error crosses from a worker process to its parent.
        return _rebuild, (type(self), self.what, self.where, self.mend)


def _rebuild(cls: type[WosacError], what: str, where: str, mend: str) -> WosacError:
    return cls(what, where=where, mend=mend)


class FormatError(WosacError):
    """Bytes that are not what their file says they are: truncated, corrupt, another format."""


class ScenarioError(WosacError):
    """A scene that was read well but cannot be simulated or scored."""


class RolloutsError(WosacError):
    """Rollouts that do not fit their scene or the rules of the challenge."""


def some_ids(ids: Iterable[object], limit: int = 8) -> str:
    """`ids` as text, sorted, cut after `limit` of them: '3, 5, 8 and 12 more'."""
    listed = sorted(ids, key=lambda i: (isinstance(i, str), i))  # type: ignore[arg-type,return-value]
    text = ", ".join(str(i) for i in listed[:limit])
    return text if len(listed) <= limit else f"{text} and {len(listed) - limit} more"
