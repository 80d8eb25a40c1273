"""Bundle -> Triton: writes the model repository and runs the embedded server."""
