"""Checkpoint -> bundle: wraps a trained model, exports it to ONNX and proves that nothing changed."""
