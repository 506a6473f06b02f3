"""One verb per step, and what people do between steps.

Everything heavy is imported by the verb that needs it.
"""

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
import yaml

from .params import BUNDLE, ENV_PREFIX, ONLINE, PATH, REPORTS, SCRATCH, Params, ParamsError, load, overrides
from .step1_requirements.checks import STEPS, StepFailed, close_gate, load_verdict, require_passed

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=(__doc__ or "").partition("\n")[0])
QUIET = {  # nothing is reported to the makers of the tools, and no bars run through the output
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "ORT_DISABLE_TELEMETRY": "1",
}
_BEFORE = {step: before for before, step in pairwise(STEPS)}
_File = Annotated[Path, typer.Argument(help="Parquet or CSV")]


def _load_to_write() -> Params:
    """For verbs that leave files behind."""
    if not os.access(".", os.W_OK):
        raise StepFailed(f"{Path.cwd()} cannot be written to; copy the project to where you may write")
    return load()


def _add_step(step: str) -> None:
    def verb() -> None:
        params = _load_to_write()
        if step in _BEFORE:
            require_passed(_BEFORE[step])
        try:
            import_module(f".step{STEPS[step].replace('-', '_')}.stage", __package__).run(params)
        except StepFailed as error:
            close_gate(step, error)
            raise
        typer.echo(f"{step}: passed, see {REPORTS / STEPS[step] / 'index.html'}")

    app.command(step, help=f"Step {STEPS[step][0]} alone, on what the earlier ones left.")(verb)


for _step in STEPS:
    _add_step(_step)


@app.command()
def run() -> None:
    """All seven steps with `dvc repro`: what is up to date is skipped, a closed gate stops."""
    from .step1_requirements.stage import summarize

    params = _load_to_write()
    _fetch_raw(params)
    try:
        failed = _dvc("repro", "--quiet") != 0
    except KeyboardInterrupt:
        typer.echo("stopped; the next `run` goes on after the last step that passed", err=True)
        raise
    summarize(params)
    if failed and not any(check.outcome == "fail" for step in STEPS for check in load_verdict(step) or ()):
        raise StepFailed("no step said why: `dvc repro` tells what DVC found; without a git repository, `git init` makes one")
    raise typer.Exit(int(failed))


@app.command()
def report() -> None:
    """The table of steps, reports/index.html and reports/traceability.md from what has run."""
    from .step1_requirements.stage import summarize

    summarize(_load_to_write())


@app.command()
def sample(rows: Annotated[int | None, typer.Option(min=1, help="More or fewer than params.yaml says.")] = None) -> None:
    """Write the simulator's sample data to data/raw and put it under DVC."""
    _make_sample(_load_to_write(), rows)


@app.command()
def tune(write: Annotated[bool, typer.Option(help="Put the winner into params.yaml.")] = False) -> None:
    """Search for better model settings; interrupted, it goes on where it stopped."""
    from .step4_model.tune import search, write_values

    params = _load_to_write()
    require_passed("data")
    study = search(params)
    settings = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in study.best_params.items()}
    typer.echo(f"best {params.framing.metric}: {abs(study.best_value):.4g} with {settings}")
    if write:
        write_values(PATH, {f"model.{params.model.kind}.{name}": value for name, value in settings.items()})
    typer.echo("params.yaml has it now; run `run`." if write else "Give --write to put it into params.yaml.")


@app.command()
def experiment(results: Annotated[Path | None, typer.Argument(help="CSV with the columns arm and kpi; else the canary's log")] = None) -> None:
    """Say what the results of the online test mean: of a table of the KPI, or of the labels that came back for champion and canary."""
    from .step5_evaluation.experiment import analyse, read_results

    params = load()
    settings, better = params.evaluation.experiment, params.requirements.kpi.better
    if results:
        values = read_results(results)
    else:
        from .step6_deployment.prediction_log import results_of_canary

        values, better = results_of_canary(params.deployment.log.path)  # type: ignore[assignment]
        if params.deployment.canary:
            settings = settings.model_copy(update={"challenger_share": params.deployment.canary.share})
    found = analyse(settings, values, better)
    typer.echo(f"{found.champion_units:,} and {found.challenger_units:,} units, sample ratio p = {found.sample_ratio_p:.3g}")
    typer.echo(f"effect {found.effect:.4g} [{found.low:.4g}, {found.high:.4g}], p = {found.p_value:.3g}: {found.verdict}")


