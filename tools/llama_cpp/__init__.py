"""llama.cpp's own converter and llama.cpp itself, beside this project's GGUF exports."""
