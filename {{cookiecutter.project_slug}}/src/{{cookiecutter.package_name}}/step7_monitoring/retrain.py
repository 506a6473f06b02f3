"""When to train again, on what, and what becomes of it; every decision goes into the audit log, and a crash loses nothing."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..params import BUNDLE, FORMER, PATH, REFERENCE, SCRATCH, Params, load
from ..step1_requirements.checks import STEPS, Check, StepFailed, load_verdict
from ..step1_requirements.page import heal, swap, whole_folder
from ..step3_data.source import connect, name, text, write_query
from ..step4_model.tracking import CHAMPION, open_tracker
from ..step6_deployment.prediction_log import ask_log
from ..step6_deployment.predictor import MANIFEST, open_bundle
from . import audit
from .audit import Line
from .window import JOINED, iso, logged_value

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

UNDO = Path("models/retraining")  # what a retraining that fails puts back
TRAINED = (*audit.CAME, "refused")  # decisions after which age and new labels count anew
FROM_LOG = "prediction_id"  # the column of data/raw that tells rows of the log from those that you brought


class Busy(StepFailed):
    """Another retraining or rollback runs."""


class Project(Protocol):
    """How the pipeline is run and data are put under version control: with DVC, or in the time machine without."""

    def run(self) -> None:
        """All steps on data/raw and params.yaml as they are; raises StepFailed when a gate closes."""

    def track(self) -> None:
        """Take note of changed raw data."""

    def commit(self) -> None:
        """Take note of a bundle that was put back, so that the next run does not replace it again."""


@dataclass(frozen=True)
class Trigger:
    """Why to train again; `since` is when the world changed, and rows before it are then not learned from."""

    rule: str
    why: str
    since: str | None = None


def new_labels(params: Params, lines: Sequence[Line], now: datetime) -> int:
    """Matured labels of predictions since the open alert began or, without one, those that had not matured at the last training."""
    alert, trained, delay = audit.open_alert(lines), audit.last(lines, *TRAINED), timedelta(days=params.requirements.label_delay_days)
    begun = (alert.since or alert.at) if alert else iso((trained.moment if trained else now) - delay)
    values = (*[iso(now)] * 3, begun, iso(now - delay), iso(now))
    return int(ask_log(params.deployment.log.path, f"SELECT count(label) FROM {JOINED} WHERE at > ? AND at <= ? AND label_at <= ?", values)[0][0])


def decide(params: Params, lines: Sequence[Line], now: datetime, labels: int) -> Trigger | None:
    """Whether to train again: an alert with enough labels of the new world, the champion's age, or many new labels.

    `labels` is what `new_labels` counted. Nothing is decided within the cool-down after the last retraining or rollback.
    The first champion of a new world learned it while it was young, with history of the old one in its features: it is
    challenged again each time the labels of that world have doubled. What was learned since a change is from then on all there is.
    """
    rules, alert, came = params.monitoring.retrain, audit.open_alert(lines), audit.last(lines, *audit.CAME)
    if audit.within(audit.last(lines, "retraining", "rolled_back"), now, rules.cooldown_days):
        return None
    if alert:
        return Trigger(alert.rule, f"{alert.why}; {labels:,} labels since then", alert.since) if labels >= rules.min_labels else None
    trained, since = audit.last(lines, *TRAINED), came.since if came else None
    if trained and not audit.within(trained, now, rules.after_days):
        return Trigger("age", f"champion {trained.after} was not challenged since {trained.at}, longer than {rules.after_days:g} days", since)
    ended = [line.decision for line in lines if since and line.since == since and line.decision in ("promoted", "refused")]
    looks = len(ended) - ended.index("promoted") if "promoted" in ended else 0  # so many have judged what was learned since then
    if labels >= (min(rules.new_labels, rules.min_labels * 2 ** (looks - 1)) if looks else rules.new_labels):
        return Trigger("new_labels", f"{labels:,} labels have matured since the last training{' in a young world' * bool(looks)}", since)
    return None


def retrain(params: Params, trigger: Trigger, project: Project, now: datetime) -> Line:
    """Extend data/raw by what the log and its labels tell, run the pipeline, and say what came of it.

    The challenger passes the same gate as every model and must beat the champion on the newest rows. When it does not,
    or anything fails, data and params.yaml are put back and the champion goes on serving.

    Raises:
        StepFailed: when another retraining runs.
    """
    with _alone():
        _recover(project, now)
        champion = serving()
        line = audit.write(Line(iso(now), "retraining", trigger.rule, trigger.why, champion, None, trigger.since))
        try:
            with whole_folder(UNDO) as folder:
                shutil.copy(PATH, folder)
                shutil.copy(params.data.raw, folder)
            rows, since = extend_raw(params, now, trigger.since)
            if since:
                from ..step4_model.tune import write_values

                write_values(PATH, {"data.since": since})
            project.track()
            project.run()
            if serving() == champion:
                raise StepFailed("the pipeline passed, but no new model is in service")
        except BaseException as error:
            outcome, why, accepted = "refused" if isinstance(error, StepFailed) else "failed", _reason(error), _met_every_target()
            if _swapped(champion):
                outcome, why = "promoted", f"passed every gate and serves; what came after it stopped, so `run` again: {why}"
                shutil.rmtree(UNDO)
            else:
                restore(project)  # before it is told, so that a crash in between leaves a retraining without an outcome
            line = audit.write(replace(line, at=_later(now), decision=outcome, why=why, after=serving()))
            if outcome == "refused" and trigger.since and accepted:
                why = "it meets every target and no challenger is better, so what it is asked now is the new normal"
                audit.write(replace(line, decision="accepted", why=why))
            if not isinstance(error, Exception):  # Ctrl+C ends the program all the same
                raise
            return line
        shutil.rmtree(UNDO)
        why = f"passed every gate, on {rows:,} rows of the log too"
        return audit.write(replace(line, at=_later(now), decision="promoted", why=why, after=serving()))


def rollback(project: Project, rule: str, why: str, now: datetime) -> Line:
    """Put the former champion's bundle and reference back; the bad one takes their place, so a second rollback undoes the first.

    Raises:
        StepFailed: when there is no former champion, or its bundle is not what was sealed.
    """
    with _alone():
        _recover(project, now)
        if not (FORMER / BUNDLE.name).exists():
            raise StepFailed(f"rollback: there is no former champion in {FORMER}; `git checkout COMMIT dvc.lock` and `dvc checkout` bring back any")
        former, champion = open_bundle(FORMER / BUNDLE.name)["version"]["version"], serving()
        for folder in (BUNDLE, REFERENCE.parent):
            if (FORMER / folder.name).exists():
                swap(FORMER / folder.name, folder, keep=True)
        open_tracker().set_alias(CHAMPION, former)
        project.commit()
        return audit.write(Line(iso(now), "rolled_back", rule, why, champion, former))


def extend_raw(params: Params, now: datetime, since: str | None = None) -> tuple[int, str | None]:
    """Write data/raw again: the rows that you brought, then those of the log that are younger, with their labels by now.

    Rows taken from the log before are taken again, because labels have come since. What the log does not know is null.
    With `since` and no event time, only what was asked from then on stays. Returns how many rows came from the log, and
    the event time of what was asked since then (but for a straggling hundredth).
    """
    raw, framing = Path(params.data.raw), params.framing
    query = f"SELECT prediction_id, inputs, label, label_at, at FROM {JOINED} ORDER BY at"
    found, columns = ask_log(params.deployment.log.path, query, [iso(now)] * 3), ["prediction_id", "inputs", "label", "label_at", "asked"]
    logged = pa.table({c: pa.array([r[k] for r in found], pa.string()) for k, c in enumerate(columns)})
    with closing(connect(params.data.memory_gb, SCRATCH)) as connection:
        connection.register("logged", logged)
        names = [n for n in pq.read_schema(raw).names if n != FROM_LOG]
        own = [*names, FROM_LOG] if FROM_LOG in pq.read_schema(raw).names else names
        connection.execute(f"CREATE VIEW everything AS SELECT * FROM read_parquet({text(raw)}) AS t({', '.join(f'c{k}' for k in range(len(own)))})")
        logged_as = f"c{len(names)}" if own != names else "NULL::VARCHAR"
        gone = f"{logged_as} IS NULL OR {logged_as} NOT IN (SELECT prediction_id FROM logged)"  # a log may be pruned
        mine = f"SELECT {', '.join(f'c{k}' for k in range(len(names)))}, {logged_as} AS logged_as FROM everything WHERE {gone}"
        connection.execute(f"CREATE VIEW brought AS {mine}")
        types = [row[1] for row in connection.execute("DESCRIBE brought").fetchall()]
        come = {framing.label_time: "label_at", framing.target: "label"}  # by the log's names
        rows = ", ".join(f"TRY_CAST({come.get(n) or logged_value(n)} AS {types[k]}) AS c{k}" for k, n in enumerate(names))
        connection.execute(f"CREATE TABLE came AS SELECT {rows}, prediction_id AS logged_as, asked FROM logged")
        began, asked = None, f"asked >= {text(since)}" if since else "true"
        if framing.time:
            time = name(f"c{names.index(framing.time)}")
            connection.execute(f"DELETE FROM came WHERE {time} IS NULL OR {time} <= (SELECT max({time}) FROM brought WHERE logged_as IS NULL)")
            began = connection.execute(f"SELECT quantile_disc({time}, 0.01)::TIMESTAMP FROM came WHERE {asked}").fetchall()[0][0] if since else None
        elif since:
            connection.execute(f"DELETE FROM came WHERE NOT ({asked})")
        count: int = connection.execute("SELECT count(*) FROM came").fetchall()[0][0]
        mine = "SELECT * EXCLUDE (asked) FROM came"
        both = mine if since and not framing.time else f"SELECT * FROM brought UNION ALL {mine}"
        partial = raw.with_name(raw.name + ".partial")
        write_query(connection, both, [*names, FROM_LOG], partial)
    os.replace(partial, raw)
    return count, began and iso(began)


def recover(project: Project, now: datetime) -> bool:
    """Finish what a crash left half done: a retraining without an outcome is promoted if its bundle was whole, else undone.

    Returns whether none is running; one that runs is left alone.
    """
    try:
        with _alone():
            _recover(project, now)
    except Busy:
        return False
    return True


def _recover(project: Project, now: datetime) -> None:
    for folder in (BUNDLE, REFERENCE.parent):
        heal(folder)
    begun = audit.last(audit.read(), "retraining", *audit.DONE)
    if begun and begun.decision == "retraining":
        done = "promoted" if _swapped(begun.before) else "interrupted"
        if done == "promoted":
            shutil.rmtree(UNDO, ignore_errors=True)
        else:
            restore(project)
        why = "found after a crash: " + ("the new bundle was whole" if done == "promoted" else "data and params.yaml were put back")
        audit.write(replace(begun, at=_later(now), decision=done, why=why, after=serving()))


def restore(project: Project) -> None:
    """Put data/raw and params.yaml back as they were before the retraining."""
    if UNDO.exists():
        raw = Path(load(UNDO / PATH.name).data.raw)
        for kept, place in ((UNDO / PATH.name, PATH), (UNDO / raw.name, raw)):
            shutil.copy(kept, place.with_name(place.name + ".partial"))
            os.replace(place.with_name(place.name + ".partial"), place)
        project.track()
        shutil.rmtree(UNDO)


def serving() -> str | None:
    """The version of the bundle in service."""
    try:
        return str(json.loads((BUNDLE / MANIFEST).read_text(encoding="utf-8"))["version"]["version"])
    except (OSError, ValueError, KeyError):
        return None


def _swapped(champion: str | None) -> bool:
    """Whether another bundle than the champion's is in its place, and whole."""
    try:
        return str(open_bundle(BUNDLE)["version"]["version"]) != champion
    except StepFailed:
        return False


