"""Plot the results of a run as PNG files in the model folder."""


def loss_curve(rows, path):
    """Plot training and held-out losses.

    Args:
        rows: list of [step, training loss, held-out loss].
        path: path of the PNG file.
    """
    figure, axes = _figure()
    steps, train, held_out = zip(*rows, strict=True)
    axes.plot(steps, train, marker=".", label="training")
    axes.plot(steps, held_out, marker=".", label="held out")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    _save(figure, path)


def confusion_matrix(counts, labels, path):
    """Plot a confusion matrix.

    Args:
        counts: int array (C, C), true classes in rows.
        labels: list of C str.
        path: path of the PNG file.
    """
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    figure, axes = _figure(max(4.5, 0.45 * len(labels) + 2))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    indices = range(len(labels))
    axes.set_xticks(indices, labels, rotation=90)
    axes.set_yticks(indices, labels)
    axes.set(xlabel="predicted", ylabel="true")
    for row in indices:
        for column in indices:
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    _save(figure, path)


def scatter(truth, predicted, path):
    """Plot predicted against true numbers.

    Args:
        truth, predicted: float arrays (N,).
        path: path of the PNG file.
    """
    figure, axes = _figure()
    axes.scatter(truth, predicted, s=4, alpha=0.4)
    ends = [min(truth), max(truth)]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlabel="true", ylabel="predicted")
    _save(figure, path)


def _figure(inches=5.0):
    from matplotlib.figure import Figure  # pyplot would look for a display

    figure = Figure(figsize=(inches, inches * 0.8), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure, path):
    figure.savefig(path, dpi=100)
