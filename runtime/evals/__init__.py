"""Evaluations: prompts with known answers, and what a served model makes of them. Free of torch and ray."""
