"""``scaling-lab <verb>``: the front door from a shell."""

from __future__ import annotations

import os
import sys
import warnings

from rich.console import Console

from scaling_lab.cli import (
    compile,
    diff,
    fit,
    plan,
    predict,
    schedule,
    serving,
    show,
    study,
    sweep,
    train,
)

VERBS = {
    "train": train.train,
    "sweep": sweep.sweep,
    "compile": compile.compile,
    "records": show.records,
    "report": show.report,
    "serve-report": serving.serve_report,
    "explain": show.explain,
    "diff": diff.diff,
    "predict": predict.predict,
    "plan": plan.plan,
    "study": study.study,
    "schedule": schedule.schedule,
    "calibrate": predict.calibrate,
    "fit": fit.fit,
    "laws": fit.laws,
    "layouts": show.layouts,
    "models": show.models,
}


def main() -> None:
    """Runs one verb; bad input ends with one message and exit code 2."""
    import tyro

    warnings.showwarning = _say_warning
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="scaling-lab",
            description="How should this transformer be laid out on that machine, and "
            "what will it cost? Every verb has --help.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
        )
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if os.environ.get("SCALING_LAB_TRACEBACK"):
            raise
        said, kind = str(error), f"{type(error).__name__}: "
        if isinstance(error, OSError) and error.filename and error.strerror:
            said, kind = f"{error.filename}: {error.strerror.lower()}", ""
        elif isinstance(error, ValueError) or getattr(error, "errno", 0) is None:
            kind = ""  # the sentence is ours
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[red]error:[/] {kind}", end=""
        )
        print(said, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped; what was finished is on disk", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code or 0)


def _say_warning(message, category, filename, lineno, file=None, line=None):
    del category, filename, lineno, file, line
    print(f"warning: {message}", file=sys.stderr)
