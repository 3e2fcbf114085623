"""Engines by name: every file here registers the one of its name.

transformers   the library's own model, decoded a batch at a time; any device
vllm           vLLM in this process: paged cache, prefix caching; CPU or GPU
server         vLLM servers that somebody else runs, by their addresses
"""
