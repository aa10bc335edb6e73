"""Pictures of a run, as PNG files in the model folder."""


def loss_curve(rows, path):
    """Draw losses.

    Args:
        rows: list of [step, training loss, held-out loss].
        path: where the PNG file goes.
    """
    figure, axes = _figure()
    steps, train, held_out = zip(*rows, strict=True)
    axes.plot(steps, train, marker=".", label="training")
    axes.plot(steps, held_out, marker=".", label="held out")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    _save(figure, path)


def confusion_matrix(counts, labels, path):
    """Draw how often each class was taken for each.

    Args:
        counts: int array (C, C), true classes in rows.
        labels: list of C str.
        path: where the PNG file goes.
    """
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    figure, axes = _figure(max(4.5, 0.45 * len(labels) + 2))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=90)
    axes.set_yticks(places, labels)
    axes.set(xlabel="predicted", ylabel="true")
    for row in places:
        for column in places:
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    _save(figure, path)


def scatter(truth, predicted, path):
    """Draw numbers beside the right ones.

    Args:
        truth, predicted: float arrays (N,).
        path: where the PNG file goes.
    """
    figure, axes = _figure()
    axes.scatter(truth, predicted, s=4, alpha=0.4)
    ends = [min(truth), max(truth)]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlabel="true", ylabel="predicted")
    _save(figure, path)


def _figure(inches=5.0):
    from matplotlib.figure import Figure  # without pyplot no window system is asked for

    figure = Figure(figsize=(inches, inches * 0.8), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure, path):
    figure.savefig(path, dpi=100)
