"""A model behind a server: Ollama, and the folders for other servers."""
