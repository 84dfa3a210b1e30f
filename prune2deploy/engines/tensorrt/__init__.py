"""TensorRT and TensorRT for RTX: parsing, building, keeping, loading and asking an engine. Neither is imported here."""
