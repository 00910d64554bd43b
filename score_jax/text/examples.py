"""Few-shot dialogues that precede a problem, for models too small to follow instructions.

At temperature 1, as in training, a model of 135 million parameters does not follow a
written instruction reliably; it does follow the form of earlier turns.
"""

INSTRUCTION = "There might be an error in the solution above. Please correct the error, if any."
WORDS = (  # user and policy in turn
    "Tom has 3 pens and gets 5 more from Lucy. How many pens does Tom have now?",
    "3 + 5 = 9. Final Answer: 9",
    INSTRUCTION,
    "3 + 5 = 8. Final Answer: 8",
    "Lucy has 9 cups and gives 4 to Max. How many cups does Lucy have now?",
    "9 - 4 = 5. Final Answer: 5",
    INSTRUCTION,
    "9 - 4 = 5. Final Answer: 5",
    "Max buys 3 boxes with 4 eggs in each and finds 2 more. How many eggs does Max have now?",
    "3 * 4 = 12 and 12 + 2 = 14. Final Answer: 14",
    INSTRUCTION,
    "3 * 4 = 12 and 12 + 2 = 14. Final Answer: 14",
)
