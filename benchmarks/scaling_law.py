"""Fit a scaling law of the loss in model and data size to training runs.

`L(N, D) = E + A / N ** alpha + B / D ** beta`, with N weights and D tokens, in nats per token, from
Hoffmann et al., 2022, "Training Compute-Optimal Large Language Models".

python benchmarks/scaling_law.py docs/measured_scaling.jsonl --picture docs/pictures/scaling.svg
"""

import argparse
import dataclasses
import itertools
import json
import pathlib

import numpy as np
from scipy import optimize

EXPONENTS = (0.02, 2.0)  # search range of alpha and beta


@dataclasses.dataclass(frozen=True)
class Law:
    """The five parameters of the formula."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, weights, tokens):
        """Return the predicted loss."""
        return self.E + self.A / weights**self.alpha + self.B / tokens**self.beta

    @property
    def exponent(self):
        """The exponent of the optimal number of weights in compute: `N ~ C ** exponent`."""
        return self.beta / (self.alpha + self.beta)

    def best_weights(self, operations):
        """Return the number of weights with the lowest loss for `C = 6 N D` operations."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return ratio ** (1 / (self.alpha + self.beta)) * (operations / 6) ** self.exponent


def fit(runs):
    """Fit the law by least squares.

    For fixed exponents, the other three parameters are a non-negative least-squares problem. The
    exponents are optimized by Nelder-Mead, starting from a grid search.

    Args:
        runs: rows (weights, tokens, loss).

    Returns:
        A `Law`.
    """
    weights, tokens, losses = np.array(runs, "float64").T
    # Scale by the geometric means, so that A and B have the magnitude of the loss.
    n, d = np.exp(np.mean(np.log(weights))), np.exp(np.mean(np.log(tokens)))

    def solve(exponents):
        alpha, beta = exponents
        columns = [np.ones_like(losses), (weights / n) ** -alpha, (tokens / d) ** -beta]
        return optimize.nnls(np.stack(columns, axis=1), losses)

    def error(exponents):
        return solve(exponents)[1]

    start = min(itertools.product(np.geomspace(*EXPONENTS, 12), repeat=2), key=error)
    alpha, beta = optimize.minimize(
        error, start, method="Nelder-Mead", bounds=(EXPONENTS, EXPONENTS)
    ).x
    (E, a, b), _ = solve((alpha, beta))
    return Law(*map(float, (E, a * n**alpha, alpha, b * d**beta, beta)))


def report(runs, picture=None, draws=100):
    """Print the law fitted to the runs, with bootstrap intervals and errors.

    Intervals contain 90 % of the fits to `draws` resamples of the runs, with replacement.

    Args:
        runs: rows (weights, tokens, loss).
        picture: path of the SVG to write, with runs and law, or None.
        draws: int, the number of resamples.
    """
    law, random = fit(runs), np.random.default_rng(0)
    samples = [
        fit([runs[i] for i in random.integers(len(runs), size=len(runs))]) for _ in range(draws)
    ]
    largest = max(runs, key=lambda run: run[0] * run[1])
    operations = 6 * largest[0] * largest[1]
    rows = {name: lambda law, name=name: getattr(law, name) for name in dataclasses.asdict(law)}
    rows["beta / (alpha + beta)"] = lambda law: law.exponent
    rows[f"best weights for {operations:.1e} operations"] = lambda law: law.best_weights(operations)
    print("\n| | fit | 90 % of fits to resamples |\n|---|---|---|")
    for name, value in rows.items():
        low, high = np.quantile([value(sample) for sample in samples], (0.05, 0.95))
        print(f"| {name} | {value(law):.3g} | {low:.3g} to {high:.3g} |")
    errors = [law.loss(weights, tokens) - loss for weights, tokens, loss in runs]
    others = fit([run for run in runs if run is not largest])
    print(f"root mean square error {np.sqrt(np.mean(np.square(errors))):.3f} nats")
    print(
        f"largest run {largest[2]:.3f}, predicted from the others {others.loss(*largest[:2]):.3f}"
    )
    if picture:
        draw(runs, law, picture)


def draw(runs, law, picture):
    """Plot the law as lines and the runs as points, in one color per number of weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for weights, rows in itertools.groupby(runs, key=lambda run: run[0]):
        _, tokens, losses = np.array(list(rows)).T
        (line,) = axes.plot(tokens, law.loss(weights, tokens))
        axes.plot(tokens, losses, "o", color=line.get_color(), label=f"{weights:,} weights")
    amounts = sorted({tokens for _, tokens, _ in runs})
    axes.set_xscale("log")
    axes.set_xticks(amounts, [f"{amount:,}" for amount in amounts])
    axes.minorticks_off()
    axes.set(xlabel="training tokens", ylabel="held-out loss, nats per token")
    axes.legend()
    figure.savefig(picture)


def read(path):
    """Read rows (weights, tokens, loss, seconds) from a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=pathlib.Path, help="file written by questions.py scaling")
    parser.add_argument("--picture", help="path of the SVG to write")
    options = parser.parse_args()
    report([tuple(row[:3]) for row in read(options.runs)], options.picture)
