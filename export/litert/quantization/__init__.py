"""Quantize weights: rules, rounding, calibration, SmoothQuant and GPTQ."""
