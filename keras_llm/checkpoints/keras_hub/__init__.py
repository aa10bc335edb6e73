"""Convert KerasHub models to models of this library and back."""
