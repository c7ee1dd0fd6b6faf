"""Whether what is served is what was trained: tokens, answers, and why they differ."""