@app.command()
def materialize() -> None:
    """Refresh the online table that the API looks entities up in, without retraining."""
    from .step3_data.features import refresh_online

    typer.echo(f"{ONLINE}: {refresh_online(_load_to_write()):,} entities")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Else deployment.host of params.yaml.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Else deployment.port.")] = 0,
    bundle: Annotated[Path, typer.Option(help="The folder that step 6 sealed.")] = BUNDLE,
    online: Annotated[Path, typer.Option(help="The latest history of each entity.")] = ONLINE,
    fd: Annotated[int | None, typer.Option(help="An open socket to serve on: a second process on it takes over without losing a request.")] = None,
) -> None:
    """Serve predictions from the bundle to whoever has a key; the log of predictions goes to deployment.log.path."""
    from .step6_deployment.service import create_app
    from .step6_deployment.service import run as run_service

    params = load()
    if not bundle.exists():
        raise StepFailed(f"{bundle} is not here; `run` builds it")
    service = create_app(params, bundle, online)
    host, port = host or params.deployment.host, port or params.deployment.port
    where = f"http://{host}:{port}" if fd is None else f"the socket {fd}"
    typer.echo(f"serving model version {service.version} on {where}, described at /docs; stop with Ctrl+C")
    run_service(service, host, port, fd)


@app.command()
def loadtest() -> None:
    """Load the service with one rate after the other: the highest that meets the requirements, its price, the replicas it takes."""
    from .step6_deployment.loadtest import REPORT, sweep

    found = sweep(load())
    typer.echo(f"one process: {found['requests_per_second_per_replica']:,.0f} requests a second within the requirements")
    typer.echo(f"{found['cost_per_prediction_usd']:.2g} USD a prediction, {found['replicas_needed']} replicas; see {REPORT / 'index.html'}")


@app.command()
def score(source: _File, target: _File) -> None:
    """Score a whole file with the bundle: the same answers as the service."""
    from .step6_deployment.batch import score_file
    from .step6_deployment.predictor import Predictor

    typer.echo(f"{target}: {score_file(Predictor(BUNDLE, ONLINE), source, target):,} rows scored")


