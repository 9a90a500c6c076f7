"""A model in this process: GGUF reader, engine over llama.cpp, embeddings, scheduler."""
