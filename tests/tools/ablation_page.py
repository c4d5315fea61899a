"""Tables and figures of docs/results/03_ablation.md from the results of `tests.tools.ablation`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from ltpa.course import ablation
from ltpa.course.uniform_levels import uniform_effects, uniform_table
from ltpa.errors import counted
from ltpa.metrics.statistics import Effect, t_interval, unpacked, write_effects
from ltpa.viz import to_png
from ltpa.viz.style import FONT, LINE_COLORS, MARKERS, new_figure, style_axes
from ltpa.viz.words import model_in_words
from tests.tools import covers
from tests.tools.marks import write_between

DOCS = Path(__file__).parents[2] / "docs"
DATA_NAME = "CIFAR-10 as JPEG files"
PICTURES = """![Test accuracy of every run, and the three differences with their intervals](../images/03_ablation.png)

![Accuracy on held-out images by learning rate, and test accuracy by epoch](../images/ablation_rates.png)"""
Result = Mapping[str, Any]


def runs_table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row a run: accuracy, costs, rate, entropies of the maps at the end."""
    rows = []
    for r in results:
        last = {name: round(value, 4) for name, value in r["history"][-1].items() if name.startswith("entropy_")}
        row = {"variant": r["variant"], "seed": r["seed"], "accuracy": round(r["accuracy"], 6), "images": r["images"]}
        row |= {"learning_rate": r["rate"], "seconds": round(sum(e["seconds"] for e in r["history"]), 1)}
        rows.append(row | {"parameters": r["parameters"], "gmac": round(r["gmac"], 6), **last, "device": r["device"]})
    return pd.DataFrame(rows)


def epochs_table(results: Sequence[Result]) -> pd.DataFrame:
    """Return a row for every epoch of every run."""
    names = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds")
    return pd.DataFrame(
        {"variant": r["variant"], "seed": r["seed"], "peak_rate": r["rate"], **{name: row[name] for name in names}}
        for r in results
        for row in r["history"]
    ).round(5)


def scores_of(results: Sequence[Result]) -> dict[str, dict[int, torch.Tensor]]:
    """Return which images each run classifies rightly, by variant and seed."""
    scores: dict[str, dict[int, torch.Tensor]] = {}
    for r in results:
        scores.setdefault(r["variant"], {})[r["seed"]] = torch.from_numpy(unpacked(r["correct"], r["images"]))
    return scores


def write_page(
    rates: Sequence[Result], results: Sequence[Result], primary: Sequence[str], docs: Path = DOCS
) -> list[Effect]:
    """Write all CSV files, the figures, and the generated parts of the page; return the three tested effects."""
    variants = list(dict.fromkeys(r["variant"] for r in results))
    results = sorted(results, key=lambda r: variants.index(r["variant"]))
    runs, held_out = runs_table(results), epochs_table(rates)
    budget = f"width 0.125, {counted(results[0]['epochs'], 'epoch')} of {results[0]['train_images']:,} training images"
    effects = ablation.compare(scores_of(results), data=DATA_NAME, budget=budget, also=primary)
    data = docs / "results" / "data"
    tables = {"runs": runs, "epochs": epochs_table(results), "rates": held_out}
    for name, table in {**tables, "correct": ablation.correct_table(scores_of(results))}.items():
        table.to_csv(data / f"ablation_{name}.csv", index=False, lineterminator="\n")
    write_effects(effects, data / "effects_03.csv")
    covers.renew("03_ablation", to_png(ablation.ablation_figure(runs, effects)), docs / "images")
    curves = curves_figure(held_out, tables["epochs"], primary)
    (docs / "images" / "ablation_rates.png").write_bytes(to_png(curves))
    page = docs / "results" / "03_ablation.md"
    _write(page, "summary", summary(effects))
    _write(page, "accuracy", f"{PICTURES}\n\n{_markdown(model_table(runs))}")
    _write(
        page,
        "effects",
        "All three verdicts together are right with 95 % (Holm's method). CSV files: "
        + ", ".join(
            f"[{n}](data/{n}.csv)" for n in ("ablation_runs", "ablation_epochs", "ablation_rates", "ablation_correct")
        )
        + ".",
    )
    _write(page, "rates", _markdown(rate_table(held_out)))
    return effects


