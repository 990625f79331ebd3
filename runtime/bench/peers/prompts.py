"""Twenty questions whose greedy answers tell two engines apart: facts, lists, code, numbers, other languages."""

from __future__ import annotations

QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "Write a Python function that returns the sum of a list.",
    "Explain in one sentence why the sky is blue.",
    "What is 17 plus 25?",
    "List the planets of the solar system.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What does the word 'photosynthesis' mean?",
    "Write a short poem about the sea.",
    "How many days are there in a leap year?",
    "What is the difference between a list and a tuple in Python?",
    "Summarize the story of Cinderella in two sentences.",
    "What is the boiling point of water in degrees Celsius?",
    "Name an animal that lives in the desert.",
    "Write a polite email that asks for a day off.",
    "What is the largest ocean on Earth?",
    "Complete the sequence: 2, 4, 8, 16,",
    "Why should people drink enough water?",
)
