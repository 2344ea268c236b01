"""The model behind one seam: the openai SDK, or the built-in offline model."""
