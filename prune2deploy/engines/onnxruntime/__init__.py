"""ONNX Runtime with its CPU and its CUDA provider."""