def summary(effects: Sequence[Effect]) -> str:
    """Return what came out, a line a comparison."""
    return "\n".join(
        f"- {e.claim}: **{e.verdict}**. `{e.model}` minus `{e.baseline}`: {e.interval.text(1, 100, sign=True)} points."
        for e in effects
    )


def model_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a model: accuracy over seeds, costs, rate, entropies."""
    rows = []
    for variant, of in runs.groupby("variant", sort=False):
        entropies = [of[name].mean() for name in ("entropy_conv7", "entropy_conv10", "entropy_conv13") if name in of]
        rows.append(
            {
                "model": f"`{variant}`",
                "seeds": len(of),
                "test accuracy, % [95 % over seeds]": t_interval(of["accuracy"], bounds=(0, 1)).text(1, 100),
                "GMAC": f"{of['gmac'].iloc[0]:.4f}",
                "rate": f"{of['learning_rate'].iloc[0]:g}",
                "entropy of conv7, conv10, conv13": ", ".join(f"{e:.2f}" if e == e else "-" for e in entropies),
                "trained on": ", ".join("CPU" if device == "cpu" else device for device in of["device"].unique()),
            }
        )
    return pd.DataFrame(rows)


def rate_table(held_out: pd.DataFrame) -> pd.DataFrame:
    """Return the mean held-out accuracy in % after the last epoch, a row a model, a column a rate."""
    last = held_out[held_out["epoch"] == held_out["epoch"].max()]
    means = last.pivot_table(index="variant", columns="peak_rate", values="test_accuracy", sort=False)
    means = (100 * means).sort_index(axis="columns").map("{:.1f}".format)
    return means.rename(columns="{:g}".format).rename_axis("model").rename_axis(None, axis="columns").reset_index()


def curves_figure(held_out: pd.DataFrame, epochs: pd.DataFrame, primary: Sequence[str]) -> Figure:
    """Draw held-out accuracy by rate (left) and test accuracy by epoch (right) of the primary models."""
    figure = new_figure(5)
    left, right = figure.subplots(1, 2)
    last = held_out[held_out["epoch"] == held_out["epoch"].max()]
    for number, name in enumerate(primary):
        look: dict[str, Any] = {
            "color": LINE_COLORS[number % len(LINE_COLORS)],
            "marker": MARKERS[number],
            "alpha": 0.8,
        }
        rates = last[last["variant"] == name].groupby("peak_rate")["test_accuracy"].mean()
        left.plot(rates.index, 100 * rates, label=model_in_words(name), **look)
        curve = epochs[epochs["variant"] == name].groupby("epoch")["test_accuracy"].mean()
        right.plot(curve.index, 100 * curve, **look)
    style_axes(left, x="learning rate of the filters", y="accuracy on held-out images (%)")
    left.set_xscale("log", base=2)
    left.set_xticks(sorted(last["peak_rate"].unique()), [f"{rate:g}" for rate in sorted(last["peak_rate"].unique())])
    style_axes(right, x="epoch", y="test accuracy (%)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=FONT)
    return figure


def write_levels(name: str, answers: dict[str, torch.Tensor], docs: Path = DOCS) -> None:
    """Write what a network of the package loses with uniform weights: `single_03.csv` and its table on the page."""
    effects = uniform_effects(answers, DATA_NAME, f"the weights `{name}` of the package")
    write_effects(effects, docs / "results" / "data" / "single_03.csv")
    table = _markdown(uniform_table({name: answers}).reset_index())
    print(table)
    _write(docs / "results" / "03_ablation.md", "levels", table)


def _write(page: Path, name: str, text: str) -> None:
    begin = f"<!-- {name}: made by `python -m tests.tools ablation {'levels' if name == 'levels' else 'write'}` -->"
    write_between(page, begin, text, f"<!-- end of {name} -->")


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, tablefmt="github", disable_numparse=True, colalign=["left"] * table.shape[1])
