"""What the recipes share: options, training runs, model cards and evaluation."""