@app.command()
def adopt(
    table: Annotated[Path, typer.Argument(help="CSV (any separator and encoding, packed or not), JSON Lines or Parquet")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    time: Annotated[str, typer.Option(help="The column that says when; found if there is one plain one.")] = "",
    entity: Annotated[str, typer.Option(help="The column that says whose row it is.")] = "",
    task: Annotated[str, typer.Option(help="binary, multiclass or regression; else the target says it.")] = "",
    positive: Annotated[str | None, typer.Option(help="The label to find; else the rarer one.")] = None,
    drop: Annotated[list[str], typer.Option(help="Columns to leave out, with commas between.")] = [],  # noqa: B006
    keep: Annotated[list[str], typer.Option(help="Columns to keep that would be left out or stopped on.")] = [],  # noqa: B006
    day_first: Annotated[bool, typer.Option(help="Read 3/4/2026 as 3 April.")] = False,
    encoding: Annotated[str, typer.Option(help="Of a text file, where it is neither told nor found.")] = "",
    dry_run: Annotated[bool, typer.Option(help="Only say what was found.")] = False,
) -> None:
    """Make your own table this project's data: find out what it is, write params.yaml, put it under DVC."""
    from .adopt.command import adopt as take_over
    from .adopt.infer import Asked

    try:
        asked = Asked(target, time or None, entity or None, task or None, positive, tuple(drop), tuple(keep))
        take_over(table, asked, day_first=day_first, encoding=encoding, dry_run=dry_run)
    except (ParamsError, StepFailed) as error:
        typer.echo(f"adopt: {error}; nothing was changed", err=True)
        raise typer.Exit(2) from None
    if not dry_run:
        _dvc_add(load())
        typer.echo("Next: `run`, then raise requirements.quality in params.yaml and name the goal, the owner and the KPI.")


@app.command()
def monitor(
    act: Annotated[bool, typer.Option(help="Let the rules retrain or roll back.")] = True,
    serve: Annotated[
        float, typer.Option(min=0, help="Stay, and look every so many minutes and when Alertmanager calls; metrics on deployment.port + 1.")
    ] = 0,
    evidently: Annotated[bool, typer.Option(help="Write Evidently's drift report of the same window, too.")] = False,
) -> None:
    """Look at the newest window of the prediction log: drift, quality, labels; retrain or roll back where the rules say so."""
    from .step7_monitoring.monitor import REPORT, keep_looking, monitor, write_evidently

    def once() -> None:
        params = load()
        if act and params.monitoring.retrain.automatic:
            _pull_raw(params)
        found, decisions = monitor(params, _Project(), act=act)
        typer.echo(f"{found.predictions:,} predictions of model {found.version}; see {REPORT / 'index.html'}")
        for why in [why for _, why, _ in found.alarms] or ["all is quiet"]:
            typer.echo(why)
        for line in decisions:
            typer.echo(f"{line.decision}: {line.before or '-'} -> {line.after or '-'}: {line.why}")
        if evidently:
            typer.echo(f"see {write_evidently(load(), _now())}")

    keep_looking(once, load().deployment, serve) if serve else once()


@app.command()
def retrain(
    why: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    since: Annotated[datetime | None, typer.Option(help="Learn only from rows since this moment.")] = None,
) -> None:
    """Train again on data/raw and what the prediction log and its labels add; promoted only if better beyond noise."""
    from .step7_monitoring.retrain import Trigger
    from .step7_monitoring.retrain import retrain as again

    params = _load_to_write()
    _fetch_raw(params)
    line = again(params, Trigger("by hand", why, since.isoformat() if since else None), _Project(), _now())
    typer.echo(f"{line.decision}: {line.before or '-'} -> {line.after or '-'}: {line.why}")
    raise typer.Exit(int(line.decision != "promoted"))


@app.command()
def rollback(why: Annotated[str, typer.Option(help="For the audit log.")] = "by hand") -> None:
    """Put the former champion back into service; a second time undoes the first."""
    from .step7_monitoring.retrain import rollback as back

    _load_to_write()
    line = back(_Project(), "by hand", why, _now())
    typer.echo(f"champion {line.after} is back in the place of {line.before}")


@app.command()
def labels(source: _File) -> None:
    """Take in labels that became known later: a table with prediction_id, label and perhaps at (UTC)."""
    from .step7_monitoring.window import add_labels

    params = load()
    found = add_labels(source, params.framing, params.deployment.log.path, SCRATCH)
    typer.echo(", ".join(f"{count:,} {what}" for what, count in found.items()))


@app.command()
def simulate(
    days: Annotated[int, typer.Option(min=1, help="Of traffic, after the history that the first model learns from.")] = 90,
    drift_at: Annotated[int, typer.Option(min=0, help="The day on which the world moves.")] = 45,
    drift: Annotated[str, typer.Option(help="none, covariate, concept; several with commas between.")] = "concept",
    seeds: Annotated[int, typer.Option(min=1, help="How many worlds of each kind.")] = 1,
) -> None:
    """The time machine: traffic through the real service, log, labels and monitor, and what the loop makes of it."""
    from .step7_monitoring.simulate import REPORT, Story, play, write_story

    params, told = load(), []
    for kind in drift.split(","):
        if kind not in ("none", "covariate", "concept"):
            raise StepFailed(f"simulate: --drift {kind} is not known; give none, covariate or concept")
        for seed in range(1, seeds + 1):
            told.append(play(params, Story(days, drift_at, kind, seed)))
            typer.echo(f"{kind}, seed {seed}: {', '.join(f'{k} {v}' for k, v in told[-1].figures.items())}")
    typer.echo(f"{write_story(params, told)}\n\nsee {REPORT / 'index.html'}")


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class _Project:
    """The pipeline through DVC: see step7_monitoring.retrain.Project."""

    def run(self) -> None:
        if _dvc("repro", "--quiet"):
            raise StepFailed("the pipeline stopped; its newest reports say where")

    def track(self) -> None:
        _dvc_add(load())

    def commit(self) -> None:
        _dvc("commit", "--quiet", "--force", "deployment", "monitoring")


def _fetch_raw(params: Params) -> None:
    """Raw data that is not here, from the DVC remote or else from the simulator, if that makes what DVC knows."""
    _pull_raw(params)
    if not (raw := Path(params.data.raw)).exists():
        known = raw.parent.with_suffix(".dvc")
        before = known.read_bytes() if known.exists() else None
        _make_sample(params, None)
        if before and _hash_in(before) != _hash_in(known.read_bytes()):
            raw.unlink()
            known.write_bytes(before)
            mend = "give the remote and what it takes to read it, or make the simulator's own with `sample` and commit that file"
            raise StepFailed(f"{known} names other data than the simulator makes, and `dvc pull` did not bring them: {mend}")


def _hash_in(dvc_file: bytes) -> str:
    """What DVC calls the data."""
    return str(yaml.safe_load(dvc_file)["outs"][0]["md5"])


def _pull_raw(params: Params) -> None:
    raw = Path(params.data.raw)
    if not raw.exists() and raw.parent.with_suffix(".dvc").exists():
        _dvc("pull", "--quiet", str(raw.parent.with_suffix(".dvc")))


def _make_sample(params: Params, rows: int | None) -> None:
    from .step3_data.source import write_sample

    settings = params.data.sample
    if settings is None:
        raise StepFailed(f"params.yaml: data.sample is null, so nothing can be simulated; put your table at {params.data.raw}, or `dvc pull` it")
    settings = settings.model_copy(update={"rows": rows}) if rows else settings
    typer.echo(f"sample: {write_sample(settings, Path(params.data.raw)):,} rows in {params.data.raw}")
    _dvc_add(params)


def _dvc_add(params: Params) -> None:
    folder = Path(params.data.raw).parent
    if _dvc("add", "--quiet", str(folder)):
        raise StepFailed(f"DVC did not take {folder} in: `dvc add {folder}` tells why; without a git repository, `git init` makes one")


def _dvc(*words: str) -> int:
    """Run DVC with this Python first on the path, so that the stages run in the same environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen([sys.executable, "-m", "dvc", *words], env=os.environ | {"PATH": path}, close_fds=False)  # see retrain._alone
    try:
        return process.wait()
    except KeyboardInterrupt:  # DVC had the signal too; killed, it would leave its lock behind
        process.wait()
        raise


def main() -> None:
    """Run a verb; mistakes end in a sentence and exit code 1, never in a traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the console cannot show is no reason to fail
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for keys, value in overrides(os.environ).items():
            shown = "(a URL)" if "://" in str(value) else repr(value)  # it may hold a password
            logging.info("%s = %s comes from %s in the environment; DVC does not see it", ".".join(keys), shown, ENV_PREFIX + "__".join(keys).upper())
        app(prog_name=f"python -m {__package__}")
    except (ParamsError, StepFailed) as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except RuntimeError as error:
        if "interrupted" not in str(error):  # DuckDB's word for Ctrl+C
            raise
        sys.exit(130)
    except OSError as error:
        typer.echo(f"{error}; is the path right, may you write there, and is the disk full?", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
