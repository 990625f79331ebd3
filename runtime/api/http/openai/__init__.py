"""Routes of the OpenAI API: chat completions, completions, models, and vLLM's tokenize and detokenize."""
