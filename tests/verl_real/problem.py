"""What the actors of these tests train on."""

SENTENCES = ["12+34=46", "7*8=56", "95-27=68", "20+20=40"]
LEARNING_RATE = 0.1
ANSWER = 3
"""Tokens at the end of each sentence that the loss is of."""