def _met_every_target() -> bool:
    """Whether the challenger lacked nothing but a lead; where none meets the targets, the alert stays."""
    failed = [c.requirement for c in _failed()]
    return "champion" in failed and not any(r.startswith(("quality", "guard_rail")) for r in failed)


def _failed() -> list[Check]:
    """The failed checks of the step that stopped the pipeline."""
    verdicts = ([c for c in load_verdict(step) or [] if c.outcome == "fail"] for step in STEPS)
    return next(filter(None, verdicts), [])


def _reason(error: BaseException) -> str:
    if isinstance(error, StepFailed) and (failed := _failed()):
        return "; ".join(c.reason if c.measured == "stopped" else f"{c.requirement}: {c.measured}, must be {c.limit}" for c in failed)
    return ("" if isinstance(error, StepFailed) else f"{type(error).__name__}: ") + " ".join(str(error).split())


def _later(now: datetime) -> str:
    """Now, as the clock says it; in the time machine, the moment that is played."""
    real = datetime.now(UTC).replace(tzinfo=None)
    return iso(max(now, real) if abs((real - now).days) < 1 else now)


@contextmanager
def _alone() -> Iterator[None]:
    """One retraining or rollback at a time. The pipeline inherits the lock, so it holds until that has ended, too, should this process be killed."""
    lock = audit.AUDIT.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as place:
        try:
            if sys.platform == "win32":
                msvcrt.locking(place.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy("monitor: another retraining or rollback runs; wait for its line in models/audit/decisions.jsonl") from None
        os.set_inheritable(place.fileno(), True)
        yield
