"""Which column is which: what was named, or a guess that is said."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from scaling_lab.studies.law import ROLES

#: Names that columns of a role go by, the surest first.
NAMES = {
    "n": "n params parameters n_params num_params nparams param_count num_parameters "
    "model_size model_params params_active_precise active_params total_params "
    "parameter_count params_total size",
    "d": "d tokens training_tokens train_tokens n_tokens num_tokens ntokens t "
    "tokens_seen total_tokens token_count data_tokens dataset_size data training_data",
    "c": "c flops flop compute training_flop training_flops train_flops total_flops "
    "budget compute_budget flops_budget c_flops",
    "loss": "loss final_loss val_loss validation_loss eval_loss test_loss smooth_loss "
    "train_loss loss_final cross_entropy ce_loss nll l",
    "unique": "unique unique_tokens u data_budget unique_data unique_d d_unique",
    "width": "width d_model hidden_size hidden emb_dim model_dim n_embd w h",
    "depth": "depth layers n_layers num_layers n_layer numl l",
    "experts": "experts n_experts num_experts e",
    "granularity": "granularity g",
    "active": "active active_share active_fraction activation_ratio",
    "bits": "bits precision_bits p bit_width bitwidth",
    "rate": "rate lr learning_rate peak_lr max_lr",
    "batch": "batch batch_tokens tokens_per_step bs batch_size global_batch_size",
    "x": "x",
}
NAMES |= {"judged": NAMES["loss"], "y": f"y {NAMES['loss']}"}
#: Columns that are counted in millions or billions, and may say so in their name.
COUNTS = ("n", "d", "unique", "batch")
_SIZES = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "bn": 1e9}
_SIZES |= {"g": 1e9, "billion": 1e9, "t": 1e12, "trillion": 1e12}


def plain(name: str) -> str:
    """A column's name in small letters and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


def unit_in(name: str, role: str) -> float:
    """What a name says its numbers count: ``tokens_B``, ``params (millions)``."""
    if role not in COUNTS:
        return 1.0
    words = plain(name).split("_")
    last = words[-1].rstrip("s") if len(words[-1]) > 2 else words[-1]
    return _SIZES.get(last, 1.0) if len(words) > 1 else 1.0


def guess(role: str, columns: Sequence[str]) -> str | None:
    """The column of a role by its name; None when no name fits.

    Raises:
      ValueError: several fit equally well.
    """
    by_plain: dict[str, list[str]] = {}
    for name in columns:
        by_plain.setdefault(plain(name), []).append(name)
        stem = plain(name).rpartition("_")[0]
        if unit_in(name, role) != 1 and stem:
            by_plain.setdefault(stem, []).append(name)
    for known in NAMES[role].split():
        if known in by_plain:
            return by_plain[known][0]
    words = (
        {"loss"}
        if role in ("judged", "y")
        else {role, *NAMES[role].split()[1:4]} - {"n"}
    )
    near = [name for name in columns if words & set(plain(name).split("_"))]
    if len(near) > 1:
        raise ValueError(
            f"which column is the {ROLES.get(role, role)}? {', '.join(near)} could be; "
            f"say {flag(role)}"
        )
    return near[0] if near else None


def flag(role: str) -> str:
    """How a role's column is named on the command line."""
    if role in ("judged", "y"):
        return "--loss-column NAME"
    if role in ("n", "d", "c", "loss"):
        return f"--{role}-column NAME"
    return f"--column {role}=NAME"


def missing(role: str, columns: Sequence[str], wanted: str | None = None) -> ValueError:
    """What to say where a column is not there: which are."""
    there = ", ".join(str(each) for each in columns)
    what = ROLES.get(role, role)
    if wanted is None:
        return ValueError(
            f"the law needs a column of {what} and none is called so; say "
            f"{flag(role)}; columns: {there}"
        )
    near = difflib.get_close_matches(wanted, [str(c) for c in columns], n=3)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    return ValueError(f"no column {wanted!r} for the {what}; {hint}columns: {there}")
