def clone(initializer):
    """A fresh copy, so that two weights never draw from one random seed."""
    return initializer.clone() if hasattr(initializer, "clone") else initializer
