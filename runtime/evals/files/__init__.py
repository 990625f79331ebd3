"""Published tests from local files: InfiniteBench, LongBench, L-Eval and SCROLLS.

Prompts are worded here, so that scores compare presets and models with one another exactly, and with published tables
nearly; answers are judged as the tests judge them.
"""
