"""An estimate as the row of a record and as a line of text; every number says what kind it is."""

import math
from typing import Any

from dlm.likelihood import EXACT, Kind
from dlm.metrics import Score
from dlm.scoring.scorer import Estimate, trusted


def row(kind: Kind, score: Score, chars_per_token: float, split: str, draws: int) -> dict[str, Any]:
    """What a record says about one likelihood."""
    common = {"kind": kind.label, "split": split}
    errors = {"se": score.se, "se_draws": score.se_draws}
    size = {"windows": score.windows, "draws": 1 if kind.bound == EXACT else draws}
    if not kind.per_token:
        return {**common, "unit": kind.unit, "value": score.nll, **errors, **size}
    bits, bits_se = score.bits_per_char(chars_per_token)
    return {**common, "nats_per_token": score.nll, **errors, "bits_per_char": bits, "se_bits": bits_se, **size}


def full_row(name: str, kind: Kind, found: Estimate, chars_per_token: float, split: str) -> dict[str, Any]:
    """The same with its name, its settings and its cost; se_draws is null where one number per window hides it."""
    result = {"name": name, **row(kind, found.score, chars_per_token, split, found.draws), **kind.settings}
    if kind.bound != EXACT and found.columns == 1:
        result["se_draws"] = None
    if kind.count == "orders":
        result["orders"] = found.draws // found.rounds
    if found.mean_log_p is not None:
        result["mean_nats_per_token"] = -found.mean_log_p
    result |= {"rounds": found.rounds, "network_rows": found.rows, "seconds": round(found.seconds, 3)}
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in result.items()}


def finite_text(result: dict[str, Any]) -> float:
    """The part of a row's standard error that no number of draws can lower."""
    return math.sqrt(max(result["se"] ** 2 - (result["se_draws"] or 0.0) ** 2, 0.0))


def lines(results: list[dict[str, Any]], precision: float | None) -> list[str]:
    """What is printed about one likelihood: itself, how precise it is, what one temperature changes."""
    text = [line(result) for result in results]
    result = results[-1]
    if precision and result["se_draws"] and "unit" not in result:
        enough = result["se_draws"] <= precision and trusted(result["rounds"], result["windows"])
        reached = "reached" if enough else "not reached before max_draws"
        text.append(
            f"    precision={precision:g} {reached}: Monte Carlo {result['se_draws']:.4f} after "
            f"{result['draws']} draws; the other {finite_text(result):.4f} is the finite text of "
            f"{result['windows']} windows, which draws cannot lower"
        )
    if len(results) > 1:
        before, after = result["tune"]
        text.append(
            f"    calibrated on tune: {before:.4f} nats per token at temperature 1, {after:.4f} at "
            f"{result['temperature']:.4f}; on {result['split']} {results[0]['nats_per_token']:.4f} and "
            f"{result['nats_per_token']:.4f}"
        )
    return text


def line(result: dict[str, Any]) -> str:
    """One line of text."""
    value = result.get("nats_per_token", result.get("value"))
    if value is None:
        return (
            f"{result['name']:<16}infinite   {result['kind']}: the network gives no probability to what happened"
        )
    unit = result.get("unit", "nats per token")
    text = f"{result['name']:<16}{value:.4f} ± {result['se']:.4f} {unit}"
    if result["kind"] == EXACT:
        text += " (Monte Carlo 0)"
    elif result["se_draws"] is None:
        text += " (Monte Carlo part unknown from one round)"
    else:  # strata within a single round make it less
        at_most = "at most " if result["rounds"] == 1 else ""
        text += f" (Monte Carlo {at_most}{result['se_draws']:.4f})"
    if "bits_per_char" in result:
        text += f", {result['bits_per_char']:.4f} ± {result['se_bits']:.4f} bits per character"
    if "unit" in result and "mean_nats_per_token" in result:
        text += f", mean {result['mean_nats_per_token']:.4f} nats per token"
    if result.get("temperature", 1) != 1:
        text += f", temperature {result['temperature']:.4f}"
    drawn = f"{result['draws']} draws"
    if "orders" in result:
        drawn = f"{result['rounds']} x {result['orders']} orders"
    return (
        f"{text}   {result['kind']}, {result['windows']} windows x {drawn}, "
        f"{result['network_rows']} network rows, {result['seconds']:.1f} s"
    )
