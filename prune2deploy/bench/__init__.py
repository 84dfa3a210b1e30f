"""Measuring: from ONNX files to raw samples, intervals on ratios, and verdicts. Nothing here imports torch."""
