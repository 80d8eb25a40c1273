"""The demo: a small try-on model that is really trained, and the pictures it is trained on."""
