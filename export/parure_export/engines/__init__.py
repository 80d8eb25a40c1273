"""ONNX graphs -> TensorRT engines: what for (targets), how (plan), once only (cache), with a record beside each."""
