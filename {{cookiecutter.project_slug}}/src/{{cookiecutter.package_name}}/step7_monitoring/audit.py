"""The audit log: every decision of the loop as one line, when and why, by which rule, from which model to which."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

AUDIT = Path("models/audit/decisions.jsonl")  # in a folder of its own, so that a container can keep it
DONE = ("promoted", "refused", "failed", "interrupted")  # how a retraining ends
CAME = ("noticed", "promoted", "rolled_back")  # how a champion comes


@dataclass(frozen=True)
class Line:
    """One decision: noticed, alert, quiet, retraining, one of DONE, accepted, or rolled_back; `since` is when the world began to change."""

    at: str
    decision: str
    rule: str
    why: str
    before: str | None
    after: str | None
    since: str | None = None

    @property
    def moment(self) -> datetime:
        """When it was decided, in UTC."""
        return datetime.fromisoformat(self.at)


def read() -> list[Line]:
    """All decisions, oldest first; a line that a crash cut short is skipped."""
    found = []
    for text in AUDIT.read_text(encoding="utf-8", errors="replace").splitlines() if AUDIT.exists() else ():
        with suppress(ValueError, TypeError):
            found.append(Line(**json.loads(text)))
    return found


def write(line: Line) -> Line:
    """Append a decision; it is on the disk when this returns."""
    AUDIT.parent.mkdir(parents=True, exist_ok=True)
    with AUDIT.open("a+b") as file:
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * torn + json.dumps(asdict(line), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return line


def last(lines: Sequence[Line], *decisions: str) -> Line | None:
    """The newest line with one of these decisions."""
    return next((line for line in reversed(lines) if line.decision in decisions), None)


def open_alert(lines: Sequence[Line]) -> Line | None:
    """The alert that nothing has answered yet: no calm, no new model, no proof that the champion will do."""
    found = last(lines, "alert", "quiet", "accepted", "promoted", "rolled_back", "noticed")
    return found if found and found.decision == "alert" else None


def within(line: Line | None, now: datetime, days: float) -> bool:
    """Whether a decision is younger than some days; one from the future, after a clock jumped back, is."""
    return line is not None and now - line.moment < timedelta(days=days)
