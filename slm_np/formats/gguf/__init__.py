"""GGUF, the files of llama.cpp and ollama: read and written in file.py, one module for each part of a file."""
