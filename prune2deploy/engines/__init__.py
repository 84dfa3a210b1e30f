"""Engines that run ONNX files: one file an engine. None imports torch."""
